"""The length problems: a small run, and claims that can fail."""

import dataclasses

import numpy as np
import pytest
import xarray as xr

from bandits import plotting
from bandits.experiments import length_problems
from bandits.experiments.length_problems import EXPERIMENT, NAMES, ON_POLICY, Settings, judge
from bandits.experiments.lengths import PROBLEMS, TITLES, Lengths
from bandits.metrics import DIVERGED_AT
from theory.checks import InvalidInput

TINY = Lengths(max_length=6, mode=3.0, cut=3, pairs=40, bumps=4, seeds=2)
FEWER = ("dpo",), ("ppo", "online_dpo"), ("dpo", "ppo", "online_dpo")
ALL_ALIKE = 4


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
    """Online DPO best and Pref-FT worst on Min and Skew, all alike on Mode, gains less on Skew."""
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
    law = np.random.default_rng(1).dirichlet(np.ones(7), gold.shape)
    coords = {**coords, "length": range(7)}
    return xr.Dataset({"gold": gold, "length_probability": xr.DataArray(law, coords, list(coords))})


def test_every_claim_holds_where_the_finding_does():
    claims = judge(results())
    assert [claim.holds for claim in claims] == [True] * 6
    effects = [0.1, 0.19, 0.1, 0.14, 0.0, 0.05]
    assert [claim.effect for claim in claims] == pytest.approx(effects, abs=0.005)
    assert "Min" in claims[0].statement
    assert "Skew" in claims[2].statement
    assert "The worst is Pref-FT, -0.39; Pref-FT ends at -0.39." in claims[1].note
    assert "The spread on Min is 0.29, on Skew 0.24." in claims[4].note


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
    claims = judge(results(changes))
    assert [i for i, claim in enumerate(claims) if not claim.holds] == failing


def test_skewed_data_that_cost_no_method_fail_their_claim():
    dataset = results()
    dataset["gold"].loc[{"problem": "skew"}] = dataset["gold"].sel(problem="min").values
    assert [claim.holds for claim in judge(dataset)] == [True] * 5 + [False]


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


def about(problem):
    return {"min": [0, 1, 5], "skew": [2, 3, 5], "mode": [4]}[problem]


@pytest.mark.parametrize("seeds", [slice(0, 1), slice(None)], ids=["one seed", "all seeds"])
@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("loss", ["online_dpo", "ppo", "preference_likelihood"])
def test_nan_does_not_hold(problem, loss, seeds):
    dataset = results()
    dataset["gold"][{"seed": seeds}].loc[{**at(problem, loss), "step": 60}] = np.nan
    try:
        claims = judge(dataset)
    except InvalidInput:
        return
    affected = [i for i in about(problem) if i != 5 or loss in ON_POLICY]
    assert not any(claims[i].holds for i in affected)


def test_quick_settings_are_not_vouched_for():
    quick = EXPERIMENT.claims(results().assign_attrs(scale="quick"))
    assert not any(claim.asserted for claim in quick)
    full = EXPERIMENT.claims(results().assign_attrs(scale="full"))
    assert [claim.asserted for claim in full] == [claim.asserted for claim in judge(results())]
    assert any(claim.asserted for claim in full)


def test_quick_is_smaller_than_full():
    full, quick = EXPERIMENT.full, EXPERIMENT.quick
    assert (quick.steps < full.steps, quick.lengths.seeds < full.lengths.seeds) == (True, True)
    assert dataclasses.replace(quick.lengths, seeds=10, pairs=500) == full.lengths


def test_the_figure_has_a_column_a_problem_and_a_line_a_method():
    figure = EXPERIMENT.draw(results())
    figure.draw_without_rendering()
    assert len(figure.axes) == 6
    assert [axes.get_title() for axes in figure.axes[:3]] == list(TITLES.values())
    for axes in figure.axes:
        assert len(axes.lines) == len(NAMES)
    (legend,) = figure.legends
    labels = [text.get_text() for text in legend.get_texts()]
    assert labels == [plotting.METHOD_LABELS[name] for name in NAMES]
    for axes, problem in zip(figure.axes[:3], PROBLEMS, strict=True):
        ends = results()["gold"].sel(problem=problem, loss="ppo").mean("seed")
        np.testing.assert_allclose(axes.lines[NAMES.index("ppo")].get_ydata(), ends)
