"""Prompts without labels: what is trained, claims that can fail, the figure."""

import dataclasses

import numpy as np
import pytest
import xarray as xr

from bandits.studies.i24 import unlabelled_prompts
from bandits.studies.i24.unlabelled_prompts import EXPERIMENT, judge
from bandits.studies.intervals import mean_interval
from theory.checks import InvalidInput

ADDED = (0, 50, 200)


def made():
    """Prompts of either kind help on their own domain, and not on the other."""
    coords = {
        "kind": ["general", "target"], "added": list(ADDED), "domain": ["general", "target"],
        "seed": range(5),
    }  # fmt: skip
    noise = np.random.default_rng(0).uniform(0, 1e-3, (2, 3, 2, 5))
    share = xr.DataArray(0.5 + noise, coords, list(coords))
    share.loc[{"kind": "target", "domain": "target", "added": 200}] += 0.1
    share.loc[{"kind": "general", "domain": "general", "added": 200}] += 0.01
    return share.to_dataset(name="share")


def failing(dataset):
    return [i for i, claim in enumerate(judge(dataset)) if not claim.holds]


# The run


def test_recipes_add_as_many_prompts_of_either_kind_as_asked(monkeypatch):
    seen = {}

    def prepare(settings, recipes):
        seen.update(recipes)
        return "prepared"

    def train(settings, method, recipes, prepared):
        assert (method, prepared) == ("ppo", "prepared")
        assert list(recipes) == list(seen)
        values = np.arange(float(len(recipes)))[:, None, None, None, None] + np.zeros((1, 1, 3, 2))
        values = values + np.array([0, 100.0])
        dims = ("recipe", "learning_rate", "beta", "seed", "domain")
        coords = {
            "recipe": list(recipes), "learning_rate": [0.1], "beta": [1.0], "seed": range(3),
            "domain": ["general", "target"],
        }  # fmt: skip
        return xr.Dataset({"share": (dims, values), "validated": (dims, values)}, coords)

    monkeypatch.setattr(unlabelled_prompts, "prepare", prepare)
    monkeypatch.setattr(unlabelled_prompts, "train_recipes", train)
    settings = dataclasses.replace(EXPERIMENT.quick, labelled=30, added=ADDED)
    share = EXPERIMENT.run(settings)["share"]
    assert share.dims == ("kind", "added", "domain", "seed")
    assert set(share.coords) == set(share.dims)
    assert all(recipe.pairs == recipe.reward_pairs == 30 for recipe in seen.values())
    asked = [(recipe.general_prompts, recipe.target_prompts) for recipe in seen.values()]
    # Without prompts of either kind there is one recipe, trained once.
    assert len(asked) == len(set(asked)) == 5
    for kind in ("general", "target"):
        for count in ADDED:
            at = asked.index((count, 0) if kind == "general" else (0, count))
            found = share.sel(kind=kind, added=count, seed=2, domain=["general", "target"])
            np.testing.assert_array_equal(found, [at, at + 100])


@pytest.mark.parametrize(
    ("added", "said"),
    [
        ((), "start with 0 and rise"),
        ((100, 400), "start with 0 and rise"),
        ((-5, 0), "start with 0 and rise"),
        ((0, 100, 100), "start with 0 and rise"),
        ((0, 400, 100), "start with 0 and rise"),
        ((0, 401), "added goes to 401; most_prompts of these aspects is 400"),
    ],
)
def test_numbers_of_prompts_that_do_not_rise_from_0_to_what_there_is_are_refused(added, said):
    with pytest.raises(InvalidInput, match=said):
        dataclasses.replace(EXPERIMENT.full, added=added)


def test_as_many_prompts_as_there_are_can_be_added():
    assert dataclasses.replace(EXPERIMENT.full, added=(0, 400)).added == (0, 400)


# Claims


def test_every_claim_holds_where_the_finding_does():
    claims = judge(made())
    assert [claim.holds for claim in claims] == [True] * 3
    assert [claim.asserted for claim in claims] == [False] * 3
    assert [claim.effect for claim in claims] == pytest.approx([0.1, 0.1, 0.01], abs=2e-3)
    assert claims[0].statement.endswith("gain by 200")


def test_intervals_are_over_seeds():
    dataset = made()
    of_target = dataset["share"].sel(kind="target", domain="target")
    gain = of_target.sel(added=200) - of_target.sel(added=0)
    claim = judge(dataset)[0]
    assert (claim.effect, claim.low, claim.high) == pytest.approx(mean_interval(gain.values))


@pytest.mark.parametrize(
    ("where", "change", "expected"),
    [
        ({"kind": "target", "domain": "target", "added": 200}, -0.11, [0, 1]),
        ({"kind": "general", "domain": "target", "added": 200}, 0.11, [1]),
        ({"kind": "general", "domain": "general", "added": 200}, 0.02, []),
        ({"kind": "general", "domain": "general", "added": 200}, -0.05, [2]),
        ({"kind": "target", "domain": "general", "added": 200}, 0.5, []),
        ({"added": 50}, -0.5, []),
    ],
)
def test_each_finding_that_fails_fails_its_claims_and_no_other(where, change, expected):
    dataset = made()
    dataset["share"].loc[where] += change
    assert failing(dataset) == expected


def test_gains_that_are_not_sure_fail_their_claims():
    dataset = made()
    wide = xr.DataArray([0.5, -0.5, 0.3, -0.3, 0.0], dims="seed")
    dataset["share"].loc[{"added": 200}] += wide
    assert failing(dataset) == [0, 2]


def test_results_that_are_undefined_are_not_judged():
    dataset = made()
    dataset["share"][0, 1, 1, 2] = np.nan
    with pytest.raises(InvalidInput, match="share is NaN"):
        judge(dataset)


@pytest.mark.parametrize("scale", ["quick", "full"])
def test_no_finding_is_vouched_for(scale):
    claims = EXPERIMENT.claims(made().assign_attrs(scale=scale))
    assert [claim.asserted for claim in claims] == [False] * 3


# The figure


def test_the_figure_has_a_panel_a_domain_with_the_gain_of_each_kind_of_prompt():
    dataset = made()
    figure = EXPERIMENT.draw(dataset)
    figure.draw_without_rendering()
    assert [axes.get_title() for axes in figure.axes] == [
        "Judged on the general domain",
        "Judged on the target domain",
    ]
    for axes, domain in zip(figure.axes, ("general", "target"), strict=True):
        assert axes.get_xlabel() == "prompts without labels"
        for line, kind in zip(axes.lines[:2], ("general", "target"), strict=True):
            mean = dataset["share"].sel(domain=domain, kind=kind).mean("seed")
            np.testing.assert_array_equal(line.get_xdata(), ADDED)
            np.testing.assert_allclose(line.get_ydata(), mean - mean.sel(added=0), atol=1e-12)
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == [
        "general prompts added",
        "target prompts added",
    ]
