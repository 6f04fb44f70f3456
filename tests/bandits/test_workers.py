"""Work side by side: the same results, and nothing that goes on when it is over."""

import functools
import math
import multiprocessing
import os
import subprocess
import sys
import time

import pytest

from bandits import workers
from bandits.workers import MOST_PROCESSES, processes_for, side_by_side
from theory import checks
from theory.checks import InvalidInput

# What is given to other processes must be a function of a module that they can import.
NOTHING = os.getpid

SLEEPERS = """
import os, time
from bandits.workers import side_by_side

if __name__ == "__main__":
    with side_by_side(time.sleep, [0.0, 600.0, 600.0], 2, os.getpid) as done:
        next(done)
        print("begun", flush=True)
        next(done)
"""


def everything(work, pieces, processes):
    with side_by_side(work, pieces, processes, NOTHING) as done:
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


def test_what_a_piece_refuses_is_refused():
    require = functools.partial(checks.require_positive, "size")
    with pytest.raises(InvalidInput, match=r"^size is -1;"):
        everything(require, [1.0, -1.0], 2)
    assert multiprocessing.active_children() == []


def test_the_death_of_a_process_is_said_in_a_sentence():
    with pytest.raises(InvalidInput, match=r"^one of 2 processes died; where memory is short"):
        everything(os._exit, [1, 1], 2)


def test_leaving_early_stops_what_is_under_way():
    def interrupted():
        with side_by_side(time.sleep, [0.0, 600.0, 600.0, 600.0], 2, NOTHING) as done:
            assert next(done) == (0.0, None)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert multiprocessing.active_children() == []


def test_no_process_outlives_a_parent_that_is_killed(tmp_path):
    script = tmp_path / "sleepers.py"
    script.write_text(SLEEPERS)
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout.readline() == "begun\n"
        parent.kill()
        # The pipe ends once nobody holds it any more.
        assert parent.communicate(timeout=120) == ("", None)


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
