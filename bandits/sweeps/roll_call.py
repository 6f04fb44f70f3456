"""A roll call before the processes of a job join: what keeps them apart is said in a sentence.

JAX, left alone, aborts the program after five minutes where a process does not come, or where the
address that all are told is not that of process 0.
"""

import contextlib
import re
import socket
import time
from collections.abc import Set

from theory.checks import InvalidInput

PATIENCE = 300.0
"""Seconds until those who came give up; JAX waits as long."""

PAUSE = 0.2
"""Seconds between two tries to reach process 0."""

MOMENT = 1.0
"""Seconds in which who has been reached must speak."""

WORD = "modeseek"
"""What a line of a roll call begins with, and of nothing else."""


def roll_call(address: str, processes: int, process: int, patience: float = PATIENCE) -> None:
    """Return once all processes have come to the address, where process 0 waits for them.

    Args:
      address: HOST:PORT of process 0.
      processes: how many there are.
      process: the number of this one, from 0.
      patience: seconds until those who came give up.

    Raises InvalidInput, in each process that came, for one that does not come in time, that has the
    number of another or counts the processes otherwise, and for an address that is not of process 0
    or is taken.
    """
    deadline = time.monotonic() + patience
    if process > 0:
        problem = _report(address, processes, process, deadline)
    else:
        problem = _call(address, processes, deadline)
    if problem:
        raise InvalidInput(problem)


def _call(address: str, processes: int, deadline: float) -> str:
    """The part of process 0, which reports to itself too: it must be reached where others try."""
    host, port = _split(address)
    with contextlib.ExitStack() as held:
        try:
            server = held.enter_context(_listen(port))
        except OSError as error:
            return f"process 0 cannot listen at port {port}: {error.strerror}; choose another port"
        try:
            own = held.enter_context(socket.create_connection((host, port), MOMENT))
        except OSError as error:
            return (
                f"process 0 does not reach itself at {address} ({error.strerror or error}); give "
                "HOST:PORT of its machine as coordinator"
            )
        _say(own, f"0 {processes}")
        came: list[socket.socket] = []
        numbers: set[int] = set()
        problem = ""
        while not problem and len(numbers) < processes:
            server.settimeout(max(deadline - time.monotonic(), 1e-3))
            try:
                connection = held.enter_context(server.accept()[0])
            except TimeoutError:
                problem = _missing(numbers, processes, address)
                break
            connection.settimeout(MOMENT)
            told = re.fullmatch(r"(\d+) (\d+)", _hear(connection) or "")
            if told is None:  # none of us
                connection.close()
                continue
            number, count = map(int, told.groups())
            if count != processes:
                problem = f"process {number} counts {count} processes, process 0 {processes}"
            elif number in numbers:
                problem = f"two processes have the number {number}; give each its own"
            numbers.add(number)
            came.append(connection)
        for connection in came:
            _say(connection, problem)
    return problem


def _missing(numbers: Set[int], processes: int, address: str) -> str:
    missing = [str(number) for number in range(processes) if number not in numbers]
    some = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
    return f"process {some} of {processes} did not come to {address}; start all of them"


def _report(address: str, processes: int, process: int, deadline: float) -> str:
    """The part of every other process: what process 0 answers once all are there."""
    host, port = _split(address)
    reason = ""
    while time.monotonic() < deadline:
        try:
            with socket.create_connection((host, port), MOMENT) as connection:
                _say(connection, f"{process} {processes}")
                connection.settimeout(max(deadline - time.monotonic(), 0) + MOMENT)
                answer = _hear(connection)
        except OSError as error:
            reason, answer = f" ({error.strerror or error})", None
        if answer is not None:
            return answer
        time.sleep(PAUSE)
    return f"process 0 does not answer at {address}{reason}; start it, or give its HOST:PORT"


def _listen(port: int) -> socket.socket:
    """On all addresses of this machine, as JAX will."""
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", port))


def _say(connection: socket.socket, message: str) -> None:
    """To one who may have gone."""
    with contextlib.suppress(OSError):
        connection.sendall(f"{WORD} {message}\n".encode())


def _hear(connection: socket.socket) -> str | None:
    """A line of a roll call, without its word; None if nothing comes, or something else."""
    try:
        with connection.makefile(encoding="utf-8", errors="replace") as lines:
            line = lines.readline(1000)
    except OSError:
        return None
    word, _, message = line.rstrip("\n").partition(" ")
    return message if word == WORD else None


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)
