"""Time how fast a sweep trains the published runs.

A run is the published offline one: 5 contexts, 10 responses each, 200 full-batch Adam steps of the
network, judged on fresh contexts.
"""

from collections.abc import Iterator
from functools import partial

from bandits.bench.base import Measurement, Row, time_rows
from bandits.studies.t24.published import PEAKS, Bandit, run_methods
from bandits.sweeps import choices

SEEDS = 40
PUBLISHED_SECONDS = {"ipo": "315 to 540", "best_of_n": "18 to 48"}
"""What the published code took a run, on two cores."""


def published_runs(repeats: int) -> Iterator[Measurement]:
    """Yield the seconds a run, with compilation unless the compilation cache is on."""
    bandit, runs = Bandit(seeds=SEEDS), len(PEAKS) * SEEDS

    def run(method: str) -> None:
        run_methods(bandit, [method], {"reward": choices(PEAKS)}, contexts=5, steps=200)

    rows = [
        Row(
            f"published run: {method}",
            method,
            unit="s a run",
            work=runs,
            note=f"the published code took {seconds} s; ours in a sweep of {runs}",
        )
        for method, seconds in PUBLISHED_SECONDS.items()
    ]
    yield from time_rows(
        {method: partial(run, method) for method in PUBLISHED_SECONDS}, rows, repeats
    )
