"""The performance table: every speed that is claimed, beside what it is held to.

Times are taken side by side in interleaved rounds, and compared as ratios, round by round: what
else the machine does then slows both alike.
"""

from collections.abc import Iterator

from bandits.bench import gallery as figures
from bandits.bench import published, scaling, stores, updates
from bandits.bench.base import Measurement, describe_machine
from bandits.bench.peers import Sizes

__all__ = ["Measurement", "describe_machine", "measure"]


def measure(
    *, gallery: bool = False, quick: bool = False, repeats: int = 7
) -> Iterator[Measurement]:
    """Yield the rows of the table, as they are measured.

    Args:
      gallery: Also time the imports and every figure, in new processes: 20 minutes more.
      quick: Take tiny sizes and no sweeps, to see that it runs; the numbers say nothing.
      repeats: Number of interleaved rounds.
    """
    exact = Sizes(runs=8, num_arms=10, steps=5) if quick else None
    sampled = Sizes(runs=8, steps=5, minibatch=20) if quick else None
    # What is held to a floor comes first: PyTorch, once it has run, keeps threads of its own.
    yield from updates.exact_floor(repeats, exact)
    yield from updates.sampled_floor(repeats, sampled)
    yield from scaling.against_lanes(repeats, exact)
    if not quick:
        yield from scaling.against_arms(repeats)
        yield from scaling.against_runs(repeats)
        yield from scaling.against_workers(min(repeats, 5))
        yield from stores.million_runs()
        yield from stores.t24_search()
        yield from published.published_runs(min(repeats, 3))
    yield from updates.exact_peers(repeats, exact)
    yield from updates.sampled_peers(repeats, sampled)
    if gallery:
        yield from figures.import_times(repeats)
        yield from figures.figure_times()
