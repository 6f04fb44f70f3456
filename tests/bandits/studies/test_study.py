"""Studies: a class is its settings, and a criterion holds as its words say."""

import dataclasses
import json

import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import pytest
import xarray as xr
from matplotlib.figure import Figure

from bandits.studies.intervals import Interval
from bandits.studies.study import (
    ALWAYS,
    Criterion,
    Study,
    above,
    below,
    claim,
    surely_above,
    surely_below,
    surely_within,
)


class HowManySteps(Study):
    source, question = "nowhere", "How many?"
    quick = {"steps": 3}

    steps: int = 100

    def run(self):
        return xr.Dataset({"count": ("seed", self.steps + np.array([-1.0, 0.0, 1.0]))})

    @classmethod
    def judge(cls, dataset):
        return [claim("Steps", dataset["count"], surely_above(10, "ten"))]


def test_a_study_is_named_by_its_class_and_holds_its_settings():
    assert HowManySteps.name == "how_many_steps"
    assert HowManySteps(steps=5).run()["count"].values.tolist() == [4, 5, 6]
    with pytest.raises(dataclasses.FrozenInstanceError):
        HowManySteps().steps = 2


def test_its_scale_travels_with_the_results_and_quick_is_not_vouched_for():
    full, quick = HowManySteps.measure(), HowManySteps.measure(quick=True)
    assert (full.attrs["settings"], quick.attrs["settings"]) == ('{"steps": 100}', '{"steps": 3}')
    (sure,), (small,) = HowManySteps.claims(full), HowManySteps.claims(quick)
    assert (sure.holds, sure.asserted, sure.effect) == (True, True, 100)
    assert (small.holds, small.asserted) == (False, False)
    assert (sure.study, sure.source) == ("how_many_steps", "nowhere")
    assert sure.statement == "Steps (holds if surely above 10, ten)"


class Kept(Study):
    source, question = "nowhere", "Is it?"
    quick = {"size": 2}

    size: int = 100
    floors: tuple[float, float] = (0.5, 1.0)

    def run(self):
        return xr.Dataset({"size": self.size}, attrs={"kept": 1})

    @classmethod
    def plot(cls, dataset):
        assert mpl.rcParams["axes.spines.top"] is False
        return Figure()


@pytest.mark.parametrize(("quick", "size"), [(True, 2), (False, 100)])
def test_the_settings_of_the_scale_travel_with_the_results(quick, size):
    dataset = Kept.measure(quick)
    assert int(dataset["size"]) == size
    assert json.loads(dataset.settings) == {"size": size, "floors": [0.5, 1.0]}
    assert (dataset.study, dataset.source, dataset.kept) == ("kept", "nowhere", 1)


def test_drawing_leaves_matplotlib_as_it_was():
    before = dict(mpl.rcParams)
    Kept.draw(xr.Dataset())
    assert dict(mpl.rcParams) == before


@pytest.mark.parametrize(
    "holds",
    [jnp.array(3.0) > 2, xr.DataArray([1.0]).values.all(), False],
    ids=["jax", "numpy", "no"],
)
def test_a_claim_is_the_studies_and_can_be_written_as_json(holds, monkeypatch):
    judged = claim(
        "it is", Interval(1.0, 0.5, 1.5), Criterion(lambda _: holds, ""), note="so", asserted=False
    )
    monkeypatch.setattr(Kept, "judge", classmethod(lambda cls, dataset: [judged]))
    (found,) = Kept.claims(xr.Dataset())
    assert json.loads(json.dumps(dataclasses.asdict(found))) == {
        "study": "kept",
        "source": "nowhere",
        "statement": "it is",
        "effect": 1.0,
        "low": 0.5,
        "high": 1.5,
        "holds": bool(holds),
        "asserted": False,
        "note": "so",
        "table": None,
    }


OTHER = xr.DataArray([2.9, 3.0, 3.1], dims="seed")


@pytest.mark.parametrize(
    ("criterion", "says", "holding", "failing"),
    [
        (surely_above(0), "", Interval(1, 0.1, 2), Interval(1, -0.1, 2)),
        (surely_above(-0.5), "surely above -0.5", Interval(0, -0.4, 1), Interval(0, -0.6, 1)),
        (surely_below(0.1), "surely below 0.1", Interval(0, -1, 0.09), Interval(0, -1, 0.11)),
        (surely_below(OTHER, "that of R1"), "the interval lies below that of R1",
         Interval(1, 0, 2), Interval(2, 1, 3)),
        (surely_within(0.1), "surely within 0.1", Interval(0, -0.09, 0.05), Interval(0, -0.11, 0)),
        (above(0.9, "most"), "above 0.9, most", Interval(1, 0, 2), Interval(0.8, 0.8, 0.8)),
        (ALWAYS, "", Interval(1, 0.9, 1), Interval(0.999, 0.9, 1)),
        (below(1e-9), "below 1e-09", Interval(0, 0, 0), Interval(1e-9, 0, 1)),
    ],
)  # fmt: skip
def test_a_criterion_holds_as_its_words_say(criterion, says, holding, failing):
    assert criterion.says == says
    assert claim("x", holding, criterion).holds
    assert not claim("x", failing, criterion).holds
    assert not claim("x", Interval(np.nan, np.nan, np.nan), criterion).holds
