"""The length problems: a small run, and claims that can fail."""

import dataclasses

import numpy as np
import pytest
import xarray as xr

from bandits import plotting
from bandits.metrics import DIVERGED_AT
from bandits.studies.t24 import length_problems
from bandits.studies.t24.length_problems import (
    EXPERIMENT,
    NAMES,
    ON_POLICY,
    Settings,
    judge,
)
from bandits.studies.t24.lengths import PROBLEMS, TITLES, Lengths
from theory.checks import InvalidInput

TINY = Lengths(max_length=6, mode=3.0, cut=3, pairs=40, bumps=4, seeds=2)
FEWER = ("dpo",), ("ppo", "online_dpo"), ("dpo", "ppo", "online_dpo")
ALL_ALIKE, SHORTFALL, COST = 4, 5, 6


@pytest.fixture(scope="module")
def measured():
    """Three of the methods: what is compiled grows with their number."""
    with pytest.MonkeyPatch.context() as patch:
        for name, methods in zip(("OFFLINE", "ON_POLICY", "NAMES"), FEWER, strict=True):
            patch.setattr(length_problems, name, methods)
        return EXPERIMENT.run(Settings(lengths=TINY, steps=8, records=2, batch=40, passes=2))


def test_a_small_run_starts_every_method_at_the_reference(measured):
    assert measured["gold"].dims == ("loss", "problem", "seed", "step")
    assert tuple(measured["loss"].values) == FEWER[-1]
    assert measured["step"].values.tolist() == [0, 4, 8]
    assert (measured[DIVERGED_AT] == -1).all()
    law = measured["length_probability"]
    np.testing.assert_allclose(law.sum("length"), 1, rtol=1e-5)
    np.testing.assert_allclose(measured["reference_kl"].sel(step=0), 0, atol=1e-6)
    for problem in PROBLEMS:
        gold = xr.DataArray(np.asarray(TINY.bandit(problem).reward), dims="length")
        expected = law.sel(problem=problem) @ gold
        np.testing.assert_allclose(measured["gold"].sel(problem=problem), expected, atol=1e-6)
    # Every method moves.
    assert (measured["reference_kl"].sel(step=8) > 1e-5).all()


# Claims, on finals that are set by hand


def results(changes=(), seeds=4):
    """Online DPO best and Pref-FT worst on Min and Skew, all alike on Mode, gains less on Skew.

    On Skew the learned reward of on-policy methods ends 0.1 below the true one, and only there.
    """
    coords = {"loss": list(NAMES), "problem": list(PROBLEMS), "seed": range(seeds), "step": [0, 60]}
    gold = xr.DataArray(np.zeros([len(v) for v in coords.values()]), coords, list(coords))
    gold.loc[{"step": 0}] = -0.4
    final = xr.DataArray(
        np.full((len(NAMES), 3), -0.2),
        {"loss": list(NAMES), "problem": list(PROBLEMS)},
        ["loss", "problem"],
    )
    final.loc[{"problem": "skew"}] = -0.25
    final.loc[{"loss": "online_dpo", "problem": ["min", "skew"]}] = [-0.1, -0.15]
    final.loc[{"loss": "preference_likelihood", "problem": ["min", "skew"]}] = -0.39
    for where, value in changes:
        final.loc[where] = value
    noise = np.random.default_rng(0).normal(0, 1e-3, (len(NAMES), 3, seeds))
    gold.loc[{"step": 60}] = final.values[..., None] + noise
    proxy = gold + 0.2 * (gold["step"] > 0)
    proxy.loc[{"step": 60, "problem": "skew", "loss": list(ON_POLICY)}] = (
        final.sel(problem="skew", loss=list(ON_POLICY)).values[:, None] - 0.1
    )
    kl = xr.zeros_like(gold) + gold["step"] / 30 + xr.DataArray(np.arange(len(NAMES)), dims="loss")
    law = np.random.default_rng(1).dirichlet(np.ones(7), gold.shape)
    coords = {**coords, "length": range(7)}
    return xr.Dataset(
        {
            "gold": gold,
            "proxy": proxy,
            "reference_kl": kl,
            "length_probability": xr.DataArray(law, coords, list(coords)),
        }
    )


def test_every_claim_holds_where_the_finding_does():
    claims = judge(results())
    assert [claim.holds for claim in claims] == [True] * 7
    effects = [0.1, 0.19, 0.1, 0.14, 0.0, 0.1, 0.05]
    assert [claim.effect for claim in claims] == pytest.approx(effects, abs=0.005)
    assert "Min" in claims[0].statement
    assert "Skew" in claims[2].statement
    assert "The worst is Pref-FT, -0.39; Pref-FT ends at -0.39." in claims[1].note
    assert "The spread on Min is 0.29, on Skew 0.24." in claims[4].note


def failing_of(dataset):
    return [i for i, claim in enumerate(judge(dataset)) if not claim.holds]


def at(problem, loss):
    return {"problem": problem, "loss": loss}


@pytest.mark.parametrize(
    ("changes", "failing"),
    [
        ([(at("min", "online_dpo"), -0.25)], [0]),
        ([(at("min", "ppo"), -0.05)], [0]),
        ([(at("skew", "dpo"), -0.05)], [2]),
        ([(at("min", "preference_likelihood"), -0.15)], [1]),
        ([(at("min", "dpo"), -0.45)], [1]),
        ([(at("skew", "best_of_n"), -0.45)], [3]),
        ([(at("mode", "best_of_n"), -0.27)], [ALL_ALIKE]),
        ([(at("mode", "online_dpo"), -0.1)], [ALL_ALIKE]),
    ],
)
def test_each_finding_that_fails_fails_its_claim_and_no_other(changes, failing):
    assert failing_of(results(changes)) == failing


def test_skewed_data_that_cost_no_method_fail_their_claim():
    dataset = results()
    dataset["gold"].loc[{"problem": "skew"}] = dataset["gold"].sel(problem="min").values
    assert failing_of(dataset) == [COST]


@pytest.mark.parametrize("more", [0.1, 0.3], ids=["as much", "more"])
def test_a_learned_reward_that_promises_what_comes_or_more_fails_its_claim(more):
    dataset = results()
    dataset["proxy"].loc[{"step": 60, "problem": "skew", "loss": list(ON_POLICY)}] += (
        more + np.array([0.01, -0.01, 0.01, -0.01])
    )
    assert failing_of(dataset) == [SHORTFALL]


def test_the_shortfall_is_of_gains_not_of_levels():
    """A constant is not learned, so where the learned reward starts says nothing."""
    dataset = results()
    dataset["proxy"] += 5.0
    assert judge(dataset)[SHORTFALL].holds
    assert judge(dataset)[SHORTFALL].effect == pytest.approx(0.1, abs=0.005)
    dataset["proxy"].loc[{"step": 0}] -= 0.2
    assert failing_of(dataset) == [SHORTFALL]


def test_a_shortfall_that_is_not_sure_does_not_hold():
    dataset = results()
    dataset["proxy"].loc[{"step": 60, "problem": "skew"}] += [0.5, -0.5, 0.5, -0.5]
    assert failing_of(dataset) == [SHORTFALL]


def test_a_tie_with_the_next_best_is_named_and_still_best():
    (first, *_) = judge(results([(at("min", "ppo"), -0.1)]))
    assert first.holds
    assert plotting.METHOD_LABELS["ppo"] in first.statement


def test_an_advantage_that_is_not_sure_does_not_hold():
    dataset = results()
    dataset["gold"].loc[{**at("min", "online_dpo"), "step": 60}] += [0.3, -0.3, 0.3, -0.3]
    assert not judge(dataset)[0].holds


def test_what_the_policies_did_before_the_end_does_not_count():
    dataset = results().expand_dims({"other": 1}).isel(other=0, drop=True)
    middle = dataset.sel(step=[0]).assign_coords(step=[30]) * 0 - 9
    longer = xr.concat([dataset.sel(step=[0]), middle, dataset.sel(step=[60])], "step")
    assert all(claim.holds for claim in judge(longer))


@pytest.mark.parametrize("seeds", [slice(0, 1), slice(None)], ids=["one seed", "all seeds"])
@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("loss", ["online_dpo", "ppo", "preference_likelihood"])
@pytest.mark.parametrize("name", ["gold", "proxy"])
def test_results_that_are_nan_are_not_judged(name, problem, loss, seeds):
    dataset = results()
    dataset[name][{"seed": seeds}].loc[{**at(problem, loss), "step": 60}] = np.nan
    with pytest.raises(InvalidInput, match=f"^{name} is NaN in some runs"):
        judge(dataset)


def test_quick_settings_are_not_vouched_for():
    quick = EXPERIMENT.claims(results().assign_attrs(scale="quick"))
    assert not any(claim.asserted for claim in quick)
    full = EXPERIMENT.claims(results().assign_attrs(scale="full"))
    assert [claim.asserted for claim in full] == [claim.asserted for claim in judge(results())]
    assert any(claim.asserted for claim in full)


def test_quick_is_smaller_than_full():
    full, quick = EXPERIMENT.full, EXPERIMENT.quick
    assert (quick.steps < full.steps, quick.lengths.seeds < full.lengths.seeds) == (True, True)
    assert dataclasses.replace(quick.lengths, seeds=30, pairs=500) == full.lengths


def test_the_figure_has_a_column_a_problem_and_a_line_a_method():
    dataset = longer_results()
    figure = EXPERIMENT.draw(dataset)
    figure.draw_without_rendering()
    panels = np.reshape(figure.axes, (4, 3))
    assert [axes.get_title() for axes in panels[0]] == list(TITLES.values())
    assert {axes.get_title() for axes in panels[2]} == {"after 30 steps"}
    assert {axes.get_title() for axes in panels[3]} == {"at the end"}
    (legend,) = figure.legends
    labels = [text.get_text() for text in legend.get_texts()]
    assert labels == [*(plotting.METHOD_LABELS[name] for name in NAMES), "as learned"]
    for column, problem in zip(panels.T, PROBLEMS, strict=True):
        one = dataset.sel(problem=problem).mean("seed")
        for axes, name in zip(column[:2], ("gold", "reference_kl"), strict=True):
            drawn = {line.get_label(): line for line in axes.lines}
            for loss in NAMES:
                line = drawn[plotting.METHOD_LABELS[loss]]
                np.testing.assert_allclose(line.get_ydata(), one[name].sel(loss=loss))
        for axes, step in zip(column[2:], (30, 60), strict=True):
            laws = one["length_probability"].sel(step=step)
            for line, loss in zip(axes.lines, NAMES, strict=True):
                np.testing.assert_allclose(line.get_ydata(), laws.sel(loss=loss))


def test_the_figure_draws_the_learned_reward_of_the_methods_that_follow_it():
    dataset = longer_results()
    panels = np.reshape(EXPERIMENT.draw(dataset).axes, (4, 3))
    named = {plotting.METHOD_LABELS[name] for name in NAMES} | {"as learned"}
    for axes, problem in zip(panels[0], PROBLEMS, strict=True):
        learned = [line for line in axes.lines if line.get_label() not in named]
        for line, loss in zip(learned, ON_POLICY, strict=True):
            expected = dataset["proxy"].sel(problem=problem, loss=loss).mean("seed")
            np.testing.assert_allclose(line.get_ydata(), expected)
            assert line.get_color() == plotting.METHOD_COLORS[loss]


def longer_results():
    """With a step between, of laws of its own."""
    dataset = results()
    middle = dataset.sel(step=[0]).assign_coords(step=[30])
    middle["length_probability"].values = middle["length_probability"].values[..., ::-1]
    return xr.concat([dataset.sel(step=[0]), middle, dataset.sel(step=[60])], "step")
