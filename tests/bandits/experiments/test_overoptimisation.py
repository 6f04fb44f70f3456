"""Over-optimisation: gold and proxy over the KL by hand, claims that can fail, the figure."""

import dataclasses

import jax
import numpy as np
import pytest
import xarray as xr

from bandits.experiments.lengths import Lengths, draw_pairs, fit_proxy
from bandits.experiments.overoptimisation import EXPERIMENT, Settings, judge
from theory.checks import InvalidInput
from theory.gibbs import gibbs_at_kl

SETTINGS = Settings(
    lengths=Lengths(max_length=8, mode=3.0, temperature=0.3, ridge=1e-2),
    pairs=(20, 60, 200),
    bumps=(3, 5),
    largest=1.5,
    divergences=4,
    seeds=3,
)


@pytest.fixture(scope="module")
def measured():
    return EXPERIMENT.run(SETTINGS)


@pytest.fixture(scope="module")
def bandit():
    return SETTINGS.lengths.bandit("mode")


# The run


def test_results_are_labelled_by_data_and_by_capacity(measured):
    for kind, along, values in (("data", "pairs", [20, 60, 200]), ("capacity", "bumps", [3, 5])):
        for reward in ("gold", "proxy"):
            assert set(measured[f"{reward}_by_{kind}"].dims) == {along, "seed", "kl"}
        assert measured[along].values.tolist() == values
    np.testing.assert_allclose(measured["kl"], [0, 0.5, 1, 1.5])
    assert measured.attrs["middle_pairs"] == 60
    assert measured.attrs["middle_bumps"] == 5


@pytest.mark.parametrize("kind", ["data", "capacity"])
def test_without_pressure_both_rewards_are_the_references(measured, bandit, kind):
    expected = np.exp(bandit.reference_log_probs) @ bandit.reward
    for reward in ("gold", "proxy"):
        found = measured[f"{reward}_by_{kind}"].sel(kl=0)
        np.testing.assert_allclose(found, expected, atol=1e-3)


@pytest.mark.parametrize("kind", ["data", "capacity"])
def test_the_learned_reward_grows_with_pressure_and_the_true_one_stays_below_its_best(
    measured, bandit, kind
):
    assert (measured[f"proxy_by_{kind}"].diff("kl") > -1e-5).all()
    gold, limits = measured[f"gold_by_{kind}"], np.float32(measured["kl"])
    best = np.exp(gibbs_at_kl(bandit.reward, bandit.reference_log_probs, limits)) @ bandit.reward
    assert (gold <= xr.DataArray(best, dims="kl") + 1e-3).all()


@pytest.mark.parametrize("count", [20, 200])
def test_a_run_is_the_best_policy_for_the_reward_of_the_first_pairs(measured, bandit, count):
    most = dataclasses.replace(SETTINGS.lengths, pairs=200, bumps=5)
    gold, reference = np.asarray(bandit.reward), bandit.reference_log_probs
    pairs = draw_pairs(jax.random.key(1), reference, gold, most)
    proxy = 0.3 * np.asarray(fit_proxy(pairs[:count], most.features(), most.ridge))
    policies = np.exp(gibbs_at_kl(proxy, reference, np.float32([0.5, 1.0, 1.5])))
    found = measured.sel(pairs=count, seed=1).isel(kl=slice(1, None))
    np.testing.assert_allclose(found["gold_by_data"], policies @ gold, atol=2e-3)
    start = np.exp(reference)
    expected = (policies - start) @ proxy + start @ gold
    np.testing.assert_allclose(found["proxy_by_data"], expected, atol=2e-3)


# Claims


def made():
    """Gold that rises to a KL of 1 and falls: less with more data; three bumps too few."""
    kl, seeds = np.array([0.0, 1.0, 2.0]), 5
    noise = np.random.default_rng(0).uniform(0, 1e-3, (3, seeds, 1))
    ends = {30: -0.3, 100: -0.2, 300: -0.12}
    by_data = noise + np.array([[[-0.2, -0.1, end]] for end in ends.values()])
    by_capacity = noise + np.array([[[-0.2, -0.1, end]] for end in (-0.3, -0.15, -0.25)])
    rising = np.broadcast_to([-0.2, 0.0, 0.05], (3, seeds, 3)).copy()
    dims = ("seed", "kl")
    return xr.Dataset(
        {
            "gold_by_data": (("pairs", *dims), by_data),
            "proxy_by_data": (("pairs", *dims), rising),
            "gold_by_capacity": (("bumps", *dims), by_capacity),
            "proxy_by_capacity": (("bumps", *dims), rising + 0.01),
        },
        {"pairs": list(ends), "bumps": [3, 6, 12], "seed": range(seeds), "kl": kl},
        {"middle_pairs": 100, "middle_bumps": 6},
    )


def failing(dataset):
    return [i for i, claim in enumerate(judge(dataset)) if not claim.holds]


def test_every_claim_holds_where_the_finding_does():
    claims = judge(made())
    assert [claim.holds for claim in claims] == [True] * 4
    assert [claim.effect for claim in claims] == pytest.approx([0.2, 0.18, 0.15, 0.1], abs=2e-3)
    assert claims[0].note == "The best KL is 1.0 nats."
    assert "30 pairs minus that with 300" in claims[1].statement
    assert "with 6 bumps, the best number, minus that with too few, 3" in claims[2].statement
    assert claims[3].statement.endswith("too many, 12")


@pytest.mark.parametrize(
    ("quantity", "where", "value", "expected"),
    [
        ("gold_by_data", {"pairs": 30, "kl": 2.0}, 0.0, [0, 1]),
        ("gold_by_data", {"pairs": 300, "kl": 2.0}, -0.5, [1]),
        ("gold_by_capacity", {"bumps": 3, "kl": 2.0}, 0.0, [2]),
        ("gold_by_capacity", {"bumps": 12, "kl": 2.0}, 0.0, [3]),
        ("proxy_by_data", {"pairs": 30}, 9.0, []),
        ("proxy_by_capacity", {"bumps": 12}, 9.0, []),
    ],
)
def test_each_finding_that_fails_fails_its_claims_and_no_other(quantity, where, value, expected):
    dataset = made()
    dataset[quantity].loc[where] = value
    assert failing(dataset) == expected


def test_a_fall_that_is_not_sure_fails_its_claims():
    dataset = made()
    dataset["gold_by_data"].loc[{"pairs": 30, "kl": 2.0}] = [-1.5, 0.2, 0.1, 0.2, 0.1]
    claims = judge(dataset)
    assert claims[0].low < 0
    assert failing(dataset) == [0, 1]


@pytest.mark.parametrize("name", list(made().data_vars))
def test_results_that_are_undefined_are_not_judged(name):
    dataset = made()
    dataset[name][0, 3, 1] = np.nan
    with pytest.raises(InvalidInput, match=f"{name} is NaN"):
        judge(dataset)


def test_quick_settings_are_not_vouched_for():
    for scale in ("quick", "full"):
        claims = EXPERIMENT.claims(made().assign_attrs(scale=scale))
        assert [claim.asserted for claim in claims] == [scale == "full"] * 4


# The figure


def test_the_figure_has_true_and_learned_rewards_by_data_and_by_capacity():
    dataset = made()
    figure = EXPERIMENT.draw(dataset)
    figure.draw_without_rendering()
    by_data, by_capacity = figure.axes
    assert by_data.get_title() == "More data, 6 bumps"
    assert by_capacity.get_title() == "More capacity, 100 pairs"
    for axes, kind, unit in ((by_data, "data", "pairs"), (by_capacity, "capacity", "bumps")):
        assert axes.get_xlabel() == "KL(policy‖reference), nats"
        labels = [text.get_text() for text in axes.get_legend().get_texts()]
        assert labels == [*(f"{v} {unit}" for v in dataset[unit].values), "as learned"]
        for i in range(3):
            gold, proxy = axes.lines[2 * i : 2 * i + 2]
            for line, reward in ((gold, "gold"), (proxy, "proxy")):
                mean = dataset[f"{reward}_by_{kind}"].isel({unit: i}).mean("seed")
                np.testing.assert_allclose(line.get_ydata(), mean)
            assert (gold.get_linestyle(), proxy.get_linestyle()) == ("-", ":")
