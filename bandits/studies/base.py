"""The contract of a study: settings, run, plot, claims."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from bandits import plotting
from bandits.animation import Frames
from bandits.studies.intervals import Interval

SettingsT = TypeVar("SettingsT")


@dataclass(frozen=True)
class Claim:
    """A sentence of a source, restated, and what was measured of it.

    Attributes:
      study: the name of the study that measured it.
      source: where the sentence stands.
      statement: the sentence, with the quantity that ``effect`` is.
      effect: the measured size.
      low, high: its 95% interval.
      holds: whether the measurement bears the sentence out.
      asserted: whether the project vouches for it, so that its failure is an error.
      note: where it starts to hold or ceases to, if that needs saying.
      table: numbers behind the effect, by row.
    """

    study: str
    source: str
    statement: str
    effect: float
    low: float
    high: float
    holds: bool
    asserted: bool = True
    note: str = ""
    table: Mapping[str, Sequence[float]] | None = None


@dataclass(frozen=True)
class Experiment(Generic[SettingsT]):
    """One figure: what it asks, how to run it, draw it, and judge it.

    Attributes:
      name: as on the command line.
      source: the result it reproduces.
      question: what the figure answers, in one line.
      full: settings of the published scale.
      quick: settings that end within seconds, for a look and for tests.
      run: settings -> labelled results.
      plot: results -> figure.
      judge: results -> claims.
      animate: results -> moving figure, of studies that have one.
    """

    name: str
    source: str
    question: str
    full: SettingsT
    quick: SettingsT
    run: Callable[[SettingsT], xr.Dataset]
    plot: Callable[[xr.Dataset], Figure]
    judge: Callable[[xr.Dataset], list[Claim]]
    animate: Callable[[xr.Dataset], Frames] | None = None

    def measure(self, quick: bool = False) -> xr.Dataset:
        """Run at full or quick scale; the settings travel in the dataset's attributes."""
        settings: Any = self.quick if quick else self.full
        dataset = self.run(settings)
        return dataset.assign_attrs(
            study=self.name,
            scale="quick" if quick else "full",
            source=self.source,
            settings=json.dumps(dataclasses.asdict(settings)),
        )

    def draw(self, dataset: xr.Dataset) -> Figure:
        """The figure of results, in the project's style."""
        with plotting.style():
            return self.plot(dataset)

    def film(self, dataset: xr.Dataset) -> Frames:
        """The moving figure of results, in the project's style."""
        assert self.animate is not None
        with plotting.style():
            return self.animate(dataset)

    def claims(self, dataset: xr.Dataset) -> list[Claim]:
        """What ``judge`` says; the project vouches for full scale only, quick has no power."""
        claims = self.judge(dataset)
        if dataset.attrs.get("scale", "full") == "full":
            return claims
        return [dataclasses.replace(claim, asserted=False) for claim in claims]

    def claim(
        self, statement: str, interval: Interval, holds: bool | np.bool, **details: Any
    ) -> Claim:
        """A claim of this study; ``details`` are Claim's other attributes."""
        return Claim(self.name, self.source, statement, *interval, bool(holds), **details)
