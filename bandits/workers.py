"""Pieces of work side by side, each in a process of its own.

What compiles and traces more than it computes keeps one core busy. Threads would not help it:
Python traces in one at a time, and LAPACK in two programs of a process can wait for ever.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from bandits.sweeps.programs import lanes
from theory import checks

Piece = TypeVar("Piece")
Result = TypeVar("Result")

MOST_PROCESSES = 4
"""By default: each holds what it computes in memory, and its sweeps use all cores."""


def processes_for(count: int | None) -> int:
    """As many as asked for; by default one for each core up to `MOST_PROCESSES`, and one for a GPU.

    Raises InvalidInput for a count < 1.
    """
    if count is not None:
        checks.require_whole("processes", count)
        return count
    # Two processes would each take most of the memory of a GPU.
    available = lanes()
    return min(len(available), MOST_PROCESSES) if available[0].platform == "cpu" else 1


@contextlib.contextmanager
def side_by_side(
    work: Callable[[Piece], Result],
    pieces: Sequence[Piece],
    processes: int,
    prepare: Callable[[], None],
) -> Iterator[Iterator[tuple[Piece, Result]]]:
    """Each piece with its result, as they end; where there is one process, here and in order.

    Left early, by Ctrl-C too, it stops the processes, which clean up what they write.

    Args:
      work: from a piece to its result; both must be picklable, and it a function of a module.
      pieces: what to work on.
      processes: at most so many at a time.
      prepare: called first in each process, where there are several.

    Raises what ``work`` raises, and InvalidInput if a process dies.
    """
    processes = min(processes, len(pieces))
    if processes < 2:
        yield ((piece, work(piece)) for piece in pieces)
        return
    others = multiprocessing.active_children()
    # Not forked: a copy of JAX would wait for threads that it does not have.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, _begin, (prepare,)) as pool:
        futures = {pool.submit(_do, work, piece): piece for piece in pieces}
        try:
            yield ((futures[future], future.result()) for future in as_completed(futures))
        except BaseException as error:
            pool.shutdown(wait=False, cancel_futures=True)
            children = [c for c in multiprocessing.active_children() if c not in others]
            for child in children:
                child.terminate()
            for child in children:
                child.join()
            if isinstance(error, BrokenProcessPool):
                raise checks.InvalidInput(
                    f"one of {processes} processes died; where memory is short, choose fewer: what "
                    "is done is kept"
                ) from error
            raise


_stopped = threading.Event()
"""That this process has been told to end."""


def _begin(prepare: Callable[[], None]) -> None:
    # A terminal sends Ctrl-C to all; who began the work says when it ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _stop)
    sys.unraisablehook = _without_exits
    threading.Thread(target=_end_with_parent, daemon=True).start()
    prepare()


def _stop(*_: object) -> None:
    _stopped.set()
    sys.exit(1)


def _without_exits(raised: "sys.UnraisableHookArgs") -> None:
    if raised.exc_type is not SystemExit:
        sys.__unraisablehook__(raised)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)


def _do(work: Callable[[Piece], Result], piece: Piece) -> Result:
    try:
        return work(piece)
    finally:
        # All is cleaned up; the pool would go on with the next piece. Asked of the event, for an
        # exit can be lost: Python ignores one that is raised in a callback of its collector.
        if _stopped.is_set():
            os._exit(1)
