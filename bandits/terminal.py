"""Keep a command's streams safe, let signals end it cleanly, and print its tables."""

import contextlib
import errno
import io
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any, TextIO, cast

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

SIGNALS = {
    getattr(signal, name): word
    for name, word in (("SIGINT", "interrupted"), ("SIGTERM", "terminated"), ("SIGHUP", "hung up"))
    if hasattr(signal, name)  # Windows knows no SIGHUP
}
"""Signals that ask a command to end, and what it says then."""

LEAST_WIDTH = 12
"""Least number of characters of a column whose words may be broken."""


class Stopped(KeyboardInterrupt):
    """Say that a signal other than Ctrl-C's asks the command to end.

    Attributes:
      number: The number of the signal.
    """

    def __init__(self, number: int):
        super().__init__()
        self.number = number


class Output:
    """Write to a text stream without ever failing.

    This replaces what the encoding lacks. After an error it drops what is written, and the work
    goes on: its files may matter more than what it prints.

    Attributes:
      error: The first error, or None.
    """

    def __init__(self, stream: TextIO | None):
        # Python has no stream where the shell closed it.
        self._stream = _Closed() if stream is None else stream
        self.error: OSError | None = None
        with contextlib.suppress(AttributeError):
            cast(io.TextIOWrapper, self._stream).reconfigure(errors="replace")

    def write(self, text: str) -> int:
        """Write a text, or drop it after an error."""
        if self.error is None:
            with self._errors_kept():
                self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush what was written."""
        if self.error is None:
            with self._errors_kept():
                self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @contextlib.contextmanager
    def _errors_kept(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.error = error
            # Python writes what is still buffered when it ends, and would fail again.
            with contextlib.suppress(OSError), open(os.devnull, "w") as null:
                os.dup2(null.fileno(), self._stream.fileno())


class _Closed(io.StringIO):
    def write(self, text: str) -> int:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))


@contextlib.contextmanager
def safe_streams() -> Iterator[Output]:
    """Let stdout and stderr be an `Output` each; yield stdout."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            # The next file that is opened would take its number, and XLA would log into it.
            os.open(os.devnull, os.O_RDWR)
    out, err = Output(sys.stdout), Output(sys.stderr)
    with (
        contextlib.redirect_stdout(cast(TextIO, out)),
        contextlib.redirect_stderr(cast(TextIO, err)),
    ):
        yield out
        err.flush()


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Let the signals that would kill this process raise `Stopped`, so that it cleans up.

    Ignored signals stay ignored, as `nohup` wants it. Only the first signal counts: a second one
    would stop the cleaning.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        for other in taken:
            signal.signal(other, signal.SIG_IGN)
        raise Stopped(number)

    here = threading.current_thread() is threading.main_thread()  # others may not take signals
    taken = [n for n in SIGNALS if here and signal.getsignal(n) is signal.SIG_DFL]
    try:
        for number in taken:
            signal.signal(number, stop)
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


def interrupt_behind(error: BaseException | None) -> KeyboardInterrupt | None:
    """Return the interrupt behind an error, if any: an interrupted library may fail in cleaning."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error


def show(console: Console, table: Table) -> None:
    """Print a table; if the console is too narrow for it, print its cells one below the other.

    Args:
      console: Where to print.
      table: A table of texts. Its columns with ``no_wrap`` are never cut. Words of the others may
        be broken, in columns of at least `LEAST_WIDTH` characters, or of their ``min_width``.
    """
    if _fit(console, table):
        console.print(table)
        return
    lines = [table.title]
    for row in zip(*(column.cells for column in table.columns), strict=True):
        filled = [(c.header, cell) for c, cell in zip(table.columns, row, strict=True) if cell]
        alone = len(filled) == 1
        lines += ["", *(str(cell) if alone else f"{header}: {cell}" for header, cell in filled)]
    for line in (*lines, table.caption):
        if line is not None:
            console.print(line, soft_wrap=True)


def _fit(console: Console, table: Table) -> bool:
    """Set the widths of the columns, and return whether they fit.

    Rich would shrink the widest column first, even to less than a word that others could spare.
    """
    endless = console.options.update_width(10**6)
    wanted = []
    for column in table.columns:
        sizes = [Measurement.get(console, endless, cell) for cell in (column.header, *column.cells)]
        most, word = (max(size[i] for size in sizes) for i in (1, 0))
        column.overflow = "fold"
        least = max(min(word, LEAST_WIDTH), column.min_width or 0)
        column.width = most if column.no_wrap else min(least, most)
        wanted.append((most - column.width, column))
    # A frame and the space on both sides of a cell take three characters.
    spare = console.width - 1 - sum((column.width or 0) + 3 for column in table.columns)
    for i, (more, column) in enumerate(sorted(wanted, key=lambda pair: pair[0])):
        extra = min(more, max(spare, 0) // (len(wanted) - i))
        column.width = (column.width or 0) + extra
        spare -= extra
    return spare >= 0
