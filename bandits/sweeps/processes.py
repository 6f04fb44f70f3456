"""Several processes, on one machine or many, that share a sweep.

`jax.distributed` says how many there are and which one this is, from flags or from what Slurm or
Open MPI tell; after that they need nothing of each other, so that none dies with another.
"""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import jax

from bandits.sweeps.roll_call import roll_call
from bandits.sweeps.stored import ALONE, Share
from theory.checks import InvalidInput

LAUNCHERS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")
"""Environment variables that say how many processes a launcher has started."""

ORTE = "OMPI_MCA_orte_hnp_uri"
"""Where mpirun is; only versions of Open MPI before 5 set it."""


PORT = "JAX_COORDINATOR_PORT"
"""Where processes meet, for JAX under a launcher; a user may set it."""


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
    not come. Under Slurm, which starts all or none, JAX aborts the program in the last case.
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
    if coordinator is None and "OMPI_COMM_WORLD_SIZE" in os.environ:
        coordinator, processes, process, local = _told_by_open_mpi()
    if coordinator is not None and processes is not None and process is not None:
        roll_call(coordinator, processes, process)
    else:
        _tell_steps_apart()
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
        os.environ.setdefault(PORT, str(_port(int(job) + 61 * int(step))))


def _told_by_open_mpi() -> tuple[str, int, int, list[int]]:
    """Address of process 0, how many there are, which this is, and its device.

    JAX knows versions before 5 only. It too takes process 0 to run where mpirun does.
    """
    before = re.match(r"(\d+)\.\d+;(?:tcp://([^,:]+)|tcp6://\[([^],]+))", os.environ.get(ORTE, ""))
    since = re.fullmatch(r"\w+-(.+)-(\d+)@\d+", os.environ.get("PMIX_NAMESPACE", ""))
    if before is not None:  # JOB.NUMBER;tcp://ADDRESS,ADDRESS:PORT
        number, host = int(before[1]) >> 12, before[2] or f"[{before[3]}]"
    elif since is not None:  # prterun-HOST-PID@JOB
        number, host = int(since[2]), since[1]
    else:
        raise InvalidInput(
            "Open MPI does not say where process 0 is; give coordinator, processes and process"
        )
    size, rank, local = (
        int(os.environ[f"OMPI_COMM_WORLD_{what}"]) for what in ("SIZE", "RANK", "LOCAL_RANK")
    )
    port = os.environ.get(PORT) or _port(number)
    return f"{host}:{port}", size, rank, [local]


def _port(number: int) -> int:
    """Where JAX too has processes meet: one of the last 4,096."""
    return 2**16 - 2**12 + number % 2**12
