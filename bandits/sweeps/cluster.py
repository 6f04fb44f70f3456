"""Sweep on the workers of a Dask cluster, on this machine or on many.

A worker gets stretches of chunks, and writes what it computes into the store itself. If a worker
dies, Dask gives its stretches to others, who do what is not in the store yet. No worker needs a
word from another, and it changes no bit which worker does a chunk.
"""

import contextlib
import logging
import os
import pickle
import platform
import threading
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from bandits.kernels.compiler import avoid_ynnpack
from bandits.sweeps import store, stored
from bandits.sweeps.programs import lanes
from bandits.sweeps.store import Chunk, Store
from theory import checks
from theory.checks import InvalidInput

if TYPE_CHECKING:
    from distributed import Client

STRETCHES = 16
"""Number of stretches for each thread: with many, threads end at nearly the same time."""

DEATHS = 10
"""Number of local workers that may die with one stretch before the sweep is given up."""

UNWATCHED = {
    "distributed.worker.profile.enabled": False,
    "distributed.admin.tick.interval": "1 s",
}
"""Settings of local workers: else Dask samples their stacks for its page, a tenth of a core."""

PATIENCE = "30 s"
"""Time in which a scheduler must answer."""

LOGGERS = ("distributed", "distributed.client", "distributed.gc", "tornado.application")
"""Loggers of Dask that have a level of their own, and would print beside what is said here."""

CACHE = (
    "jax_compilation_cache_dir",
    "jax_enable_compilation_cache",
    "jax_persistent_cache_min_compile_time_secs",
)
"""Settings of JAX that say where compiled programs are kept."""

_open: dict[bytes, tuple[stored.StoredSweep, Store]] = {}
"""The sweep that this worker last worked on, with its compiled programs."""

_one_at_a_time = threading.Lock()
"""Lock of a worker: it has a device for each thread, and works on one stretch at a time."""


def require_workers(workers: int | None, devices: int | None, scheduler: str | None) -> int | None:
    """Return the number of devices of each process; None means all devices of this process.

    Raises InvalidInput for numbers < 1, for workers or devices beside a scheduler, and for workers
    that would share the GPUs of this machine.
    """
    for name, number in (("workers", workers), ("devices", devices)):
        if number is not None:
            checks.require_whole(name, number)
            if scheduler is not None:
                raise InvalidInput(f"the scheduler has its own workers; leave out {name}")
    if workers is None:
        return devices
    if jax.default_backend() != "cpu":
        raise InvalidInput("workers share cores, not GPUs; leave them out: one process uses all")
    return devices or 1


@contextlib.contextmanager
def connect(
    workers: int | None = None, threads: int = 1, scheduler: str | None = None
) -> Iterator["Client | None"]:
    """Yield a client of a cluster, or None if neither workers nor a scheduler are asked for.

    Args:
      workers: Number of processes to start on this machine; they end with the context.
      threads: Number of cores of each.
      scheduler: Address of a cluster that is there already, such as ``tcp://host:8786``.

    Raises InvalidInput without Dask, and if no scheduler answers.
    """
    if workers is None and scheduler is None:
        yield None
        return
    try:
        import dask
        import distributed
    except ImportError as error:
        raise InvalidInput(
            "workers need Dask, which is not installed; pip install 'modeseek[cluster]'"
        ) from error
    for name in LOGGERS:
        logging.getLogger(name).setLevel(logging.CRITICAL)  # what matters is raised
    if scheduler is not None:
        try:
            client = distributed.Client(scheduler, timeout=PATIENCE, set_as_default=False)
        except (OSError, ValueError) as error:
            raise InvalidInput(f"no scheduler answers at {scheduler}; start it first") from error
        with client:
            yield client
        return
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": DEATHS} | UNWATCHED),
        distributed.LocalCluster(
            n_workers=workers,
            threads_per_worker=threads,
            memory_limit=None,  # Dask would kill a worker that takes more than its share
            dashboard_address=None,
            scheduler_kwargs={"dashboard_address": ":0"},  # of a page that is off; it takes a port
            silence_logs="CRITICAL",
        ) as started,
        distributed.Client(started, set_as_default=False) as client,
    ):
        client.wait_for_workers(workers)
        yield client


def fill(
    client: "Client", arguments: Mapping[str, Any], chunks: Sequence[Chunk]
) -> Generator[tuple[int, int], None, None]:
    """Let workers do chunks; for each stretch, yield how many runs it has and how many gave NaN.

    Args:
      client: A client of a cluster; if there is no worker yet, this waits for the first.
      arguments: What `bandits.stored_sweep` was called with, without devices.
      chunks: The chunks, in the order of the store.

    Raises InvalidInput if workers die again and again, or the scheduler dies.
    """
    import cloudpickle
    import distributed

    client.wait_for_workers(1)
    threads = max(1, sum(client.nthreads().values()))  # the first may have died since
    settings = {name: getattr(jax.config, name) for name in (*stored.PRECISION, *CACHE)}
    sent = cloudpickle.dumps((settings, cloudpickle.dumps(dict(arguments))))
    # A task gives out the sweep, because Dask can do it again where a worker dies that holds it.
    told = client.submit(bytes, sent, pure=False)
    futures = client.map(_fill_stretch, _cut(chunks, threads), told=told, pure=False)
    try:
        for future in distributed.as_completed(futures, loop=client.loop):
            yield future.result()
    except distributed.KilledWorker as error:
        raise InvalidInput(
            f"{error.allowed_failures + 1} workers died one after another over the same runs; "
            "where memory is short, choose fewer workers; what is done is kept"
        ) from error
    except distributed.CancelledError as error:
        raise InvalidInput(
            "the scheduler is gone; what is done is kept, the same command goes on with it"
        ) from error
    finally:
        with contextlib.suppress(Exception):  # without a scheduler there is nothing to cancel
            client.cancel(futures)


def _cut(chunks: Sequence[Chunk], threads: int) -> list[Sequence[Chunk]]:
    """Return stretches of chunks, ordered so that each thread goes on where it was.

    Threads take turns. Each compiles few programs, because its stretches follow one another.
    """
    count = min(len(chunks), STRETCHES * threads)
    stretches = [
        chunks[len(chunks) * i // count : len(chunks) * (i + 1) // count] for i in range(count)
    ]
    each = -(-count // threads)
    return [stretch for i in range(each) for stretch in stretches[i::each]]


def _fill_stretch(chunks: Sequence[Chunk], told: bytes) -> tuple[int, int]:
    """Do the chunks of a stretch that are not in the store; return its runs, and those with NaN."""
    import distributed

    with _one_at_a_time:
        if told not in _open:
            _open.clear()
            _open[told] = _unpack(told, distributed.get_worker().state.nthreads)
        sweep, held = _open[told]
        diverged, missing = 0, []
        for chunk in chunks:
            values = held.read(chunk)  # of a worker that died, perhaps
            if values is None:
                missing.append(chunk)
            else:
                diverged += stored.count_nan(values)
        diverged += sum(broken for _, broken in sweep.fill(held, missing))
    return sum(chunk.last - chunk.first for chunk in chunks), diverged


def _unpack(told: bytes, threads: int) -> tuple[stored.StoredSweep, Store]:
    """Return the sweep that the client made, on this worker's devices, and its store."""
    settings, arguments = pickle.loads(told)
    # JAX reads these once, when it looks for devices, which it does for the first array.
    os.environ.setdefault("NPROC", str(threads))
    avoid_ynnpack()
    for name, value in settings.items():
        jax.config.update(name, value)
    given = pickle.loads(arguments)
    path = Path(given["path"])
    if not path.exists():
        raise InvalidInput(
            f"{path} is not there on {platform.node()}; choose a folder that all workers share"
        )
    on_cpu = jax.default_backend() == "cpu"
    sweep = stored.stored_sweep(**given, devices=lanes(threads if on_cpu else None))
    return sweep, store.open_store(path, sweep.layout, sweep.identity)
