"""The four aspects and prompts without labels: what is trained, effects by hand, figures."""

import numpy as np
import pytest
import xarray as xr

from bandits.plotting import METHOD_LABELS
from bandits.studies.i24.aspects import POLICIES, Aspects
from bandits.studies.i24.four_aspects import FourAspects, UnlabelledPrompts
from bandits.studies.intervals import mean_interval
from theory.checks import InvalidInput

SEEDS = 5
RECIPES, OF_DATA = list(FourAspects.RECIPES), list(FourAspects.OF_DATA)
OF_REWARD_MODEL = ["small reward model", "reward model on few pairs"]
PUBLISHED = ["data quality", "algorithm", "reward model", "prompts"]
WIDE = xr.DataArray([0.5, -0.5, 0.3, -0.3, 0.0], dims="seed")


def made_of_aspects():
    """The published order, with a little noise for each of five seeds."""
    coords = {
        "loss": ["dpo", "ppo"], "policy": list(POLICIES), "recipe": RECIPES,
        "domain": ["general", "target"], "seed": range(SEEDS),
    }  # fmt: skip
    shape = [len(values) for values in coords.values()]
    noise = np.random.default_rng(0).uniform(0, 1e-3, shape)
    share = xr.DataArray(0.5 + noise, coords, list(coords))
    share.loc[{"loss": "ppo"}] += 0.1
    share.loc[{"recipe": OF_DATA}] -= 0.2
    share.loc[{"recipe": OF_REWARD_MODEL}] -= 0.05
    share.loc[{"recipe": "more prompts"}] += 0.02
    share.loc[{"recipe": "target prompts", "domain": "target"}] += 0.03
    share.loc[{"loss": "dpo", "recipe": RECIPES[1 + len(OF_DATA) :]}] = np.nan
    return share.to_dataset(name="share")


ADDED = (0, 50, 200)


def made_of_prompts():
    """Prompts of either kind help on their own domain, and not on the other."""
    coords = {
        "kind": ["general", "target"], "added": list(ADDED), "domain": ["general", "target"],
        "seed": range(SEEDS),
    }  # fmt: skip
    noise = np.random.default_rng(0).uniform(0, 1e-3, (2, 3, 2, SEEDS))
    share = xr.DataArray(0.5 + noise, coords, list(coords))
    share.loc[{"kind": "target", "domain": "target", "added": 200}] += 0.1
    share.loc[{"kind": "general", "domain": "general", "added": 200}] += 0.01
    return share.to_dataset(name="share")


MADE = {FourAspects: made_of_aspects, UnlabelledPrompts: made_of_prompts}


# The runs


@pytest.fixture
def calls(monkeypatch):
    """What is trained, in place of training: a share says its place in the call, and the call."""
    seen = []

    def train(self, method, recipes, prepared, policy="linear"):
        seen.append((method, policy, list(recipes), prepared))
        values = 100.0 * len(seen) + np.arange(len(recipes))[:, None, None, None, None]
        values = values + np.zeros((1, 1, 2, 1)) + [0, 0.5]
        dims = ("recipe", "learning_rate", "beta", "seed", "domain")
        coords = {
            "recipe": list(recipes), "learning_rate": [0.1], "beta": [1.0], "seed": [0, 1],
            "domain": ["general", "target"],
        }  # fmt: skip
        return xr.Dataset({"share": (dims, values), "validated": (dims, values)}, coords)

    monkeypatch.setattr(Aspects, "prepare", lambda self, recipes: recipes)
    monkeypatch.setattr(Aspects, "train", train)
    return seen


def test_every_class_and_method_is_trained_on_its_recipes_and_tuned(calls):
    share = FourAspects().run()["share"]
    assert calls == [
        (method, policy, ["best", *OF_DATA] if method == "dpo" else RECIPES, FourAspects.RECIPES)
        for policy in POLICIES
        for method in ("dpo", "ppo")
    ]
    for i, (method, policy, recipes, _) in enumerate(calls):
        for j, recipe in enumerate(RECIPES):
            found = share.sel(loss=method, policy=policy, recipe=recipe, seed=1)
            expected = 100 * (i + 1) + j + np.array([0, 0.5]) if recipe in recipes else np.nan
            by_domain = found.sel(domain=["general", "target"])
            np.testing.assert_allclose(by_domain, np.broadcast_to(expected, 2))


def test_every_recipe_is_worse_than_the_best_in_one_thing_or_has_more_prompts():
    best = FourAspects.RECIPES["best"]._asdict()
    for name, recipe in FourAspects.RECIPES.items():
        changed = {k for k, v in recipe._asdict().items() if v != best[k]}
        assert len(changed) == (name != "best") + (name == "few pairs")
    assert len(RECIPES) == 1 + len(OF_DATA) + len(OF_REWARD_MODEL) + 2


def test_recipes_add_as_many_prompts_of_either_kind_as_asked(calls):
    share = UnlabelledPrompts(labelled=30, added=ADDED).run()["share"]
    assert share.dims == ("kind", "added", "domain", "seed")
    assert set(share.coords) == set(share.dims)
    ((method, _, names, recipes),) = calls
    assert (method, names) == ("ppo", list(recipes))
    assert all(recipe.pairs == recipe.reward_pairs == 30 for recipe in recipes.values())
    asked = [(recipe.general_prompts, recipe.target_prompts) for recipe in recipes.values()]
    # Without prompts of either kind there is one recipe, trained once.
    assert len(asked) == len(set(asked)) == 5
    for kind in ("general", "target"):
        for count in ADDED:
            at = asked.index((count, 0) if kind == "general" else (0, count))
            found = share.sel(kind=kind, added=count, seed=1, domain=["general", "target"])
            np.testing.assert_array_equal(found, [100 + at, 100.5 + at])


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
        UnlabelledPrompts(added=added)
    assert UnlabelledPrompts(added=(0, 400)).added == (0, 400)


# Claims


@pytest.mark.parametrize(
    ("study", "asserted", "effects"),
    [
        (FourAspects, [1, 3], [0.1, 0.2, 0.1, 0.05, 0.02, 0.1, 0.05, 0.03, 0.03, 0.02, 0.05]),
        (UnlabelledPrompts, [], [0.1, 0.1, 0.01]),
    ],
)
def test_every_claim_holds_where_the_finding_does_and_some_are_vouched_for(
    study, asserted, effects
):
    claims = study.judge(MADE[study]())
    assert all(claim.holds for claim in claims)
    assert [i for i, claim in enumerate(claims) if claim.asserted] == asserted
    assert [claim.effect for claim in claims] == pytest.approx(effects, abs=2e-3)


def test_intervals_are_of_differences_seed_by_seed():
    """What all effects of a seed share, such as a good best recipe, is no doubt about the order."""
    dataset = made_of_aspects()
    dataset["share"].loc[{"recipe": "best", "loss": "ppo"}] += 0.1 * WIDE
    share = dataset["share"].sel(domain="general").mean("policy")
    best, dpo = (share.sel(loss=loss, recipe="best") for loss in ("ppo", "dpo"))
    worse = share.sel(loss="ppo", recipe=OF_DATA).mean("recipe")
    claims = FourAspects.judge(dataset)
    for claim, samples in ((claims[2], best - dpo), (claims[5], dpo - worse)):
        expected = mean_interval(samples.values)
        assert (claim.effect, claim.low, claim.high) == pytest.approx(expected)
    assert claims[5].holds


GENERAL, TARGET = {"domain": "general"}, {"domain": "target"}
MOST = {"added": 200}


@pytest.mark.parametrize(
    ("study", "where", "change", "expected"),
    [
        (FourAspects, GENERAL | {"recipe": OF_DATA}, 0.3, [0, 1]),
        (FourAspects, GENERAL | {"recipe": OF_DATA}, 0.12, [0]),
        (FourAspects, GENERAL | {"recipe": "best", "loss": "dpo"}, 0.11, [2]),
        (FourAspects, GENERAL | {"loss": "dpo"}, 0.3, [2]),
        (FourAspects, GENERAL | {"recipe": OF_REWARD_MODEL}, 0.06, [3]),
        # Places in the order that are not sure fail too.
        (FourAspects, GENERAL | {"recipe": OF_REWARD_MODEL, "loss": "ppo"}, WIDE, [3, 6, 7]),
        (FourAspects, GENERAL | {"recipe": "more prompts"}, -0.03, [4]),
        (FourAspects, GENERAL | {"recipe": "more prompts"}, 0.3, [0]),
        (FourAspects, GENERAL | {"recipe": "target prompts"}, -0.5, []),
        (FourAspects, TARGET, -0.5, []),
        (FourAspects, TARGET | {"recipe": "target prompts"}, -0.04, [8]),
        (FourAspects, TARGET | {"recipe": "more prompts"}, -0.03, [9]),
        (FourAspects, TARGET | {"recipe": "small reward model"}, 0.06, [10]),
        (FourAspects, TARGET | {"recipe": OF_DATA}, 0.5, []),
        (FourAspects, TARGET | {"loss": "dpo"}, 0.5, []),
        (UnlabelledPrompts, TARGET | MOST | {"kind": "target"}, -0.11, [0, 1]),
        (UnlabelledPrompts, TARGET | MOST | {"kind": "general"}, 0.11, [1]),
        (UnlabelledPrompts, GENERAL | MOST | {"kind": "general"}, 0.02, []),
        (UnlabelledPrompts, GENERAL | MOST | {"kind": "general"}, -0.05, [2]),
        (UnlabelledPrompts, GENERAL | MOST | {"kind": "target"}, 0.5, []),
        (UnlabelledPrompts, {"added": 50}, -0.5, []),
        (UnlabelledPrompts, MOST, WIDE, [0, 2]),
    ],
)
def test_each_finding_that_fails_fails_its_claims_and_no_other(
    failing, study, where, change, expected
):
    dataset = MADE[study]()
    dataset["share"].loc[where] += change
    assert failing(study, dataset) == expected


def test_the_measured_order_is_said():
    dataset = made_of_aspects()
    published = ", ".join(PUBLISHED)
    first, _, algorithm, *_ = FourAspects.judge(dataset)
    assert first.note == f"The measured order: {published}. Published: {published}."
    assert "linear policy +0.1" in algorithm.note
    assert "network policy +0.1" in algorithm.note
    dataset["share"].loc[{"recipe": "more prompts"}] += 0.3
    first, *others = FourAspects.judge(dataset)
    order = "The measured order: prompts, data quality, algorithm, reward model."
    assert first.note.startswith(order)
    assert [claim.statement.split("effect of ")[1] for claim in others[4:7]] == [
        "prompts minus that of data quality",
        "data quality minus that of algorithm",
        "algorithm minus that of reward model",
    ]
    assert [claim.effect for claim in others[4:7]] == pytest.approx([0.12, 0.1, 0.05], abs=1e-3)
    assert all("not corrected" in claim.note for claim in others[4:7])


@pytest.mark.parametrize(
    ("study", "where"),
    [
        *(
            (FourAspects, GENERAL | {"loss": "ppo", "policy": "linear", "recipe": recipe})
            for recipe in ("best", *OF_DATA, "small reward model", "more prompts")
        ),
        *(
            (FourAspects, TARGET | {"loss": "ppo", "policy": "linear", "recipe": recipe})
            for recipe in ("best", "target prompts", "more prompts", "small reward model")
        ),
        (UnlabelledPrompts, GENERAL | {"kind": "target", "added": 50}),
    ],
)
def test_results_of_which_a_part_is_undefined_are_not_judged(study, where):
    dataset = MADE[study]()
    dataset["share"].loc[where | {"seed": 1}] = np.nan
    with pytest.raises(InvalidInput, match="share is NaN"):
        study.judge(dataset)


# The figures


def bars(axes):
    return [[bar.get_height() for bar in c] for c in axes.containers if hasattr(c, "patches")]


def texts(labels):
    return [label.get_text().replace("\n", " ") for label in labels]


def test_the_figure_has_the_effects_by_class_and_every_recipe_by_method():
    dataset = made_of_aspects()
    effects, recipes = FourAspects.draw(dataset).axes
    np.testing.assert_allclose(bars(effects), [[0.2, 0.1, 0.05, 0.02]] * 2, atol=1e-3)
    assert texts(effects.get_legend().get_texts()) == [f"{policy} policy" for policy in POLICIES]
    assert [len(heights) for heights in bars(recipes)] == [4, 8]
    for heights, method in zip(bars(recipes), ("dpo", "ppo"), strict=True):
        one = dataset["share"].sel(loss=method, policy="linear", domain="general").mean("seed")
        np.testing.assert_allclose(heights, one.values[np.isfinite(one.values)])
    labels = [METHOD_LABELS[method] for method in ("dpo", "ppo")]
    assert texts(recipes.get_legend().get_texts()) == labels
    assert texts(recipes.get_xticklabels()) == RECIPES


def test_the_figure_has_a_panel_a_domain_with_the_gain_of_each_kind_of_prompt():
    dataset = made_of_prompts()
    figure = UnlabelledPrompts.draw(dataset)
    for axes, domain in zip(figure.axes, ("general", "target"), strict=True):
        assert axes.get_title() == f"Judged on the {domain} domain"
        for line, kind in zip(axes.lines[:2], ("general", "target"), strict=True):
            mean = dataset["share"].sel(domain=domain, kind=kind).mean("seed")
            np.testing.assert_array_equal(line.get_xdata(), ADDED)
            np.testing.assert_allclose(line.get_ydata(), mean - mean.sel(added=0), atol=1e-12)
    labels = texts(figure.axes[0].get_legend().get_texts())
    assert labels == ["general prompts added", "target prompts added"]
