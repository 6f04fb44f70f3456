"""The generation–verification gap: each learner solved again, labels, orders, failing claims."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize
from scipy.special import expit, log_expit, log_softmax, softmax

from bandits.policies import all_sequences
from bandits.studies.s25.generation_verification_gap import (
    DPO_ALL,
    DPO_PRODUCT,
    LEARNERS,
    PANELS,
    RLHF_ADDITIVE,
    RLHF_TABLE,
    STYLES,
    GenerationVerificationGap,
    _accuracy,
)
from theory.checks import InvalidInput
from theory.generation_verification import token_features

STUDY = GenerationVerificationGap(
    values=2, length=3, token_values=5, pairs=(20, 200), other_scales=(1.0, 4.0), judged=200,
    best_of=3, steps=120, seeds=3,
)  # fmt: skip
BETA, RIDGE = STUDY.beta, 0.01


@pytest.fixture(scope="module")
def measured():
    return STUDY.run()


@jax.jit
def learn(pairs, weights, features):
    study = dataclasses.replace(STUDY, steps=2000, learning_rate=0.05)
    return study._learn(pairs, weights, jnp.asarray(RIDGE), features)


def learned_from(pairs, weights, features):
    with jax.enable_x64(True):
        return np.asarray(learn(pairs, weights, features))


@pytest.fixture(scope="module")
def problem():
    """40 pairs of 8 sequences, winner first, and what each learner makes of them."""
    random = np.random.default_rng(3)
    features = np.asarray(token_features(all_sequences(2, 3), 2), np.float64)
    rewards = features @ random.normal(0, 2, 6)
    drawn = random.integers(0, 8, (40, 2))
    right = random.random(40) < expit(rewards[drawn[:, 0]] - rewards[drawn[:, 1]])
    pairs = np.where(right[:, None], drawn, drawn[:, ::-1])
    weights = np.full(40, 1 / 40)
    return pairs, weights, features, learned_from(pairs, weights, features)


def bradley_terry(rewards, pairs):
    return -log_expit(rewards[pairs[:, 0]] - rewards[pairs[:, 1]]).mean()


def dpo(rewards, pairs):
    """On the policies that are optimal for rewards; a uniform reference cancels."""
    return bradley_terry(BETA * log_softmax(rewards / BETA), pairs)


def solve(loss, size):
    start = np.zeros(size)
    options = {"ftol": 1e-15, "gtol": 1e-10, "maxiter": 5000, "maxfun": 10**6}
    return optimize.minimize(
        lambda w: loss(w) + RIDGE / 2 * w @ w, start, method="L-BFGS-B", options=options
    ).x


@pytest.mark.parametrize(
    ("learner", "loss", "is_table"),
    [
        (RLHF_ADDITIVE, bradley_terry, False),
        (DPO_PRODUCT, dpo, False),
        (RLHF_TABLE, bradley_terry, True),
        (DPO_ALL, dpo, True),
    ],
)
def test_every_learner_minimises_its_loss_with_the_prior(problem, learner, loss, is_table):
    pairs, _, features, learned = problem
    found = learned[LEARNERS.index(learner)]
    design = np.eye(8) if is_table else features
    expected = design @ solve(lambda w: loss(design @ w, pairs), design.shape[1])
    # The policy is what counts: a constant of the reward does not.
    np.testing.assert_allclose(softmax(found / BETA), softmax(expected / BETA), atol=1e-5)
    np.testing.assert_allclose(found - found.mean(), expected - expected.mean(), atol=2e-4)


def test_pairs_without_weight_teach_nothing(problem):
    pairs, weights, features, learned = problem
    half = np.where(np.arange(40) < 20, 2 * weights, 0)
    found = learned_from(pairs, half, features)
    others = np.where(np.arange(40)[:, None] < 20, pairs, pairs[::-1, ::-1])
    np.testing.assert_allclose(learned_from(others, half, features), found, atol=1e-9)
    assert np.abs(found - learned).max() > 0.1


@jax.jit
def draw_rewards(keys, kind):
    features = jnp.asarray(token_features(all_sequences(4, 3), 4))
    return jax.vmap(lambda key: STUDY._true_reward(key, kind, features))(keys)


@pytest.mark.parametrize("kind", [0, 1])
def test_both_true_rewards_have_a_variance_of_one_a_token(kind):
    rewards = np.asarray(draw_rewards(jax.random.split(jax.random.key(0), 300), kind))
    np.testing.assert_allclose(rewards.var(axis=0).mean(), 3, rtol=0.05)
    # Additive rewards of sequences that share tokens go together, those of a table do not.
    additive = np.abs(np.linalg.svd(rewards)[1][10:]).max() < 1e-3
    assert additive == (kind == 0)


def brute_force_accuracy(learned, reward, pairs):
    points = []
    for a, b in pairs:
        if reward[a] == reward[b]:
            continue
        better, worse = (a, b) if reward[a] > reward[b] else (b, a)
        gap = learned[better] - learned[worse]
        points.append(1.0 if gap > 0 else 0.5 if gap == 0 else 0.0)
    return np.mean(points) if points else 0.0


@given(st.integers(0, 2**32 - 1))
def test_accuracy_is_that_of_brute_force(seed):
    random = np.random.default_rng(seed)
    learned, reward = random.integers(0, 3, (4, 5)), random.integers(0, 3, 5)
    pairs = random.integers(0, 5, (7, 2))
    found = _accuracy(jnp.asarray(learned), jnp.asarray(reward), jnp.asarray(pairs))
    expected = [brute_force_accuracy(one, reward, pairs) for one in learned]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_shares_and_accuracies_of_a_small_run_are_in_range(measured):
    assert measured["accuracy"].dims == ("problem", "pairs", "seed", "judged_on", "learner")
    assert (abs(measured["share"]) < 2).all()
    assert ((measured["accuracy"] >= 0) & (measured["accuracy"] <= 1)).all()
    # Of a reward of several nats most labels are right.
    assert ((measured["label_accuracy"] > 0.5) & (measured["label_accuracy"] <= 1)).all()
    assert (measured.policy_parameters, measured.reward_parameters) == (7, 3)


def test_noisier_labellers_are_the_same_problem_at_other_scales(measured):
    """Of the scale of the settings at 200 pairs they are what the first panel shows."""
    at, scale = {"problem": "simple", "pairs": 200}, {"scale": STUDY.reward_scale}
    for name in ("share", "label_accuracy"):
        found = measured[f"noisier_{name}"]
        assert found.dims[:2] == ("scale", "seed")
        np.testing.assert_allclose(found.sel(scale), measured[name].sel(at), atol=1e-5)
    labels = measured["noisier_label_accuracy"]
    assert (labels.sel(scale=1.0) < labels.sel(scale=4.0)).all()


def test_more_pairs_teach_more_and_labels_are_the_right_way_round(measured):
    share = measured["share"].mean("seed")
    assert (share.sel(pairs=200) > 0.8).sel(problem=["simple", "one token"]).all()
    simple = share.sel(problem="simple", learner=RLHF_ADDITIVE)
    assert float(simple.sel(pairs=200)) > float(simple.sel(pairs=20)) - 0.02
    accuracy = measured["accuracy"].sel(pairs=200, judged_on="data's law").mean("seed")
    assert (accuracy.sel(problem=["simple", "one token"]) > 0.8).all()


def test_the_learners_of_one_class_agree_and_an_additive_reward_cannot_learn_a_table(measured):
    first, product, table, large = (measured["share"].sel(learner=n, drop=True) for n in LEARNERS)
    np.testing.assert_allclose(product, first, atol=1e-4)
    np.testing.assert_allclose(large, table, atol=1e-3)
    gap = large - first
    np.testing.assert_allclose(gap.sel(problem="one token"), 0, atol=0.01)
    assert float(gap.sel(problem="random", pairs=200).mean("seed")) > 0.02


# Claims

SMALL, LARGE = [RLHF_ADDITIVE, DPO_PRODUCT], [RLHF_TABLE, DPO_ALL]
SHARES = {
    "simple": [0.99, 0.99, 0.2, 0.2],
    "random": [0.1, 0.1, 0.4, 0.4],
    "one token": [0.9] * 4,
}


def made():
    """At about 200 pairs, where it counts, with a little noise for each of four seeds."""
    values = np.full((3, 3, 4, 4), 0.5)
    values[:, 1] = np.array(list(SHARES.values()))[:, None]
    values += np.random.default_rng(0).normal(0, 1e-3, (3, 3, 4, 1))
    coords = {
        "problem": list(PANELS), "pairs": [50, 180, 800], "seed": range(4),
        "learner": list(LEARNERS),
    }  # fmt: skip
    share = xr.DataArray(values, coords, list(coords))
    noisier = np.broadcast_to([[[0.97, 0.97, 0.5, 0.5]], [[0.98, 0.98, 0.3, 0.3]]], (2, 4, 4))
    return xr.Dataset(
        {
            "share": share,
            "label_accuracy": xr.full_like(share.isel(learner=0, drop=True), 0.91),
            "noisier_share": (("scale", "seed", "learner"), noisier),
            "noisier_label_accuracy": (("scale", "seed"), [[0.7] * 4, [0.83] * 4]),
        },
        coords={"scale": [1.0, 2.0]},
        attrs={"policy_parameters": 1023, "reward_parameters": 15},
    )


def test_every_claim_holds_where_the_finding_does_and_is_vouched_for():
    claims = GenerationVerificationGap.judge(made())
    assert [claim.holds and claim.asserted for claim in claims] == [True] * 5
    assert [claim.effect for claim in claims] == pytest.approx([0.99, 0.2, -0.3, 0, 0], abs=0.005)
    assert all("180 pairs" in claim.statement for claim in claims[:2])
    assert claims[0].note == (
        "The labeller is right on 91% of pairs. With one right on 70%, RLHF 0.97 and DPO 0.50; one "
        "right on 83%, RLHF 0.98 and DPO 0.30."
    )
    assert "1,023 free parameters, the reward has 15" in claims[1].note


ONE_SEED = xr.DataArray([0, 0, -0.02, 0], dims="seed")
SPREAD = xr.DataArray([1, -1, 1, -1], dims="seed")


@pytest.mark.parametrize(
    ("problem", "learners", "change", "expected"),
    [
        ("simple", SMALL, 0.0, []),
        ("simple", SMALL, -0.02, [0]),
        ("simple", LARGE, 0.11, [1]),
        ("random", SMALL, 0.3, [2]),
        ("random", SMALL, 0.5, [2]),
        ("random", SMALL, 0.6 * SPREAD, [2]),
        ("one token", SMALL, 0.02, [3]),
        ("one token", SMALL, -0.02, [3]),
        ("one token", SMALL, 0.02 * SPREAD, [3]),
        *(
            (problem, [learner], change, [4])
            for problem in PANELS
            for learner in (DPO_PRODUCT, RLHF_TABLE)
            for change in (0.02, -0.02, ONE_SEED, np.nan)
        ),
    ],
)
def test_each_finding_that_fails_fails_its_claim_and_no_other(
    failing, problem, learners, change, expected
):
    dataset = made()
    dataset["share"].loc[{"pairs": [50, 800]}] = 0.0  # numbers of pairs that do not count
    dataset["share"].loc[{"problem": problem, "pairs": 180, "learner": learners}] += change
    assert failing(GenerationVerificationGap, dataset) == expected


@pytest.mark.parametrize("learner", [RLHF_ADDITIVE, DPO_ALL])
@pytest.mark.parametrize("problem", PANELS)
def test_a_gap_that_is_undefined_is_not_judged(problem, learner):
    dataset = made()
    dataset["share"].loc[{"problem": problem, "pairs": 180, "learner": learner, "seed": 1}] = np.nan
    with pytest.raises(InvalidInput, match="finite"):
        GenerationVerificationGap.judge(dataset)


def test_the_figure_has_a_panel_a_problem_and_a_line_a_learner():
    figure = GenerationVerificationGap.draw(made())
    for axes, title in zip(figure.axes, PANELS.values(), strict=True):
        assert axes.get_title() == title
        lines = {a.get_label(): (a.get_color(), a.get_linestyle()) for a in axes.lines[:4]}
        assert lines == STYLES
        assert len(axes.collections) == 4
        assert [label.get_text() for label in axes.get_xticklabels()] == ["50", "180", "800"]
    line = figure.axes[0].lines[0]
    np.testing.assert_allclose(line.get_ydata(), [0.5, 0.99, 0.5], atol=0.003)
