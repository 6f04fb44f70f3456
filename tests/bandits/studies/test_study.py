"""Studies: a class is its settings, and a criterion holds as its words say."""

import dataclasses
import json

import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import pytest
import xarray as xr
from matplotlib.figure import Figure

from bandits.studies.curves import over_seeds
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
    floors: tuple[float, float] = (0.5, 1.0)

    def run(self):
        counts = self.steps + np.array([-1.0, 0.0, 1.0])
        return xr.Dataset({"count": ("seed", counts)}, attrs={"kept": 1})

    @classmethod
    def plot(cls, dataset):
        assert mpl.rcParams["axes.spines.top"] is False
        return Figure()

    @classmethod
    def judge(cls, dataset):
        return [claim("Steps", dataset["count"], surely_above(10, "ten"), note="so")]


def test_a_study_is_named_by_its_class_and_holds_its_settings():
    assert HowManySteps.name == "how_many_steps"
    assert HowManySteps(steps=5).run()["count"].values.tolist() == [4, 5, 6]
    with pytest.raises(dataclasses.FrozenInstanceError):
        HowManySteps().steps = 2


@pytest.mark.parametrize(("quick", "steps"), [(True, 3), (False, 100)])
def test_its_settings_and_scale_travel_with_the_results_and_quick_is_not_vouched_for(quick, steps):
    dataset = HowManySteps.measure(quick)
    assert json.loads(dataset.settings) == {"steps": steps, "floors": [0.5, 1.0]}
    assert (dataset.study, dataset.source, dataset.kept) == ("how_many_steps", "nowhere", 1)
    (found,) = HowManySteps.claims(dataset)
    interval = over_seeds(dataset["count"])
    assert json.loads(json.dumps(dataclasses.asdict(found))) == {
        "study": "how_many_steps",
        "source": "nowhere",
        "statement": "Steps (holds if surely above 10, ten)",
        **interval._asdict(),
        "holds": steps == 100,
        "asserted": not quick,
        "note": "so",
        "table": None,
    }


def test_drawing_leaves_matplotlib_as_it_was():
    before = dict(mpl.rcParams)
    HowManySteps.draw(xr.Dataset())
    assert dict(mpl.rcParams) == before


@pytest.mark.parametrize("holds", [jnp.array(True), np.array([True]).all(), False])
def test_whether_a_claim_holds_is_a_plain_truth_value(holds):
    found = claim("it is", Interval(1.0, 0.5, 1.5), Criterion(lambda _: holds, ""), asserted=False)
    assert found.holds is bool(holds)
    assert not found.asserted


@pytest.mark.parametrize("number", [0.25, np.float32(0.25), jnp.array(0.25), xr.DataArray(0.25)])
def test_a_number_without_chance_is_its_own_interval_and_samples_have_one_over_seeds(number):
    found = claim("x", number)
    assert (found.effect, found.low, found.high) == (0.25, 0.25, 0.25)
    samples = xr.DataArray([[0.0, 0.5], [1.0, 1.5]], dims=["seed", "pairs"])
    found = claim("x", number * samples)
    assert (found.effect, found.low, found.high) == over_seeds(0.25 * samples)
    with pytest.raises(TypeError):
        claim("x", samples.rename(seed="problem"))


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
