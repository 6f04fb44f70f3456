"""Do pieces of work side by side, each in a process of its own.

Work that traces and compiles more than it computes keeps one core busy. Threads would not help:
Python traces in one at a time, and LAPACK in two programs of a process can wait for ever. A pool of
`concurrent.futures` does the work; this adds that no process outlives it, whatever ends it.
"""

import multiprocessing
import os
import pickle
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TypeVar, cast

from bandits.sweeps.programs import lanes
from bandits.terminal import SIGNALS
from theory import checks

Piece = TypeVar("Piece")
Result = TypeVar("Result")

MOST_PROCESSES = 4
"""Most processes by default: each holds its results in memory, and its sweeps use all cores."""


def processes_for(count: int | None) -> int:
    """Return ``count``, or by default one for each core up to `MOST_PROCESSES`, and one for a GPU.

    Raises InvalidInput for a count < 1.
    """
    if count is not None:
        checks.require_whole("processes", count)
        return count
    # Two processes would each take most of the memory of a GPU.
    available = lanes()
    return min(len(available), MOST_PROCESSES) if available[0].platform == "cpu" else 1


@contextmanager
def side_by_side(
    work: Callable[[Piece], Result],
    pieces: Sequence[Piece],
    processes: int,
    prepare: Callable[[], None],
) -> Iterator[Iterator[tuple[Piece, Result]]]:
    """Yield an iterator over each piece with its result, as they end.

    With one process, this process works in order. Several are killed if an exception or a signal
    leaves the context, and none outlives this process. The caller cleans up what they wrote.

    Args:
      work: From a piece to its result, a function of a module; all must be picklable.
      pieces: What to work on.
      processes: Most pieces at a time.
      prepare: Called first in each of several processes.

    Raises what ``work`` raises, and InvalidInput if a process dies.
    """
    processes = min(processes, len(pieces))
    if processes < 2:
        yield ((piece, work(piece)) for piece in pieces)
        return
    others = multiprocessing.active_children()
    # Not forked: a copy of JAX would wait for threads that it does not have.
    context = multiprocessing.get_context("spawn")
    with _signals_held():  # here, too: the pool starts a process that keeps account of semaphores
        pool = ProcessPoolExecutor(processes, context, _begin, (prepare,))
    with pool:
        try:
            with _signals_held():
                futures = {pool.submit(_do, work, piece): piece for piece in pieces}
            yield _finished(futures)
        except BaseException as error:
            pool.shutdown(wait=False, cancel_futures=True)
            # Python 3.14 has `kill_workers` for this.
            for child in set(multiprocessing.active_children()) - set(others):
                child.kill()
                child.join()
            if isinstance(error, BrokenProcessPool):
                raise checks.InvalidInput(
                    f"one of {processes} processes died; where memory is short, choose fewer"
                ) from error
            raise


@contextmanager
def _signals_held() -> Iterator[None]:
    """Hold `SIGNALS` back until this ends, and for ever from processes that start in it.

    A terminal or a scheduler sends them to all processes; the parent says when the work ends.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _finished(
    futures: Mapping["Future[tuple[Result, list[Warning]]]", Piece],
) -> Iterator[tuple[Piece, Result]]:
    """Yield each piece with its result, and warn here of what its process warned of."""
    for future in as_completed(futures):
        result, caught = future.result()
        for warning in caught:
            warnings.warn(warning, stacklevel=2)
        yield futures[future], result


def _begin(prepare: Callable[[], None]) -> None:
    """Prepare a new process, which ends with its parent."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
    prepare()


def _do(work: Callable[[Piece], Result], piece: Piece) -> tuple[Result, list[Warning]]:
    """Return the result of a piece and its warnings, which the parent process shows."""
    try:
        with warnings.catch_warnings(record=True) as caught:
            result = work(piece)
        return result, [cast(Warning, warning.message) for warning in caught]
    except Exception as error:
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:
            # One that cannot be unpickled would look like the death of this process.
            raise RuntimeError(f"{type(error).__name__}: {error}") from None
        raise
