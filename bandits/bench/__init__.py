"""The performance table: every speed that is claimed, beside what it is held to.

Times are taken side by side in interleaved rounds and compared as ratios, round by round: what else
the machine does then slows both alike.
"""

from collections.abc import Iterator

from bandits.bench import gallery as figures
from bandits.bench import published, scaling, stores, updates
from bandits.bench.base import Measurement, describe_machine, interleaved, ratio
from bandits.bench.peers import Sizes

__all__ = ["Measurement", "describe_machine", "interleaved", "measure", "ratio"]


def measure(
    *, gallery: bool = False, quick: bool = False, repeats: int = 7
) -> Iterator[Measurement]:
    """Rows of the table, as they are measured.

    Args:
      gallery: also the imports and every figure, in fresh processes: an hour rather than minutes.
      quick: tiny sizes, to see that everything runs; the numbers say nothing.
      repeats: interleaved rounds.
    """
    if quick:
        sizes = updates.Exact(runs=8, num_arms=10, steps=5)
        yield from updates.exact_updates(repeats, sizes)
        yield from updates.sampled_updates(repeats, Sizes(runs=8, steps=5, minibatch=20))
        yield from scaling.against_arms(repeats, arms=(10,))
        yield from scaling.against_runs(repeats, runs=(100,))
        yield from scaling.against_lanes(repeats, sizes)
        return
    yield from updates.exact_updates(repeats)
    yield from updates.sampled_updates(repeats)
    yield from scaling.against_arms(repeats)
    yield from scaling.against_runs(repeats)
    yield from scaling.against_lanes(repeats)
    yield from published.published_runs(min(repeats, 3))
    yield from stores.million_runs()
    yield from stores.t24_search()
    if gallery:
        yield from figures.import_times(repeats)
        yield from figures.figure_times()
