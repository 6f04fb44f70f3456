"""The four aspects: what is trained, effects by hand, claims that can fail, the figure."""

import numpy as np
import pytest
import xarray as xr

from bandits.plotting import METHOD_LABELS
from bandits.studies.i24 import four_aspects
from bandits.studies.i24.aspects import POLICIES
from bandits.studies.i24.four_aspects import (
    ASPECTS,
    EXPERIMENT,
    OF_DATA,
    RECIPES,
    judge,
)
from bandits.studies.intervals import mean_interval
from theory.checks import InvalidInput

SEEDS = 5
OF_REWARD_MODEL = ("small reward model", "reward model on few pairs")


def made():
    """The published order, with a little noise for each of five seeds."""
    coords = {
        "loss": ["dpo", "ppo"], "policy": list(POLICIES), "recipe": list(RECIPES),
        "domain": ["general", "target"], "seed": range(SEEDS),
    }  # fmt: skip
    shape = [len(values) for values in coords.values()]
    noise = np.random.default_rng(0).uniform(0, 1e-3, shape)
    share = xr.DataArray(0.5 + noise, coords, list(coords))
    share.loc[{"loss": "ppo"}] += 0.1
    share.loc[{"recipe": list(OF_DATA)}] -= 0.2
    share.loc[{"recipe": list(OF_REWARD_MODEL)}] -= 0.05
    share.loc[{"recipe": "more prompts"}] += 0.02
    share.loc[{"recipe": "target prompts", "domain": "target"}] += 0.03
    share.loc[{"loss": "dpo", "recipe": list(RECIPES)[1 + len(OF_DATA) :]}] = np.nan
    return share.to_dataset(name="share")


def failing(dataset):
    return [i for i, claim in enumerate(judge(dataset)) if not claim.holds]


# The run


def test_every_class_and_method_is_trained_on_its_recipes_and_tuned(monkeypatch):
    calls = []

    def train(settings, method, recipes, prepared, policy):
        assert prepared == "prepared"
        calls.append((method, policy, list(recipes)))
        values = np.full((len(recipes), 1, 1, 2, 2), len(calls), float)
        values += 0.1 * np.arange(len(recipes))[:, None, None, None, None] + [0, 0.01]
        dims = ("recipe", "learning_rate", "beta", "seed", "domain")
        coords = {
            "recipe": list(recipes), "learning_rate": [0.1], "beta": [1.0], "seed": [0, 1],
            "domain": ["general", "target"],
        }  # fmt: skip
        return xr.Dataset({"share": (dims, values), "validated": (dims, values)}, coords)

    monkeypatch.setattr(four_aspects, "prepare", lambda settings, recipes: "prepared")
    monkeypatch.setattr(four_aspects, "train_recipes", train)
    share = EXPERIMENT.run(EXPERIMENT.quick)["share"]
    of_data = ["best", *OF_DATA]
    assert calls == [
        (method, policy, of_data if method == "dpo" else list(RECIPES))
        for policy in POLICIES
        for method in ("dpo", "ppo")
    ]
    for i, (method, policy, recipes) in enumerate(calls):
        for j, recipe in enumerate(RECIPES):
            found = share.sel(loss=method, policy=policy, recipe=recipe, seed=1)
            expected = i + 1 + 0.1 * j + np.array([0, 0.01]) if recipe in recipes else np.nan
            by_domain = found.sel(domain=["general", "target"])
            np.testing.assert_allclose(by_domain, np.broadcast_to(expected, 2))


def test_every_recipe_is_worse_than_the_best_in_one_thing_or_has_more_prompts():
    best = RECIPES["best"]._asdict()
    for name, recipe in RECIPES.items():
        changed = {k for k, v in recipe._asdict().items() if v != best[k]}
        assert len(changed) == (name != "best") + (name == "few pairs")
    assert len(RECIPES) == 1 + len(OF_DATA) + len(OF_REWARD_MODEL) + 2


# Claims


def test_every_claim_holds_where_the_finding_does():
    claims = judge(made())
    assert [claim.holds for claim in claims] == [True] * 11
    assert [i for i, claim in enumerate(claims) if claim.asserted] == [1, 3]
    effects = [claim.effect for claim in claims]
    of_aspects, differences, on_target = (
        [0.2, 0.1, 0.05, 0.02],
        [0.1, 0.05, 0.03],
        [0.03, 0.02, 0.05],
    )
    expected = [0.1, *of_aspects, *differences, *on_target]
    assert effects == pytest.approx(expected, abs=1e-3)
    published = ", ".join(ASPECTS)
    assert claims[0].note == f"The measured order: {published}. Published: {published}."
    assert "linear policy +0.1" in claims[2].note
    assert "network policy +0.1" in claims[2].note


def test_intervals_are_over_seeds():
    dataset = made()
    share = dataset["share"].sel(domain="general", recipe="best")
    gain = (share.sel(loss="ppo") - share.sel(loss="dpo")).mean("policy")
    claim = judge(dataset)[2]
    assert (claim.effect, claim.low, claim.high) == pytest.approx(mean_interval(gain.values))


def test_intervals_of_the_order_are_of_differences_seed_by_seed():
    """What all effects of a seed share, such as a good best recipe, is no doubt about the order."""
    dataset = made()
    common = xr.DataArray([0.05, -0.05, 0.03, -0.03, 0.0], dims="seed")
    dataset["share"].loc[{"recipe": "best", "loss": "ppo"}] += common
    share = dataset["share"].sel(domain="general", loss="ppo").mean("policy")
    worse = share.sel(recipe=list(OF_DATA)).mean("recipe")
    algorithm = dataset["share"].sel(domain="general", loss="dpo", recipe="best").mean("policy")
    claim = judge(dataset)[5]
    expected = mean_interval((algorithm - worse).values)
    assert (claim.effect, claim.low, claim.high) == pytest.approx(expected)
    assert claim.holds


@pytest.mark.parametrize(
    ("where", "change", "expected"),
    [
        ({"recipe": list(OF_DATA)}, 0.3, [0, 1]),
        ({"recipe": list(OF_DATA)}, 0.12, [0]),
        ({"recipe": "best", "loss": "dpo"}, 0.11, [2]),
        ({"loss": "dpo"}, 0.3, [2]),
        ({"recipe": list(OF_REWARD_MODEL)}, 0.06, [3]),
        ({"recipe": "more prompts"}, -0.03, [4]),
        ({"recipe": "more prompts"}, 0.3, [0]),
        ({"recipe": "target prompts"}, -0.5, []),
        ({"domain": "target"}, -0.5, []),
        ({"domain": "target", "recipe": "target prompts"}, -0.04, [8]),
        ({"domain": "target", "recipe": "more prompts"}, -0.03, [9]),
        ({"domain": "target", "recipe": "small reward model"}, 0.06, [10]),
        ({"domain": "target", "recipe": list(OF_DATA)}, 0.5, []),
        ({"domain": "target", "loss": "dpo"}, 0.5, []),
    ],
)
def test_each_finding_that_fails_fails_its_claims_and_no_other(where, change, expected):
    dataset = made()
    where = {"domain": "general"} | where
    dataset["share"].loc[where] += change
    assert failing(dataset) == expected


def test_the_measured_order_is_said():
    dataset = made()
    dataset["share"].loc[{"recipe": "more prompts"}] += 0.3
    claims = judge(dataset)
    note = claims[0].note
    assert note.startswith("The measured order: prompts, data quality, algorithm, reward model.")
    assert [claim.statement.split("effect of ")[1] for claim in claims[5:8]] == [
        "prompts minus that of data quality",
        "data quality minus that of algorithm",
        "algorithm minus that of reward model",
    ]
    assert [claim.effect for claim in claims[5:8]] == pytest.approx([0.12, 0.1, 0.05], abs=1e-3)
    assert all("not corrected" in claim.note for claim in claims[5:8])


def test_places_in_the_order_that_are_not_sure_fail_their_claims():
    dataset = made()
    wide = xr.DataArray([0.5, -0.5, 0.3, -0.3, 0.0], dims="seed")
    general = {"domain": "general", "loss": "ppo"}
    dataset["share"].loc[general | {"recipe": "small reward model"}] += wide
    assert failing(dataset) == [3, 6, 7]


@pytest.mark.parametrize(
    ("domain", "recipe"),
    [
        ("general", "best"),
        ("general", "more prompts"),
        ("target", "best"),
        ("target", "target prompts"),
        ("target", "more prompts"),
        ("target", "small reward model"),
    ],
)
def test_results_that_are_undefined_are_not_judged(domain, recipe):
    dataset = made()
    where = {"loss": "ppo", "recipe": recipe, "seed": 1, "policy": "linear", "domain": domain}
    dataset["share"].loc[where] = np.nan
    with pytest.raises(InvalidInput, match="share is NaN"):
        judge(dataset)


@pytest.mark.parametrize(
    ("loss", "recipe"),
    [("ppo", "noisy labels"), ("ppo", "few pairs"), ("ppo", "small reward model")],
)
def test_an_effect_of_which_a_part_is_undefined_is_not_judged(loss, recipe):
    dataset = made()
    where = {"loss": loss, "recipe": recipe, "seed": 1, "policy": "linear", "domain": "general"}
    dataset["share"].loc[where] = np.nan
    with pytest.raises(InvalidInput, match="share is NaN"):
        judge(dataset)


def test_quick_settings_are_not_vouched_for():
    for scale, expected in (("quick", []), ("full", [1, 3])):
        claims = EXPERIMENT.claims(made().assign_attrs(scale=scale))
        assert [i for i, claim in enumerate(claims) if claim.asserted] == expected


# The figure


def test_the_figure_has_the_effects_by_class_and_every_recipe_by_method():
    dataset = made()
    figure = EXPERIMENT.draw(dataset)
    figure.draw_without_rendering()
    effects, recipes = figure.axes
    assert effects.get_title() == "What each aspect gains"
    assert recipes.get_title() == "Every recipe, linear policy"
    for container in [c for c in effects.containers if hasattr(c, "patches")]:
        heights = [bar.get_height() for bar in container.patches]
        assert heights == pytest.approx([0.2, 0.1, 0.05, 0.02], abs=1e-3)
    assert [text.get_text() for text in effects.get_legend().get_texts()] == [
        f"{policy} policy" for policy in POLICIES
    ]
    bars = [c for c in recipes.containers if hasattr(c, "patches")]
    for container, method in zip(bars, ("dpo", "ppo"), strict=True):
        one = dataset["share"].sel(loss=method, policy="linear", domain="general").mean("seed")
        expected = one.values[np.isfinite(one.values)]
        np.testing.assert_allclose([bar.get_height() for bar in container.patches], expected)
    assert len(bars[0].patches) == 4
    assert len(bars[1].patches) == 8
    assert [text.get_text() for text in recipes.get_legend().get_texts()] == [
        METHOD_LABELS[method] for method in ("dpo", "ppo")
    ]
    names = [label.get_text().replace("\n", " ") for label in recipes.get_xticklabels()]
    assert names == list(RECIPES)
