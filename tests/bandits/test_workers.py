"""Work side by side: the same results, and nothing that goes on when it is over."""

import contextlib
import functools
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import warnings

import jax
import numpy as np
import pytest

from bandits import workers
from bandits.workers import MOST_PROCESSES, processes_for, side_by_side
from theory import checks
from theory.checks import InvalidInput

# What is given to other processes must be a function of a module that they can import.
NOTHING = os.getpid

SLEEPERS = """
import os, signal, sys, time
from bandits.terminal import stoppable
from bandits.workers import side_by_side

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    pieces = [float(word) for word in sys.argv[1:]]
    try:
        with stoppable(), side_by_side(time.sleep, pieces, 2, os.getpid) as done:
            if pieces[0] == 0:
                next(done)
            print("begun", flush=True)
            next(done)
    except KeyboardInterrupt:
        print("ended", flush=True)
"""


@pytest.fixture
def sleepers(tmp_path):
    """Start a parent of two processes that sleep, and wait until it says that they have begun."""
    script = tmp_path / "sleepers.py"
    script.write_text(SLEEPERS)
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    started = []

    def start(*seconds):
        command = [sys.executable, script, *map(str, seconds)]
        parent = subprocess.Popen(command, **streams, start_new_session=True)
        started.append(parent)
        assert parent.stdout.readline() == "begun\n"
        return parent

    yield start
    for parent in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(parent.pid, signal.SIGKILL)
        parent.communicate()


def everything(work, pieces, processes, prepare=NOTHING):
    with side_by_side(work, pieces, processes, prepare) as done:
        return list(done)


def test_several_processes_give_what_one_gives():
    pieces = [4.0, 1.0, 9.0, 16.0, 25.0]
    alone = everything(math.sqrt, pieces, 1)
    assert alone == [(piece, math.sqrt(piece)) for piece in pieces]
    assert sorted(everything(math.sqrt, pieces, 2)) == sorted(alone)


def test_one_process_or_one_piece_stays_here():
    here = os.getpid()
    assert everything(lambda _: os.getpid(), [1, 2], 1) == [(1, here), (2, here)]
    assert everything(lambda _: os.getpid(), [1], 4) == [(1, here)]
    assert everything(lambda _: os.getpid(), [], 4) == []


def all_end():
    """Whether no process is left, soon."""
    until = time.monotonic() + 60
    while multiprocessing.active_children() and time.monotonic() < until:
        time.sleep(0.01)
    return not multiprocessing.active_children()


REQUIRE = functools.partial(checks.require_positive, "size")
# JAX's errors of tracing are made of a tracer, and cannot be made again.
TRACE = functools.partial(jax.eval_shape, np.asarray)
DIED = r"^one of 2 processes died; where memory is short"


@pytest.mark.parametrize(
    ("work", "pieces", "prepare", "error", "said"),
    [
        (REQUIRE, [1.0, -1.0], NOTHING, InvalidInput, r"^size is -1;"),
        (TRACE, [1.0, 2.0], NOTHING, RuntimeError, r"^TracerArrayConversionError: The numpy"),
        (os._exit, [1, 1], NOTHING, InvalidInput, DIED),
        (abs, [1, 1], os.abort, InvalidInput, DIED),
    ],
    ids=["refusal", "error that cannot be sent", "death at work", "death while it is prepared"],
)
def test_what_ends_a_process_is_said_and_ends_the_others(work, pieces, prepare, error, said):
    with pytest.raises(error, match=said):
        everything(work, pieces, 2, prepare)
    assert all_end()


def test_what_a_process_warns_of_is_said_here():
    with pytest.warns(UserWarning, match="odd") as caught:
        everything(warnings.warn, ["this is odd", "so odd"], 2)
    assert sorted(str(one.message) for one in caught) == ["so odd", "this is odd"]


def test_an_exception_ends_what_is_under_way():
    def interrupted():
        with side_by_side(time.sleep, [0.0, 600.0, 600.0, 600.0], 2, NOTHING) as done:
            assert next(done) == (0.0, None)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert all_end()


def test_no_process_outlives_a_parent_that_is_killed(sleepers):
    parent = sleepers(0, 600, 600)
    parent.kill()
    # The pipes end once nobody holds them any more.
    assert parent.communicate(timeout=120)[0] == ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("first", [0, 600], ids=["at work", "while they start"])
def test_a_signal_comes_to_all_and_nobody_prints_a_traceback(sleepers, first, number):
    parent = sleepers(first, 600, 600)
    os.killpg(parent.pid, number)
    assert parent.communicate(timeout=120) == ("ended\n", "")
    assert parent.returncode == 0


@pytest.mark.parametrize(
    ("platform", "count", "expected"),
    [("cpu", 1, 1), ("cpu", 3, 3), ("cpu", 64, MOST_PROCESSES), ("gpu", 2, 1)],
)
def test_by_default_there_are_as_many_as_cores_and_one_for_a_gpu(
    monkeypatch, platform, count, expected
):
    device = type("Device", (), {"platform": platform})()
    monkeypatch.setattr(workers, "lanes", lambda: [device] * count)
    assert processes_for(None) == expected
    assert processes_for(7) == 7


def test_there_must_be_one_process():
    with pytest.raises(InvalidInput, match=r"^processes is 0; it must be a whole number"):
        processes_for(0)
