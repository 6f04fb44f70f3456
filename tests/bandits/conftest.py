"""Children that start JAX anew, for sweeps on many devices and in many processes, and killed."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

SERVER = Path(__file__).parent / "sweeps" / "forking.py"


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """Asks the process that forks children."""
    cache = tmp_path_factory.mktemp("cache")
    unset = ("XLA_FLAGS", "FORCE_COLOR", "JAX_NUM_CPU_DEVICES")
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    environment |= {"JAX_COMPILATION_CACHE_DIR": str(cache), "COLUMNS": "200"}
    environment |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", str(SERVER)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        text=True,
    )

    def ask(*request):
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
        return json.loads(process.stdout.readline())

    with process:  # its pipes are closed, and it ends with them
        yield ask


@pytest.fixture
def start(server, tmp_path):
    """Start a child with code to execute and perhaps a command line; its process id."""
    return lambda code="", argv=None: server("start", code, argv, str(tmp_path))


@pytest.fixture
def wait(server, tmp_path):
    """What a child ended with: exit code (negative: a signal), stdout and stderr."""
    return lambda pid, seconds=240: server("wait", pid, str(tmp_path), seconds)


@pytest.fixture
def do(start, wait):
    """Start a child and wait for it."""
    return lambda code="", argv=None, seconds=240: wait(start(code, argv), seconds)


@pytest.fixture(scope="session")
def wait_for():
    """Wait until a condition holds."""

    def wait_for(condition, seconds=240):
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.01)

    return wait_for


@pytest.fixture(scope="session")
def count_chunks():
    """Count the files of a result in a store: one a chunk that is done."""

    def count(path, name):
        files = (path / name / "c").rglob("*")
        return sum(file.is_file() and file.suffix != ".partial" for file in files)

    return count


@pytest.fixture(scope="session")
def tree():
    """Every file of a store, with its bytes."""

    def read(folder):
        return {
            str(path.relative_to(folder)): path.read_bytes()
            for path in sorted(Path(folder).rglob("*"))
            if path.is_file()
        }

    return read
