"""Coverage: the parts of the data, the ends by hand, equality in a table, claims that can fail."""

import itertools

import numpy as np
import pytest
import xarray as xr
from scipy import optimize
from scipy.special import expit, log_expit, softmax

from bandits.losses import METHODS
from bandits.plotting import METHOD_LABELS
from bandits.problems.environments import bump_reward, tanh_cauchy_reference
from bandits.studies.intervals import mean_interval
from bandits.studies.s25.coverage_sweep import CLASSES, SHOWN, SOLVED, USE_DATA, CoverageSweep
from theory.checks import InvalidInput

K, FRACTIONS, SEEDS = 6, (0.3, 0.5, 1.0), 2
OFFLINE = [*USE_DATA, "rlhf"]
HELD = (2, 3, 6)
"""Responses in the data at each fraction."""

STUDY = CoverageSweep(
    num_arms=K, peak=4.0, width=2.0, height=2.0, features=3, fractions=FRACTIONS, seeds=SEEDS,
    steps=400, step=0.1, batch=40,
)  # fmt: skip
BETA, judge = STUDY.beta, CoverageSweep.judge
RUNS = list(itertools.product(range(3), range(SEEDS)))


@pytest.fixture(scope="module")
def measured():
    return STUDY.run()


@pytest.fixture(scope="module")
def bandit():
    """Reward, reference, the optimum and who is preferred to whom."""
    reward = np.asarray(bump_reward(K, 4.0, 2.0, 2.0), np.float64)
    reference = np.exp(np.asarray(tanh_cauchy_reference(K), np.float64))
    optimum = softmax(np.log(reference) + reward / BETA)
    return reward, reference, optimum, expit(reward[:, None] - reward)


@pytest.fixture(scope="module")
def covered(measured, bandit):
    """The part of the responses whose complement has the two masses that the run says."""
    _, reference, optimum, _ = bandit
    parts = {}
    for f, seed in RUNS:
        said = [float(measured[f"{law}_mass"][f, seed]) for law in ("reference", "optimum")]
        fitting = [
            part
            for part in itertools.combinations(range(K), HELD[f])
            if np.allclose([1 - reference[[*part]].sum(), 1 - optimum[[*part]].sum()], said,
                           atol=1e-6)
        ]  # fmt: skip
        assert len(fitting) == 1
        parts[f, seed] = np.isin(np.arange(K), fitting[0])
    return parts


def pairs_of(data, wins):
    return 2 * np.outer(data, data) * wins * (1 - np.eye(K))


def end(measured, name, policy, f, seed):
    one = measured.sel(loss=name, policy=policy).isel(fraction=f, seed=seed)
    return float(one["expected_reward"]), float(one["uncovered_mass"])


def test_no_mass_is_out_of_full_data_and_shares_are_of_the_optimums_reward(measured, bandit):
    assert measured["loss"].values.tolist() == list(METHODS)
    mass = measured["uncovered_mass"]
    assert ((mass >= 0) & (mass <= 1 + 1e-5)).all()
    assert (mass.sel(fraction=1.0) == 0).all()
    assert (mass.sel(fraction=[0.3, 0.5]) > 0).any()
    reward, _, optimum, _ = bandit
    expected = measured["expected_reward"] / (optimum @ reward)
    np.testing.assert_allclose(measured["reward_share"], expected, rtol=1e-5)


def test_the_data_hold_as_many_responses_as_the_fraction_says(covered):
    assert {run: part.sum() for run, part in covered.items()} == {
        (f, seed): HELD[f] for f, seed in RUNS
    }
    assert (covered[0, 0] != covered[0, 1]).any()


def test_methods_are_sorted_by_what_they_learn_from():
    assert SOLVED == ("dpo", "rlhf")
    assert set(USE_DATA) == {
        name for name, method in METHODS.items()
        if method.family in ("likelihood", "contrastive") and not method.on_policy
    }  # fmt: skip
    assert sorted(SHOWN) == sorted({*USE_DATA, "rlhf", "hypo", "online_dpo"})


def test_likelihood_ends_at_the_data_and_at_their_winners(measured, bandit, covered):
    reward, reference, _, wins = bandit
    for run in RUNS:
        data = np.where(covered[run], reference, 0)
        data /= data.sum()
        winners = pairs_of(data, wins).sum(axis=1)
        for name, law in (("supervised", data), ("preference_likelihood", winners / winners.sum())):
            found, outside = end(measured, name, "table", *run)
            assert found == pytest.approx(law @ reward, abs=0.02)
            assert outside < 0.01


@pytest.mark.parametrize("name", SOLVED)
@pytest.mark.parametrize("policy", CLASSES)
def test_dpo_and_rlhf_both_soft_optimise_the_reward_fitted_in_their_class(
    measured, bandit, covered, policy, name
):
    """Of least norm, as a descent from zero finds it, where the data leave it open."""
    reward, reference, _, wins = bandit
    features = np.asarray(STUDY.classes()[policy], np.float64)
    for run in RUNS:
        data = np.where(covered[run], reference, 0)
        pairs = pairs_of(data / data.sum(), wins)
        pairs /= pairs.sum()

        def loss(w, pairs=pairs):
            margins = (features @ w)[:, None] - features @ w
            return -(pairs * log_expit(margins)).sum()

        w = optimize.minimize(loss, np.zeros(K), tol=1e-10).x
        law = softmax(np.log(reference) + features @ w / BETA)
        expected = law @ reward, law[~covered[run]].sum()
        assert end(measured, name, policy, *run) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl", "reinforce", "ppo", "online_dpo"])
def test_methods_that_ask_the_reward_do_not_depend_on_the_data(measured, name):
    share = measured["reward_share"].sel(loss=name)
    np.testing.assert_allclose(share.sel(policy="table"), 1, atol=5e-3)
    assert float(np.ptp(share.sel(policy="shared features").values)) < 1e-4


def test_features_are_a_table_and_evenly_spread_bumps():
    table, shared = map(np.asarray, STUDY.classes().values())
    np.testing.assert_array_equal(table, np.eye(K))
    np.testing.assert_array_equal(shared[:, 3:], 0)
    arms, centres = np.arange(K)[:, None], np.array([0, 2.5, 5])
    np.testing.assert_allclose(shared[:, :3], np.exp(-(((arms - centres) / 3) ** 2)), rtol=1e-5)
    assert np.linalg.matrix_rank(CoverageSweep().classes()["shared features"]) == 6


# Claims


def made():
    """The finding at three fractions, with a little noise for each of five seeds."""
    coords = {
        "loss": list(METHODS), "policy": list(CLASSES), "fraction": list(FRACTIONS),
        "seed": range(5),
    }  # fmt: skip
    dims = list(coords)
    noise = np.random.default_rng(0).uniform(0, 1e-3, (len(METHODS), 2, 3, 5))
    share, mass = (xr.DataArray(noise + base, coords, dims) for base in (0.99, 0.0))
    share.loc[{"loss": OFFLINE, "fraction": 0.3}] -= 0.3
    share.loc[{"loss": "preference_likelihood"}] -= 0.68
    share.loc[{"loss": "rlhf"}] = share.sel(loss="dpo")
    mass.loc[{"loss": ["dpo", "rlhf"], "policy": "table"}] += 0.5
    mass.loc[{"loss": ["dpo", "rlhf"], "policy": "shared features"}] += 0.8
    mass.loc[{"loss": "hypo", "policy": "table"}] += 0.4
    mass.loc[{"fraction": 1.0}] = 0
    of_data = noise[0, 0] + np.array([0.7, 0.5, 0])[:, None]
    return xr.Dataset(
        {
            "reward_share": share,
            "uncovered_mass": mass,
            "reference_mass": (dims[2:], of_data),
            "optimum_mass": (dims[2:], of_data - np.array([0.1, 0.1, 0])[:, None]),
            "reference_share": 0.2,
        }
    )


def test_every_claim_holds_where_the_finding_does_with_intervals_over_seeds():
    dataset = made()
    claims = judge(dataset)
    assert [claim.holds for claim in claims] == [True] * 5
    assert [claim.asserted for claim in claims] == [True] * 4 + [False]
    effects = [claim.effect for claim in claims]
    assert effects == pytest.approx([0.3, 0, 0.3, 0, 0.1], abs=2e-3)
    assert "between 100% and 30% of the responses" in claims[0].statement
    near = [name for name in OFFLINE if name != "preference_likelihood"]
    labels = ", ".join(METHOD_LABELS[name] for name in near)
    assert f"near the optimum ({labels}): share" in claims[0].statement
    share = dataset["reward_share"].sel(loss=near).mean(["loss", "policy"])
    expected = mean_interval((share.sel(fraction=1.0) - share.sel(fraction=0.3)).values)
    assert (claims[0].effect, claims[0].low, claims[0].high) == pytest.approx(expected)
    assert claims[0].note == (
        "The others are never near it; 30% instead of 100% changes their share by: Pref-FT -0.30."
    )
    assert "the optimum has 0.50 of its mass there on average, DPO 0.80 with" in claims[2].note
    assert claims[2].note.endswith("shared features and 0.50 in a table.")
    assert claims[3].note == "At a price: there Pref-FT has 0.21 of the optimum's reward."


CELL = {"fraction": 0.5, "seed": 3}
TABLE, SHARED = {"policy": "table"}, {"policy": "shared features"}
NOT_SURE = 0.69 + xr.DataArray([1.2, 0, 0, 0, -0.3], dims="seed")


@pytest.mark.parametrize(
    ("quantity", "where", "value", "expected"),
    [
        ("reward_share", {"loss": OFFLINE, "fraction": 0.3}, 0.991, [0]),
        ("reward_share", {"loss": OFFLINE, "fraction": 0.3}, 1.1, [0]),
        ("reward_share", {"loss": OFFLINE, "fraction": 1.0}, 0.8, [0]),  # none is near
        ("reward_share", {"loss": OFFLINE, "fraction": 0.3}, NOT_SURE, [0]),  # 0.12 on average
        ("reward_share", {"loss": ["hypo", "online_dpo", "reinforce"]}, 0.1, []),
        ("uncovered_mass", {**SHARED, "loss": "dpo", "fraction": [0.3, 0.5]}, 0.3, [2]),
        ("uncovered_mass", {**SHARED, "loss": "rlhf"}, 0.3, []),
        ("reward_share", {**CELL, **TABLE, "loss": "rlhf"}, 0.97, [1]),
        ("reward_share", {**CELL, **TABLE, "loss": "dpo"}, 1.02, [1]),
        ("reward_share", {**CELL, **SHARED, "loss": "dpo"}, 1.02, [1]),
        ("reward_share", {**SHARED, "loss": ["dpo", "rlhf"], "fraction": 0.5}, 0.6, []),
        ("uncovered_mass", {**CELL, **TABLE, "loss": "supervised"}, 0.011, [3]),
        ("uncovered_mass", {**CELL, **TABLE, "loss": "preference_likelihood"}, 0.011, [3]),
        ("uncovered_mass", {**CELL, **SHARED, "loss": "supervised"}, 0.5, []),
        ("uncovered_mass", {**TABLE, "loss": "hypo", "fraction": [0.3, 0.5]}, 0.9, [4]),
    ],
)
def test_each_finding_that_fails_fails_its_claim_and_no_other(
    failing, quantity, where, value, expected
):
    dataset = made()
    dataset[quantity].loc[where] = value
    assert failing(CoverageSweep, dataset) == expected


@pytest.mark.parametrize("quantity", ["reward_share", "uncovered_mass", "optimum_mass"])
def test_results_that_are_undefined_are_not_judged(quantity):
    dataset = made()
    dataset[quantity].loc[CELL] = np.nan
    with pytest.raises(InvalidInput, match=f"{quantity} is NaN"):
        judge(dataset)


def test_the_figure_has_two_tables_a_class_with_a_row_a_method():
    dataset = made()
    figure = CoverageSweep.draw(dataset)
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == ["reference", "optimum", *(METHOD_LABELS[name] for name in SHOWN)]
    titles = {
        "uncovered_mass": "Mass out of the data", "reward_share": "Share of the optimum's reward",
    }  # fmt: skip
    order = itertools.product(CLASSES, titles)
    for axes, (policy, quantity) in zip(figure.axes, order, strict=True):
        assert axes.get_title() == f"{policy.capitalize()}\n{titles[quantity]}"
        mean = dataset[quantity].sel(policy=policy, loss=list(SHOWN)).mean("seed").values
        if quantity == "uncovered_mass":
            rows = [dataset[f"{law}_mass"].mean("seed") for law in ("reference", "optimum")]
        else:
            rows = [[0.2] * 3, [1.0] * 3]
        expected = np.vstack([*rows, mean])
        assert [text.get_text() for text in axes.texts] == [f"{v:.2f}" for v in expected.ravel()]
        assert [label.get_text() for label in axes.get_xticklabels()] == ["30%", "50%", "100%"]
