"""Several processes, on one machine or many, that share a sweep.

`jax.distributed` says how many there are and which one this is, from flags or from what Slurm or
Open MPI tell; after that they need nothing of each other, so that none dies with another.
"""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import jax

from bandits.sweeps.stored import ALONE, Share
from theory.checks import InvalidInput

LAUNCHERS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")
"""Environment variables that say how many processes a launcher has started."""

ORTE = "OMPI_MCA_orte_hnp_uri"
"""What JAX knows Open MPI by; only versions before 5 set it."""


@contextmanager
def joined(
    coordinator: str | None = None, processes: int | None = None, process: int | None = None
) -> Iterator[tuple[Share, Callable[[], None]]]:
    """The share of this process, and a barrier that all of them pass once, together.

    To be called before JAX computes anything. Without flags and launcher this process is alone.

    Args:
      coordinator: address of process 0, ``host:port``.
      processes: how many there are.
      process: the number of this one, from 0.

    Raises InvalidInput for some but not all of the flags, a number out of range, or others that do
    not come.
    """
    flags = {"coordinator": coordinator, "processes": processes, "process": process}
    missing = [name for name, value in flags.items() if value is None]
    launched = any(os.environ.get(name, "1") not in ("", "0", "1") for name in LAUNCHERS)
    if len(missing) == len(flags) and not launched:
        yield ALONE, lambda: None
        return
    if missing and len(missing) < len(flags):
        raise InvalidInput(
            f"{missing[0]} is missing; give coordinator, processes and process together, or none"
        )
    if process is not None and processes is not None and not 0 <= process < processes:
        raise InvalidInput(
            f"process is {process}; with {processes} processes it goes from 0 to {processes - 1}"
        )
    if coordinator is not None:
        _, _, port = coordinator.rpartition(":")
        if not re.fullmatch(r"[^\s:].*:\d+", coordinator) or not 0 < int(port) < 2**16:
            raise InvalidInput(f"coordinator is {coordinator!r}; give HOST:PORT of process 0")
    local = None
    if coordinator is None and "OMPI_COMM_WORLD_SIZE" not in os.environ:
        _tell_steps_apart()
    elif coordinator is None and ORTE not in os.environ:
        coordinator, processes, process, local = _told_by_open_mpi()
    try:
        jax.distributed.initialize(coordinator, processes, process, local)
    except (RuntimeError, ValueError) as error:
        raise InvalidInput(f"the processes did not find each other: {error}") from error
    left = False

    def leave() -> None:
        # All wait here for all: a barrier, after which the death of one does not end the others.
        nonlocal left
        if not left:
            left = True
            jax.distributed.shutdown()

    try:
        yield Share(jax.process_index(), jax.process_count()), leave
    finally:
        leave()


def _tell_steps_apart() -> None:
    """Let steps of a Slurm job that run at once meet at different ports.

    JAX makes the port of the number of the job only, and they would get into each other's group.
    """
    job, step = (os.environ.get(name, "") for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    if job.isdecimal() and step.isdecimal():
        os.environ.setdefault("JAX_COORDINATOR_PORT", str(_port(int(job) + 61 * int(step))))


def _told_by_open_mpi() -> tuple[str, int, int, list[int]]:
    """Address of process 0, how many there are, which this is, and its device.

    From Open MPI 5 on, which JAX does not know.
    """
    # prterun-HOST-PID@JOB: mpirun itself. Process 0 is taken to run on the same machine, as JAX
    # takes it of older versions.
    name = re.fullmatch(r"\w+-(.+)-(\d+)@\d+", os.environ.get("PMIX_NAMESPACE", ""))
    if name is None:
        raise InvalidInput(
            "Open MPI does not say where process 0 is; give coordinator, processes and process"
        )
    size, rank, local = (
        int(os.environ[f"OMPI_COMM_WORLD_{what}"]) for what in ("SIZE", "RANK", "LOCAL_RANK")
    )
    return f"{name[1]}:{_port(int(name[2]))}", size, rank, [local]


def _port(number: int) -> int:
    """Where JAX too has processes meet: one of the last 4,096."""
    return 2**16 - 2**12 + number % 2**12
