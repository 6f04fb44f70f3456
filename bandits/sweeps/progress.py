"""Show how far a sweep is: a bar on a terminal, a line now and then in a log."""

import datetime
import math
from time import monotonic

import rich.progress
from rich.console import Console

LINES_EVERY = 60.0
"""Seconds between the lines of a log."""


class Progress:
    """Show a bar on a terminal, for work of over a second; elsewhere, if ``logged``, lines.

    A line comes when runs are done, at most once a minute.
    """

    def __init__(self, total: int, shown: bool | None, logged: bool = False):
        console = Console(stderr=True)
        self._bar = rich.progress.Progress(
            rich.progress.TextColumn("{task.completed:,.0f} of {task.total:,.0f} runs"),
            rich.progress.BarColumn(),
            rich.progress.TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not (console.is_terminal if shown is None else shown),
        )
        self._total = total
        self._logged = logged and shown is None and not console.is_terminal
        self._task = self._bar.add_task("sweep", total=total)
        self._patience = 0.0 if shown else 1.0
        self._started = False

    def __enter__(self) -> "Progress":
        self._clock = self._line = monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def advance(self, runs: int) -> None:
        """Count runs that are done; show the bar once patience is over."""
        if not self._started and monotonic() - self._clock >= self._patience:
            self._bar.start()
            self._started = True
        self._bar.advance(self._task, runs)
        if self._logged and monotonic() - self._line >= LINES_EVERY:
            self._line = monotonic()
            done = self._bar.tasks[0].completed
            # Not Rich's estimate: it looks back half a minute, in which no chunk may be done.
            seconds = (self._line - self._clock) * (self._total / done - 1.0)
            left = datetime.timedelta(seconds=math.ceil(seconds))
            line = f"{done:,.0f} of {self._total:,} runs, {left} left"
            self._bar.console.print(line, soft_wrap=True, highlight=False)
