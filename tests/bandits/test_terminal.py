"""Streams that never fail, signals that let a command clean up, and tables that cut no name."""

import errno
import io
import os
import signal
import sys

import pytest
from rich.console import Console
from rich.table import Table

from bandits import terminal
from bandits.terminal import Output, Stopped, stoppable


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_what_the_encoding_lacks_is_replaced(encoding):
    written = io.BytesIO()
    out = Output(io.TextIOWrapper(written, encoding, errors="strict"))
    out.write("a − b\n")
    out.flush()
    assert written.getvalue() == b"a ? b\n"
    assert (out.error, out.encoding) == (None, encoding)


class Full(io.StringIO):
    def write(self, text):
        super().write(text)
        raise OSError(errno.ENOSPC, "no space")


def test_a_stream_that_fails_is_left_alone_and_its_error_kept():
    full = Full()
    out = Output(full)
    assert out.write("one") == 3
    out.write("two")
    out.flush()
    assert full.getvalue() == "one"
    assert out.error.errno == errno.ENOSPC


def test_a_stream_that_is_closed_has_an_error_once_it_is_needed(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    with terminal.safe_streams() as out:
        assert out.error is None
        print("one")
        assert out.error.errno == errno.EBADF
    assert sys.stdout is None


def test_the_first_signal_stops_and_a_second_one_does_not_stop_the_cleaning():
    cleaned = []

    def work():
        with stoppable():
            try:
                os.kill(os.getpid(), signal.SIGTERM)
            finally:
                os.kill(os.getpid(), signal.SIGTERM)
                cleaned.append(True)

    with pytest.raises(Stopped) as stopped:
        work()
    assert stopped.value.number == signal.SIGTERM
    assert cleaned == [True]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_signal_that_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stoppable():
            os.kill(os.getpid(), signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_an_interrupt_is_found_behind_what_it_led_to():
    error = ValueError()
    error.__context__ = OSError()
    assert terminal.interrupt_behind(error) is None
    error.__context__.__context__ = stopped = Stopped(15)
    assert terminal.interrupt_behind(error) is stopped


NAME, WORD, TEXT = "a_name_of_twenty_char", "arXiv:2406.01462", "some words that can be broken up"


@pytest.mark.parametrize("width", [30, 40, 60, 61, 70, 80, 200])
def test_a_table_cuts_nothing(width):
    table = Table("name", "word", "text", title="A title", caption="a caption")
    table.add_row("[bold]family[/bold]", "", "")
    table.add_row(NAME, WORD, TEXT)
    table.columns[0].no_wrap = True
    table.columns[1].min_width = len(WORD)
    file = io.StringIO()
    terminal.show(Console(file=file, width=width), table)
    out = file.getvalue()
    for words in (NAME, WORD, "A title", "a caption", "family", *TEXT.split()):
        assert words in out
    fits = width >= len(NAME) + len(WORD) + terminal.LEAST_WIDTH + 3 * 3 + 1
    assert ("┃" in out) == fits
    if fits:
        assert max(map(len, out.splitlines())) <= width
