"""How many of the published runs a sweep trains a second.

    python benchmarks/training.py [--repeats 3]

A run is the published offline one: 5 contexts, 10 responses each, 200 full-batch Adam steps of the
network, judged on fresh contexts. The published code took 315 to 540 s for one of IPO and 18 to
48 s for one of best-of-N on two cores. Repeats are interleaved; programs are compiled before.
"""

import argparse
import statistics
import tempfile
import time

import jax
from rich.console import Console
from rich.table import Table

from bandits.experiments.published import Bandit, run_methods

SEEDS = 40
PUBLISHED_SECONDS = {"ipo": "315 to 540", "best_of_n": "18 to 48"}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Published training runs a second, in a sweep.")
    parser.add_argument("--repeats", type=int, default=3, help="interleaved repeats")
    repeats = parser.parse_args().repeats

    bandit = Bandit(seeds=SEEDS)
    rates: dict[str, list[float]] = {method: [] for method in PUBLISHED_SECONDS}
    with tempfile.TemporaryDirectory() as cache:
        jax.config.update("jax_compilation_cache_dir", cache)
        for repeat in range(repeats + 1):
            for method, measured in rates.items():
                start = time.perf_counter()
                run_methods(bandit, [method], {"reward": ["R1", "R2"]}, contexts=5, steps=200)
                if repeat:  # the first compiles
                    measured.append(2 * SEEDS / (time.perf_counter() - start))
    table = Table(
        "method", "runs a second, median", "lowest", "highest", "published, seconds a run",
        title=f"{2 * SEEDS} offline runs of 200 steps, {repeats} repeats",
    )  # fmt: skip
    for method, measured in rates.items():
        spread = (statistics.median(measured), min(measured), max(measured))
        table.add_row(method, *(f"{rate:.1f}" for rate in spread), PUBLISHED_SECONDS[method])
    Console().print(table)


if __name__ == "__main__":
    main()
