"""Studies: a class is its settings, and a criterion holds as its words say."""

import dataclasses

import numpy as np
import pytest
import xarray as xr

from bandits.studies.intervals import Interval
from bandits.studies.study import (
    ALWAYS,
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
