"""How fast a sweep trains the published runs.

A run is the published offline one: 5 contexts, 10 responses each, 200 full-batch Adam steps of the
network, judged on fresh contexts.
"""

import functools
from collections.abc import Iterator

from bandits.bench.base import Measurement, cost, interleaved
from bandits.studies.t24.published import PEAKS, Bandit, run_methods
from bandits.sweeps import choices

SEEDS = 40
PUBLISHED_SECONDS = {"ipo": "315 to 540", "best_of_n": "18 to 48"}
"""What the published code took a run, on two cores."""


def published_runs(repeats: int) -> Iterator[Measurement]:
    """Seconds a run, compilation included unless the compilation cache is on."""
    bandit = Bandit(seeds=SEEDS)

    def run(method: str) -> None:
        run_methods(bandit, [method], {"reward": choices(PEAKS)}, contexts=5, steps=200)

    workloads = {method: functools.partial(run, method) for method in PUBLISHED_SECONDS}
    seconds = interleaved(workloads, repeats)
    for method, measured in seconds.items():
        runs = len(PEAKS) * SEEDS
        note = f"the published code took {PUBLISHED_SECONDS[method]} s; ours in a sweep of {runs}"
        yield cost(f"published run: {method}", measured, "s a run", runs, note=note)
