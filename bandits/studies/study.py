"""Define what a study is: settings, a run, a figure, and claims with criteria in words."""

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
from bandits.studies.intervals import Interval, exact


@dataclass(frozen=True)
class Claim:
    """Hold a sentence of a source, restated, and what was measured of it.

    Attributes:
      study: name of the study that measured it.
      source: where the sentence stands.
      statement: the sentence; it names the quantity that ``effect`` measures.
      effect: the measured size.
      low, high: its 95% interval.
      holds: whether the measurement bears the sentence out.
      asserted: whether the project vouches for the claim; then it is an error if it fails.
      note: where the claim starts or ceases to hold, if that needs saying.
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
    """Put a question to the sources and measure the answer.

    Subclass it, and list the class in `STUDIES`. A subclass becomes a frozen dataclass: its
    annotated attributes are the settings, and their defaults are the published scale. It also has:

    Attributes:
      name: name on the command line; it follows from the name of the class.
      source: the result that the study reproduces.
      question: what the figure answers, in one line.
      quick: settings that differ in a run that ends within seconds, for a look and for tests.
      animate: results -> moving figure; None where there is none.
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
        """Return the claims, each with whether the results bear it out."""
        raise NotImplementedError

    @classmethod
    def measure(cls, quick: bool = False) -> xr.Dataset:
        """Return results at full or quick scale; their attributes hold the settings."""
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
        """Return the claims; the project vouches for none at quick scale, which has no power."""
        is_full = dataset.attrs.get("scale", "full") == "full"
        mine: dict[str, Any] = {"study": cls.name, "source": cls.source}
        return [
            dataclasses.replace(claim, asserted=claim.asserted and is_full, **mine)
            for claim in cls.judge(dataset)
        ]


class Criterion(NamedTuple):
    """Say when a claim holds, to the computer and to the reader.

    Attributes:
      is_met: whether a measured interval meets the criterion.
      says: the words after "holds if"; empty where the statement says it already.
    """

    is_met: Callable[[Interval], bool]
    says: str


def surely_above(bound: float, remark: str = "") -> Criterion:
    """Return the criterion that the whole interval lies above a number.

    Args:
      bound: the number; without a remark, 0 goes unsaid.
      remark: what the number is, for the statement.
    """
    says = _says("surely above", bound, remark) if bound or remark else ""
    return Criterion(lambda interval: interval.low > bound, says)


def surely_below(bound: float | xr.DataArray, remark: str = "") -> Criterion:
    """Return the criterion that the whole interval lies below a number, or below an interval.

    Args:
      bound: the number; or samples over seeds, whose interval ``remark`` then names.
      remark: what the number is.
    """
    if isinstance(bound, xr.DataArray):
        low = over_seeds(bound).low
        return Criterion(lambda interval: interval.high < low, f"the interval lies below {remark}")
    return Criterion(lambda interval: interval.high < bound, _says("surely below", bound, remark))


def surely_within(bound: float, remark: str = "") -> Criterion:
    """Return the criterion that the whole interval lies within a distance of 0."""
    return Criterion(
        lambda interval: max(abs(interval.low), abs(interval.high)) < bound,
        _says("surely within", bound, remark),
    )


def above(bound: float, remark: str = "") -> Criterion:
    """Return the criterion that the effect itself lies above a number, whatever its interval."""
    return Criterion(lambda interval: interval.effect > bound, _says("above", bound, remark))


def below(bound: float, remark: str = "") -> Criterion:
    """Return the criterion that the effect itself lies below a number, whatever its interval."""
    return Criterion(lambda interval: interval.effect < bound, _says("below", bound, remark))


def _says(relation: str, bound: float, remark: str) -> str:
    return f"{relation} {bound:g}{remark and f', {remark}'}"


POSITIVE = surely_above(0)
"""Require that the interval lies above 0: for claims of a difference."""

ALWAYS = Criterion(lambda interval: interval.effect == 1, "")
"""Require that all cases agree: for claims about every case, whose effect is a share."""


def claim(
    statement: str,
    effect: xr.DataArray | Interval | float,
    criterion: Criterion = POSITIVE,
    *,
    asserted: bool = True,
    note: str = "",
    table: Mapping[str, Sequence[float]] | None = None,
) -> Claim:
    """Return a claim of a study, which adds its name and source.

    Args:
      statement: the sentence, with the quantity that is measured.
      effect: samples of that quantity over ``seed``, whose other dimensions are averaged; or its
        interval; or a number that is computed without chance.
      criterion: when the claim holds.
      asserted: whether the project vouches for it at full scale.
      note: where it starts or ceases to hold.
      table: numbers behind the effect, by row.
    """
    if isinstance(effect, Interval):
        interval = effect
    elif isinstance(effect, xr.DataArray) and "seed" in effect.dims:
        interval = over_seeds(effect)
    else:
        interval = exact(effect)
    if criterion.says:
        statement = f"{statement} (holds if {criterion.says})"
    holds = bool(criterion.is_met(interval))
    return Claim("", "", statement, *interval, holds, asserted, note, table)
