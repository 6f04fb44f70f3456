"""A bar on the terminal, with the time that is left."""

import rich.progress
from rich.console import Console


class Progress:
    """A bar on the terminal that appears only for work that takes over a second."""

    def __init__(self, total: int, shown: bool | None):
        console = Console(stderr=True)
        self._bar = rich.progress.Progress(
            rich.progress.TextColumn("{task.completed:,.0f} of {task.total:,.0f} runs"),
            rich.progress.BarColumn(),
            rich.progress.TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not (console.is_terminal if shown is None else shown),
        )
        self._task = self._bar.add_task("sweep", total=total)
        self._patience = 0.0 if shown else 1.0
        self._started = False

    def __enter__(self) -> "Progress":
        self._clock = self._bar.get_time()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def advance(self, runs: int) -> None:
        """Count runs that are done; show the bar once patience is over."""
        if not self._started and self._bar.get_time() - self._clock >= self._patience:
            self._bar.start()
            self._started = True
        self._bar.advance(self._task, runs)
