"""A log off the terminal says how far a sweep is, and how long it will take."""

import re

import pytest

from bandits.sweeps import progress
from bandits.sweeps.progress import Progress


@pytest.fixture
def at_once(monkeypatch):
    monkeypatch.setattr(progress, "LINES_EVERY", 0.0)


def advance(shown=None, **options):
    with Progress(4_000, shown, **options) as bar:
        for _ in range(4):
            bar.advance(1_000)


def test_a_log_says_how_far_a_sweep_is_and_at_last_that_nothing_is_left(at_once, capfd):
    advance(logged=True)
    out, lines = capfd.readouterr()
    assert out == ""
    first, *_, last = lines.splitlines()
    assert re.fullmatch(r"1,000 of 4,000 runs, \d+:\d\d:\d\d left", first)
    assert last == "4,000 of 4,000 runs, 0:00:00 left"


def test_what_is_left_is_told_also_where_chunks_take_minutes(monkeypatch, capfd):
    clock = [0.0]
    monkeypatch.setattr(progress, "monotonic", lambda: clock[0])
    with Progress(100, None, logged=True) as bar:
        for _ in range(2):
            clock[0] += 70.0
            bar.advance(1)
    assert capfd.readouterr().err.splitlines() == [
        "1 of 100 runs, 1:55:30 left",
        "2 of 100 runs, 1:54:20 left",
    ]


def test_lines_are_a_while_apart(capfd):
    advance(logged=True)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("options", [{}, {"shown": False, "logged": True}])
def test_what_is_not_logged_is_silent_off_a_terminal(at_once, capfd, options):
    advance(**options)
    assert capfd.readouterr() == ("", "")
