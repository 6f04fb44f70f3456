"""What a user waits for: importing the library, and each figure from the command line.

    python benchmarks/startup.py [--repeats 5]

Every measurement is a fresh process. Imports are interleaved, so that a machine that slows down
slows both alike, and compared as ratios. Figures run twice: the first time every program is
compiled, the second time compiled programs are read back from the cache.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time

from rich.console import Console
from rich.table import Table

from bandits.experiments import EXPERIMENTS

IMPORTS = {
    "import jax": "import jax",
    "import bandits": "import jax, bandits",
    "bandits, every name": "import jax, bandits; [getattr(bandits, n) for n in bandits.__all__]",
}

CATEGORICAL_LIMIT, QUICK_LIMIT = 20, 100
COVERAGE = (
    "displacement",
    "coverage_sweep",
    "rlhf_dpo_equivalence",
    "generation_verification_gap",
    "online_offline_hypotheses",
    "kl_projections",
    "simplex_paths",
)
LIMITS = {"mode_seeking": 10, "mass_relocation": 10, "combinatorial": 90, "partial_coverage": 10}
LEARNED_REWARDS = (
    "length_problems",
    "length_models",
    "length_batch_size",
    "length_sample_reuse",
    "overoptimisation",
    "four_aspects",
    "unlabelled_prompts",
)
LIMITS |= dict.fromkeys(COVERAGE, 30) | dict.fromkeys(LEARNED_REWARDS, 60)
"""Seconds that a user should wait at most, on two cores."""


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description="Import and figure times, in fresh processes.")
    parser.add_argument("--repeats", type=int, default=5, help="interleaved repeats of the imports")
    repeats = parser.parse_args().repeats

    seconds: dict[str, list[float]] = {name: [] for name in IMPORTS}
    for _ in range(repeats):
        for name, code in IMPORTS.items():
            seconds[name].append(_time([sys.executable, "-c", code]))
    imports = Table("import", "median", "ratio to jax", title=f"Imports, {repeats} repeats")
    for name, measured in seconds.items():
        ratios = [a / b for a, b in zip(measured, seconds["import jax"], strict=True)]
        imports.add_row(
            name, f"{statistics.median(measured):.2f} s", f"{statistics.median(ratios):.2f}"
        )

    figures = Table(
        "figure", "first run", "compiled before", "limit", title="modeseek figures NAME"
    )
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": f"{folder}/cache"}
        for name in EXPERIMENTS:
            command = [sys.executable, "-m", "bandits.cli", "figures", name, "--out", folder]
            runs = [_time(command, environment) for _ in range(2)]
            limit = f"{LIMITS.get(name, CATEGORICAL_LIMIT)} s"
            figures.add_row(name, *(f"{run:.1f} s" for run in runs), limit)
        quick = {**os.environ, "JAX_COMPILATION_CACHE_DIR": f"{folder}/quick"}
        command = [sys.executable, "-m", "bandits.cli", "figures", "--quick", "--out", folder]
        runs = [_time(command, quick) for _ in range(2)]
        figures.add_section()
        figures.add_row("all, --quick", *(f"{run:.1f} s" for run in runs), f"{QUICK_LIMIT} s")
    console = Console()
    console.print(imports)
    console.print(figures)


def _time(command: list[str], environment: dict[str, str] | None = None) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, env=environment)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
