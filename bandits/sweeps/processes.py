"""Several processes, on one machine or many, that share a sweep.

`jax.distributed` says how many there are and which one this is, from flags or from what Slurm or
Open MPI tell; after that they need nothing of each other, so that none dies with another.
"""

import contextlib
import os
import re
import secrets
import socket
import time
from collections.abc import Callable, Iterator

import jax

from bandits.sweeps.stored import ALONE, Share
from theory.checks import InvalidInput

LAUNCHERS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")
"""Environment variables that say how many processes a launcher has started."""

ORTE = "OMPI_MCA_orte_hnp_uri"
"""Where mpirun is; only versions of Open MPI before 5 set it."""


ADDRESS, PORT, BOUND = (f"JAX_COORDINATOR_{name}" for name in ("ADDRESS", "PORT", "BIND_ADDRESS"))
"""Environment variables by which a user tells JAX where processes meet."""

PATIENCE = 300.0
"""Seconds to wait for process 0, as long as JAX waits for the others."""

RESOLVING = 20.0
"""Seconds in which the name of a machine that has just started becomes known."""

MOMENT = 1.0
"""Seconds for a connection to be made, or to speak."""

PAUSE = 0.2
"""Seconds between two tries."""


@contextlib.contextmanager
def joined(
    coordinator: str | None = None, processes: int | None = None, process: int | None = None
) -> Iterator[tuple[Share, Callable[[], None]]]:
    """The share of this process, and a barrier that all of them pass once, together.

    To be called before JAX computes anything. Without flags and launcher this process is alone.

    Args:
      coordinator: address of process 0, ``host:port``.
      processes: how many there are.
      process: the number of this one, from 0.

    Raises InvalidInput for some but not all of the flags (under a launcher the coordinator alone
    will do), a number out of range, and where process 0 does not answer at its address, or cannot.
    Where another does not come JAX waits five minutes, and aborts the program.
    """
    flags = {"coordinator": coordinator, "processes": processes, "process": process}
    missing = [name for name, value in flags.items() if value is None]
    launched = any(os.environ.get(name, "1") not in ("", "0", "1") for name in LAUNCHERS)
    if len(missing) == len(flags) and not launched:
        yield ALONE, lambda: None
        return
    told = launched and "processes" in missing and "process" in missing
    if missing and not told:
        raise InvalidInput(
            f"{missing[0]} is missing; give coordinator, processes and process together, or none"
        )
    if process is not None and processes is not None and not 0 <= process < processes:
        raise InvalidInput(
            f"process is {process}; with {processes} processes it goes from 0 to {processes - 1}"
        )
    local = None
    if told and "OMPI_COMM_WORLD_SIZE" in os.environ:
        coordinator = coordinator or os.environ.get(ADDRESS) or _address_of_mpirun()
        processes, process, local = _told_by_open_mpi()
    elif told:
        _tell_steps_apart()
    if coordinator is not None:
        host, port = _split(coordinator)
        if process == 0 and BOUND not in os.environ:
            _require_own(host, port)
        elif process:
            _await_process_0(host, port)
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


def _told_by_open_mpi() -> tuple[int, int, list[int]]:
    """How many processes there are, which this is, and its device."""
    size, rank, local = (
        int(os.environ[f"OMPI_COMM_WORLD_{what}"]) for what in ("SIZE", "RANK", "LOCAL_RANK")
    )
    return size, rank, [local]


def _address_of_mpirun() -> str:
    """Where process 0 is taken to be: on the machine of mpirun, as JAX takes it.

    JAX knows versions before 5 only.
    """
    before = re.search(r"^(\d+)\..*?(?:tcp://([^,:]+)|tcp6://\[([^],]+))", os.environ.get(ORTE, ""))
    since = re.fullmatch(r"\w+-(.+)-(\d+)@\d+", os.environ.get("PMIX_NAMESPACE", ""))
    if before is not None:  # JOB.NUMBER;tcp://ADDRESS,ADDRESS:PORT
        number, host = int(before[1]) >> 12, before[2] or f"[{before[3]}]"
    elif since is not None:  # prterun-HOST-PID@JOB
        number, host = int(since[2]), since[1]
    else:
        raise InvalidInput(
            "Open MPI does not say where process 0 is; give coordinator, processes and process"
        )
    return f"{host}:{os.environ.get(PORT) or _port(number)}"


def _split(address: str) -> tuple[str, int]:
    """Host and port; InvalidInput where it has none."""
    parts = re.fullmatch(r"(?:\[([^]\s]+)\]|([^][\s:]+)):(\d{1,5})", address)
    try:
        host = "" if parts is None else parts[1] or parts[2]
        host.encode("idna")
    except UnicodeError:
        host = ""
    if parts is None or not host or not 0 < int(parts[3]) < 2**16:
        raise InvalidInput(f"coordinator is {address!r}; give HOST:PORT of process 0")
    return host, int(parts[3])


def _require_own(host: str, port: int) -> None:
    """Refuse an address at which process 0 does not find itself: nor would the others."""
    try:
        # On all addresses, as JAX will.
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        server = socket.create_server(("", port), family=family, dualstack_ipv6=both)
    except OSError as error:
        raise InvalidInput(
            f"process 0 cannot listen at port {port}: {_reason(error)}; choose another port"
        ) from error
    word = secrets.token_bytes(16)
    with server:
        server.settimeout(MOMENT)
        try:
            with _reach(host, port) as own:
                own.sendall(word)
                heard = b""
                while heard != word:
                    connection, _ = server.accept()
                    # The others come here too, and say nothing.
                    with connection, contextlib.suppress(OSError):
                        connection.settimeout(MOMENT)
                        heard = connection.recv(len(word))
        except OSError as error:
            raise InvalidInput(
                f"process 0 does not reach itself at {host}:{port} ({_reason(error)}); give "
                "HOST:PORT of its machine as coordinator"
            ) from error


def _await_process_0(host: str, port: int) -> None:
    """Return once something answers at the address of process 0."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            with socket.create_connection((host, port), MOMENT) as connection:
                # A port of one's own machine at which nobody listens may be given to this end.
                if connection.getsockname() != connection.getpeername():
                    return
                reason = "nobody listens"
        except OSError as error:
            reason = _reason(error)
        if time.monotonic() > deadline:
            raise InvalidInput(
                f"process 0 does not answer at {host}:{port} ({reason}); start it, or give its "
                "HOST:PORT as coordinator"
            )
        time.sleep(PAUSE)


def _reach(host: str, port: int) -> socket.socket:
    """A connection to this machine, whose name may not be known at once."""
    deadline = time.monotonic() + RESOLVING
    while True:
        try:
            return socket.create_connection((host, port), MOMENT)
        except socket.gaierror:
            if time.monotonic() > deadline:
                raise
        time.sleep(PAUSE)


def _reason(error: OSError) -> str:
    if isinstance(error, socket.gaierror) or error.errno is None:
        return error.strerror or str(error)
    return os.strerror(error.errno)


def _port(number: int) -> int:
    """Where JAX too has processes meet: one of the last 4,096."""
    return 2**16 - 2**12 + number % 2**12
