"""Policy and reward model on the length problems: a small run, and claims that can fail."""

import dataclasses
import itertools

import numpy as np
import pytest
import xarray as xr
from matplotlib.container import BarContainer

from bandits import plotting
from bandits.studies.t24 import length_models
from bandits.studies.t24.length_models import (
    EXPERIMENT,
    NAMES,
    OFFLINE,
    ON_POLICY,
    PROBLEMS,
    Settings,
    judge,
)
from bandits.studies.t24.lengths import POLICIES, REWARD_MODELS, TITLES, Lengths
from theory.checks import InvalidInput

TINY = Lengths(max_length=6, mode=3.0, cut=3, pairs=40, bumps=4, width=3, widths=(4,), seeds=2)
FEWER = ("dpo",), ("ppo",), ("dpo", "ppo")
MODELS = list(itertools.product(POLICIES, REWARD_MODELS))
PROMISE = 2 * len(MODELS)
each_model = pytest.mark.parametrize("model", MODELS, ids=" ".join)


@pytest.fixture(scope="module")
def measured():
    """Two of the methods, and a recurrent policy that hardly moves."""
    with pytest.MonkeyPatch.context() as patch:
        for name, methods in zip(("OFFLINE", "ON_POLICY", "NAMES"), FEWER, strict=True):
            patch.setattr(length_models, name, methods)
        settings = Settings(lengths=TINY, learning_rates=(0.03, 1e-7), steps=8, batch=40, passes=2)
        return EXPERIMENT.run(settings)


def test_a_small_run_has_every_policy_reward_model_problem_and_seed(measured):
    assert dict(measured["gold"].sizes) == {
        "policy": 2, "reward_model": 2, "loss": 2, "problem": 2, "seed": 2,
    }  # fmt: skip
    assert dict(measured["proxy"].sizes) == {
        "policy": 2, "reward_model": 2, "trained_against": 1, "problem": 2, "seed": 2,
    }  # fmt: skip
    assert tuple(measured["policy"].values) == POLICIES
    assert tuple(measured["reward_model"].values) == REWARD_MODELS
    assert tuple(measured["problem"].values) == PROBLEMS
    assert tuple(measured["loss"].values) == FEWER[-1]
    assert tuple(measured["trained_against"].values) == FEWER[1]
    assert not any(values.isnull().any() for values in measured.data_vars.values())


def test_only_methods_with_a_reward_model_depend_on_it(measured):
    bumps, network = (measured["gold"].sel(reward_model=name) for name in REWARD_MODELS)
    np.testing.assert_array_equal(bumps.sel(loss="dpo"), network.sel(loss="dpo"))
    moved = abs(bumps - network).sel(loss="ppo", policy="hazard_table")
    assert (moved > 1e-5).all()


def test_each_policy_takes_steps_of_its_own_size(measured):
    """That of the recurrent one is next to nothing in this run: it stays at the reference."""
    reference = np.exp(TINY.bandit("min").reference_log_probs)
    start = float(reference @ TINY.bandit("min").reward)  # Skew's reward is the same
    moved = abs(measured["gold"] - start)
    assert (moved.sel(policy="recurrent") < 1e-4).all()
    assert (moved.sel(policy="hazard_table") > 1e-3).all()


# Claims, on finals that are set by hand


def results(changes=(), seeds=4):
    """With every model Pref-FT worst and online DPO best; networks promise more, on Skew alone."""
    coords = {
        "policy": list(POLICIES),
        "reward_model": list(REWARD_MODELS),
        "loss": list(NAMES),
        "problem": list(PROBLEMS),
        "seed": range(seeds),
    }
    shape = [len(values) for values in coords.values()]
    gold = xr.DataArray(np.full(shape, -0.2), coords, list(coords))
    gold.loc[{"loss": "online_dpo"}] = -0.1
    gold.loc[{"loss": "preference_likelihood"}] = -0.39
    for where, value in changes:
        gold.loc[where] = value
    gold += np.random.default_rng(0).normal(0, 1e-3, shape)
    proxy = gold.sel(loss=list(ON_POLICY)).rename(loss="trained_against").copy()
    proxy.loc[{"reward_model": "network", "problem": "skew"}] += 0.1
    proxy.loc[{"reward_model": "network", "problem": "min"}] -= 0.5
    return xr.Dataset({"gold": gold, "proxy": proxy})


def failing_of(dataset):
    return [i for i, claim in enumerate(judge(dataset)) if not claim.holds]


def at(model, loss):
    return {"policy": model[0], "reward_model": model[1], "loss": loss}


def test_every_claim_holds_where_the_finding_does():
    claims = judge(results())
    assert [claim.holds for claim in claims] == [True] * (PROMISE + 1)
    assert [claim.effect for claim in claims] == pytest.approx(
        [0.19, 0.1] * len(MODELS) + [0.1], abs=0.005
    )
    for i, (policy, model) in enumerate(MODELS):
        labels = length_models.LABELS[policy], length_models.LABELS[model]
        assert "{} policy, {} reward".format(*labels) in claims[2 * i].statement


@each_model
def test_pref_ft_that_is_not_worst_with_one_model_fails_that_claim_alone(model):
    changes = [(at(model, "preference_likelihood"), -0.15)]
    assert failing_of(results(changes)) == [2 * MODELS.index(model)]


@each_model
@pytest.mark.parametrize("rival", ["dpo", "best_of_n", "ppo"])
def test_a_method_worse_than_pref_ft_fails_that_claim_alone_and_is_named(model, rival):
    dataset = results([(at(model, rival), -0.45)])
    assert failing_of(dataset) == [2 * MODELS.index(model)]
    assert plotting.METHOD_LABELS[rival] in judge(dataset)[2 * MODELS.index(model)].statement


@each_model
@pytest.mark.parametrize("rival", ["dpo", "best_of_n", "ppo"])
def test_a_method_better_than_online_dpo_fails_that_claim_alone_and_is_named(model, rival):
    dataset = results([(at(model, rival), -0.05)])
    place = 2 * MODELS.index(model) + 1
    assert failing_of(dataset) == [place]
    assert plotting.METHOD_LABELS[rival] in judge(dataset)[place].statement


def test_online_dpo_within_half_a_token_of_the_best_still_holds():
    model = MODELS[1]
    assert failing_of(results([(at(model, "ppo"), -0.09)])) == []
    assert judge(results([(at(model, "ppo"), -0.09)]))[3].effect == pytest.approx(-0.01, abs=0.005)


@pytest.mark.parametrize("place", [0, 1])
def test_an_order_that_is_not_sure_does_not_hold(place):
    dataset = results()
    loss = ("preference_likelihood", "online_dpo")[place]
    noise = np.array([0.8, -0.8, 0.8, -0.8])
    where = at(MODELS[0], loss)
    dataset["gold"].loc[where] += noise
    if loss in ON_POLICY:  # the promise comes true
        dataset["proxy"].loc[{"trained_against": where.pop("loss"), **where}] += noise
    assert failing_of(dataset) == [place]


@pytest.mark.parametrize("less", [0.1, 0.2], ids=["as much", "less"])
def test_networks_that_promise_no_more_on_skew_fail_that_claim_alone(less):
    dataset = results()
    dataset["proxy"].loc[{"reward_model": "network", "problem": "skew"}] -= less + np.array(
        [0.01, -0.01, 0.01, -0.01]
    )
    dataset["proxy"].loc[{"reward_model": "network", "problem": "min"}] += 9.0
    assert failing_of(dataset) == [PROMISE]


def test_a_promise_that_comes_true_is_no_excess():
    """The learned reward of networks is as much higher as the true one that they lead to."""
    changes = [({"reward_model": "network", "loss": list(ON_POLICY)}, 0.5)]
    dataset = results(changes)
    dataset["proxy"].loc[{"problem": "skew", "reward_model": "network"}] -= 0.15
    claim = judge(dataset)[PROMISE]
    assert not claim.holds
    assert claim.effect == pytest.approx(-0.05, abs=0.005)


@each_model
@pytest.mark.parametrize("name", ["gold", "proxy"])
def test_results_that_are_nan_are_not_judged(name, model):
    dataset = results()
    loss = {"gold": "loss", "proxy": "trained_against"}[name]
    where = {"policy": model[0], "reward_model": model[1], loss: "ppo", "problem": "min"}
    dataset[name].loc[{**where, "seed": 0}] = np.nan
    with pytest.raises(InvalidInput, match=f"^{name} is NaN in some runs"):
        judge(dataset)


def test_nothing_of_it_is_vouched_for():
    full = EXPERIMENT.claims(results().assign_attrs(scale="full"))
    assert not any(claim.asserted for claim in full)


def test_quick_is_smaller_than_full():
    full, quick = EXPERIMENT.full, EXPERIMENT.quick
    for smaller, larger in (
        (quick.steps, full.steps),
        *(
            (getattr(quick.lengths, name), getattr(full.lengths, name))
            for name in ("max_length", "seeds", "pairs", "bumps", "width")
        ),
    ):
        assert smaller < larger
    # All else is that of the full one.
    lengths = dataclasses.asdict(full.lengths)
    kept = dataclasses.replace(quick.lengths, **{
        name: lengths[name]
        for name in ("max_length", "mode", "cut", "seeds", "pairs", "bumps", "width")
    })  # fmt: skip
    assert dataclasses.replace(quick, lengths=kept, steps=full.steps) == full


def test_the_figure_has_a_panel_a_problem_and_a_bar_a_method_and_model():
    dataset = results([(at(model, "ppo"), -0.2 - 0.01 * i) for i, model in enumerate(MODELS)])
    dataset["gold"].loc[{"problem": "skew"}] -= 0.3
    figure = EXPERIMENT.draw(dataset)
    figure.draw_without_rendering()
    assert [axes.get_title() for axes in figure.axes] == [TITLES[name] for name in PROBLEMS]
    (legend,) = figure.legends
    labels = [text.get_text() for text in legend.get_texts()]
    assert labels == [plotting.METHOD_LABELS[name] for name in OFFLINE + ON_POLICY]
    for axes, problem in zip(figure.axes, PROBLEMS, strict=True):
        ticks = [label.get_text() for label in axes.get_xticklabels()]
        assert ticks == [
            "table\nbumps reward", "table\nnetwork reward",
            "recurrent\nbumps reward", "recurrent\nnetwork reward",
        ]  # fmt: skip
        bars = [c for c in axes.containers if isinstance(c, BarContainer)]
        for row, loss in zip(bars, NAMES, strict=True):
            heights = [bar.get_height() for bar in row]
            means = [
                dataset["gold"].sel(problem=problem, **at(model, loss)).mean() for model in MODELS
            ]
            np.testing.assert_allclose(heights, means)
        # No two bars overlap.
        edges = sorted((bar.get_x(), bar.get_x() + bar.get_width()) for row in bars for bar in row)
        assert all(left[1] < right[0] for left, right in itertools.pairwise(edges))
