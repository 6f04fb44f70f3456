"""A study: settings, a run, a figure, and claims whose criteria say themselves."""

import dataclasses
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, dataclass_transform

import xarray as xr
from matplotlib.figure import Figure

from bandits import plotting
from bandits.animation import Frames
from bandits.studies.curves import over_seeds
from bandits.studies.intervals import Interval


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


@dataclass_transform(frozen_default=True)
class Study:
    """A question to the sources, measured: subclass it, and list the class in `STUDIES`.

    A subclass is a frozen dataclass: its annotated attributes are the settings, with those of the
    published scale for defaults. Its other attributes and methods:

    Attributes:
      name: as on the command line; of the class's own name.
      source: the result it reproduces.
      question: what the figure answers, in one line.
      quick: settings that end within seconds, for a look and for tests, where they differ.
      animate: results -> moving figure, of studies that have one.
    """

    name: ClassVar[str]
    source: ClassVar[str]
    question: ClassVar[str]
    quick: ClassVar[Mapping[str, Any]]
    animate: ClassVar[Any] = None

    def __init_subclass__(cls) -> None:
        """Make the settings a dataclass."""
        cls.name = re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__).lower()
        dataclass(frozen=True)(cls)

    def run(self) -> xr.Dataset:
        """Return labelled results."""
        raise NotImplementedError

    @classmethod
    def plot(cls, dataset: xr.Dataset) -> Figure:
        """Return the figure of results."""
        raise NotImplementedError

    @classmethod
    def judge(cls, dataset: xr.Dataset) -> list[Claim]:
        """Return the claims that results bear out, or do not."""
        raise NotImplementedError

    @classmethod
    def measure(cls, quick: bool = False) -> xr.Dataset:
        """Run at full or quick scale; the settings travel in the dataset's attributes."""
        study = cls(**(cls.quick if quick else {}))
        return study.run().assign_attrs(
            study=cls.name,
            scale="quick" if quick else "full",
            source=cls.source,
            settings=json.dumps(dataclasses.asdict(study)),  # type: ignore[call-overload]
        )

    @classmethod
    def draw(cls, dataset: xr.Dataset) -> Figure:
        """Return the figure of results, in the project's style."""
        with plotting.style():
            return cls.plot(dataset)

    @classmethod
    def film(cls, dataset: xr.Dataset) -> Frames:
        """Return the moving figure of results, in the project's style."""
        assert cls.animate is not None
        with plotting.style():
            return cls.animate(dataset)

    @classmethod
    def claims(cls, dataset: xr.Dataset) -> list[Claim]:
        """Return the claims; the project vouches for full scale only, quick has no power."""
        is_full = dataset.attrs.get("scale", "full") == "full"
        return [
            dataclasses.replace(
                claim,
                study=cls.name,
                source=cls.source,
                asserted=claim.asserted and is_full,
            )
            for claim in cls.judge(dataset)
        ]


class Criterion(NamedTuple):
    """When a claim holds, and how its statement says so.

    Attributes:
      is_met: what the measured interval is asked.
      says: the words after "holds if", or nothing where a claim is of a difference > 0.
    """

    is_met: Callable[[Interval], bool]
    says: str


def surely_above(bound: float, remark: str = "") -> Criterion:
    """Return the criterion that the whole interval lies above a number.

    Args:
      bound: the number.
      remark: what the number is, for the statement.
    """
    return Criterion(
        lambda interval: interval.low > bound,
        _says("surely above", bound, remark) if bound or remark else "",
    )


def surely_below(bound: float | xr.DataArray, remark: str = "") -> Criterion:
    """Return the criterion that the whole interval lies below a number, or below other samples'.

    Args:
      bound: the number, or the samples, which ``remark`` then names.
      remark: what the number is.
    """
    if isinstance(bound, xr.DataArray):
        least = over_seeds(bound).low
        return Criterion(
            lambda interval: interval.high < least, f"the interval lies below {remark}"
        )
    return Criterion(lambda interval: interval.high < bound, _says("surely below", bound, remark))


def surely_within(bound: float, remark: str = "") -> Criterion:
    """Return the criterion that the whole interval lies within a distance of 0."""
    return Criterion(
        lambda interval: max(abs(interval.low), abs(interval.high)) < bound,
        _says("surely within", bound, remark),
    )


def above(bound: float, remark: str = "") -> Criterion:
    """Return the criterion that the effect itself lies above a number: of what has no chance."""
    return Criterion(lambda interval: interval.effect > bound, _says("above", bound, remark))


def below(bound: float, remark: str = "") -> Criterion:
    """Return the criterion that the effect itself lies below a number: of what has no chance."""
    return Criterion(lambda interval: interval.effect < bound, _says("below", bound, remark))


def _says(relation: str, bound: float, remark: str) -> str:
    return f"{relation} {bound:g}{remark and f', {remark}'}"


POSITIVE = surely_above(0)
"""The criterion of claims of a difference: its interval lies above 0."""

ALWAYS = Criterion(lambda interval: interval.effect == 1, "")
"""The criterion of claims about every case: the share of cases that agree is 1."""


def claim(
    statement: str,
    samples: xr.DataArray | Interval,
    criterion: Criterion = POSITIVE,
    *,
    asserted: bool = True,
    note: str = "",
    table: Mapping[str, Sequence[float]] | None = None,
) -> Claim:
    """Return a claim of a study, which adds its name and source.

    Args:
      statement: the sentence, with the quantity that is measured.
      samples: of that quantity, over ``seed`` and dimensions that are averaged; or its interval.
      criterion: when it holds.
      asserted: whether the project vouches for it at full scale.
      note: where it starts to hold or ceases to.
      table: numbers behind the effect, by row.
    """
    interval = samples if isinstance(samples, Interval) else over_seeds(samples)
    if criterion.says:
        statement = f"{statement} (holds if {criterion.says})"
    holds = bool(criterion.is_met(interval))
    return Claim("", "", statement, *interval, holds, asserted, note, table)
