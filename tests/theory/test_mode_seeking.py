import itertools
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from scipy import special

from theory import gibbs, mode_seeking
from theory.checks import InvalidInput

pytestmark = pytest.mark.usefixtures("float64")

seeds = st.integers(0, 2**32 - 1)
weights = st.floats(0.0, 5.0)


def random_log_probs(seed, shape, scale=2.0):
    return special.log_softmax(scale * np.random.default_rng(seed).normal(size=shape), axis=-1)


def random_problem(seed, num_arms=5):
    """A policy, a reference, rewards and β."""
    rng = np.random.default_rng(seed + 1)
    policy, reference = random_log_probs(seed, num_arms), random_log_probs(seed + 2, num_arms)
    return policy, reference, rng.normal(size=num_arms), rng.uniform(0.1, 2)


def random_pair(seed, num_arms):
    winner, loser = np.random.default_rng(seed).choice(num_arms, size=2, replace=False)
    return int(winner), int(loser)


score_rows = jax.jit(jax.jacobian(jax.nn.log_softmax))


def scores(log_probs):
    """∇log p(y) in the logits, a row for each arm y, by autodiff."""
    return np.asarray(score_rows(jnp.asarray(log_probs)))


# Lemma 6.1


@pytest.mark.parametrize("seed", range(5))
def test_gradients_are_those_of_the_regularised_objective_and_of_the_reverse_kl(seed):
    log_probs, reference, reward, beta = random_problem(seed)

    def reverse_kl(logits):
        p = jnp.exp(logits) / jnp.exp(logits).sum()
        return (p * (jnp.log(p) - reference)).sum()

    def objective(logits):
        return jnp.exp(logits) @ reward / jnp.exp(logits).sum() - beta * reverse_kl(logits)

    found = mode_seeking.policy_gradient(log_probs, reward, reference, beta)
    assert_allclose(found, jax.grad(objective)(log_probs), rtol=1e-9, atol=1e-12)
    found = mode_seeking.reverse_kl_gradient(log_probs, reference)
    assert_allclose(found, jax.grad(reverse_kl)(log_probs), rtol=1e-9, atol=1e-12)


@given(seeds)
def test_policy_gradient_is_reverse_kl_towards_the_gibbs_policy(seed):
    log_probs, reference, reward, beta = random_problem(seed)
    target = gibbs.gibbs_log_probs(reward, reference, beta)
    found = mode_seeking.policy_gradient(log_probs, reward, reference, beta)
    expected = -beta * mode_seeking.reverse_kl_gradient(log_probs, target)
    assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


def test_policy_gradient_vanishes_at_the_gibbs_policy_and_not_elsewhere():
    log_probs, reference, reward, beta = random_problem(0)
    target = gibbs.gibbs_log_probs(reward, reference, beta)
    at_optimum = mode_seeking.policy_gradient(target, reward, reference, beta)
    elsewhere = mode_seeking.policy_gradient(log_probs, reward, reference, beta)
    assert_allclose(at_optimum, 0.0, atol=1e-14)
    assert np.abs(elsewhere).max() > 0.01


def test_an_arm_the_policy_excludes_leaves_the_gradients_of_the_others_alone():
    log_probs, reference, reward, beta = random_problem(3, num_arms=3)
    wide_policy = np.append(log_probs, -np.inf)
    wide_reward = np.append(reward, 100.0)
    # On an arm with no mass it makes no difference whether the reference has any.
    for last in (-np.inf, np.log(0.5)):
        wide_reference = np.append(reference + np.log1p(-np.exp(last)), last)
        narrow_reference = wide_reference[:3]
        p = np.exp(log_probs)
        a = reward - beta * (log_probs - narrow_reference)
        expected = np.append(p * (a - p @ a), 0.0)
        found = mode_seeking.policy_gradient(wide_policy, wide_reward, wide_reference, beta)
        assert_allclose(found, expected, rtol=1e-12, atol=1e-14)
        d = log_probs - narrow_reference
        found = mode_seeking.reverse_kl_gradient(wide_policy, wide_reference)
        expected = np.append(p * (d - p @ d), 0.0)
        assert_allclose(found, expected, rtol=1e-12, atol=1e-14)


def test_a_reference_below_the_smallest_float_is_not_taken_for_an_excluded_arm():
    log_probs = np.log([0.5, 0.5])
    gradient = mode_seeking.reverse_kl_gradient(log_probs, np.array([0.0, -800.0]))
    # log p/q is (−log 2, 800 − log 2): 400 either side of its mean, times p.
    assert_allclose(gradient, [-200.0, 200.0])


@pytest.mark.parametrize("seed", range(5))
def test_weighted_likelihood_on_own_samples_is_the_policy_gradient_of_the_weight(seed):
    log_probs = random_log_probs(seed, 5)
    held = np.random.default_rng(seed).normal(size=5)
    found = mode_seeking.weighted_likelihood_gradient(log_probs, held)
    expected_score = (np.exp(log_probs) * held) @ scores(log_probs)
    of_the_mean = jax.grad(lambda logits: jax.nn.softmax(logits) @ held)(log_probs)
    assert_allclose(found, expected_score, rtol=1e-9, atol=1e-13)
    assert_allclose(found, of_the_mean, rtol=1e-9, atol=1e-13)


# Best of N


def enumerate_best_of_n(p, reward, n):
    """The law of the best of n draws, over all Kⁿ draws; ties kept at random."""
    law = np.zeros(len(p))
    for draws in itertools.product(range(len(p)), repeat=n):
        best = max(reward[arm] for arm in draws)
        kept = Counter(arm for arm in draws if reward[arm] == best)
        for arm, count in kept.items():
            law[arm] += np.prod([p[arm] for arm in draws]) * count / kept.total()
    return law


@pytest.mark.parametrize("n", [1, 2, 3, 5])
@pytest.mark.parametrize(
    "reward",
    [[0.3, -1.0, 2.0, 0.5], [1.0, 0.0, 1.0, 0.0], [0.0, 1.0, 1.0, 1.0], [2.0, 2.0, 2.0, 2.0]],
    ids=["distinct", "two pairs", "three at the top", "all equal"],
)
def test_best_of_n_is_what_enumerating_every_draw_gives(reward, n):
    p = np.array([0.15, 0.4, 0.25, 0.2])
    found = np.exp(mode_seeking.best_of_n_log_probs(np.log(p), reward, n))
    law = enumerate_best_of_n(p, reward, n)
    assert_allclose(found, law, rtol=1e-12)
    gradient = mode_seeking.best_of_n_gradient(np.log(p), reward, n)
    assert_allclose(gradient, law @ scores(np.log(p)), rtol=1e-9, atol=1e-13)
    as_weights = mode_seeking.weighted_likelihood_gradient(np.log(p), law / p)
    assert_allclose(gradient, as_weights, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("n", [1, 3])
def test_best_of_n_never_returns_excluded_arms(n):
    p = np.array([0.0, 0.3, 0.0, 0.7, 0.0])
    reward = np.array([-1.0, 0.0, 0.0, 1.0, 2.0])
    found = np.exp(mode_seeking.best_of_n_log_probs(np.log(p), reward, n))
    assert_allclose(found, [0.0, 0.3**n, 0.0, 1 - 0.3**n, 0.0], rtol=1e-12)


@given(seeds, st.integers(2, 12), st.integers(1, 10**6))
def test_best_of_n_is_a_distribution_that_favours_reward(seed, num_arms, n):
    log_probs = random_log_probs(seed, num_arms)
    reward = np.random.default_rng(seed).integers(0, 4, size=num_arms).astype(float)
    found = np.asarray(mode_seeking.best_of_n_log_probs(log_probs, reward, n))
    assert_allclose(np.exp(found).sum(), 1.0, rtol=1e-9)
    log_weight = found - log_probs
    order = np.argsort(reward, kind="stable")
    assert (np.diff(log_weight[order]) >= -1e-9).all()
    for level in np.unique(reward):
        assert_allclose(np.ptp(log_weight[reward == level]), 0.0, atol=1e-9)


def test_best_of_n_keeps_arms_that_no_float_can_tell_from_zero(float32):
    # F and F⁻ agree in float32 on the middle arm; its law is p n F^(n−1) to first order.
    log_probs = np.array([np.log(0.5), -200.0, np.log(0.5), -150.0], np.float32)

    def best_of_three(logits):
        log_p = jax.nn.log_softmax(logits)
        return mode_seeking.best_of_n_log_probs(log_p, np.array([0.0, 1.0, 2.0, -1.0]), 3)

    expected = [3 * np.log(0.5), -200.0 + np.log(3 / 4), np.log(7 / 8), -450.0]
    assert_allclose(best_of_three(log_probs), expected, rtol=2e-6)
    # The gradient of log p + (n − 1) log F there: e − p + 2 (1/2, 0, −1/2, 0).
    gradient = jax.jacobian(best_of_three)(log_probs)[1]
    assert_allclose(gradient, [0.5, 1.0, -1.5, 0.0], atol=1e-6)


def test_best_of_many_draws_is_exact_in_single_precision(float32):
    # The best arm has 1e-6 of the mass: found with probability 1 − (1 − 1e-6)ⁿ.
    p = np.array([0.3, 0.3, 0.4 - 1e-6, 1e-6])
    for n in (10**3, 10**6, 10**7):
        found = mode_seeking.best_of_n_log_probs(np.log(p), np.arange(4.0), n)[-1]
        assert_allclose(np.exp(found), -np.expm1(n * np.log1p(-1e-6)), rtol=1e-5)


def test_best_of_n_is_differentiable_in_the_policy():
    reward = np.array([1.0, 0.0, 1.0, 2.0])
    log_probs = np.log([0.15, 0.4, 0.25, 0.2])

    def expected_reward(logits, reward):
        log_p = jax.nn.log_softmax(logits)
        return jnp.exp(mode_seeking.best_of_n_log_probs(log_p, reward, 3)) @ reward

    step = 1e-5
    upper, lower = log_probs + step * np.eye(4), log_probs - step * np.eye(4)
    numeric = [
        (expected_reward(above, reward) - expected_reward(below, reward)) / (2 * step)
        for above, below in zip(upper, lower, strict=True)
    ]
    gradient = jax.grad(expected_reward)
    assert_allclose(gradient(log_probs, reward), numeric, rtol=1e-7)
    # An excluded arm, of the least, a shared or the best reward, is as if it were not there.
    for arm in range(4):
        excluding = gradient(np.where(np.arange(4) == arm, -np.inf, log_probs), reward)
        without = gradient(np.delete(log_probs, arm), np.delete(reward, arm))
        assert_allclose(excluding, np.insert(without, arm, 0.0), rtol=1e-9, atol=1e-13)


def test_best_of_n_keeps_single_precision_where_double_is_on():
    log_probs = np.log([0.5, 0.5]).astype(np.float32)
    found = mode_seeking.best_of_n_log_probs(log_probs, np.arange(2, dtype=np.float32), 3)
    assert found.dtype == jnp.float32


# Lemma 6.2


@given(seeds, st.integers(2, 6), st.floats(0.01, 5.0), weights, weights)
def test_contrastive_step_is_one_gradient_step_on_the_two_log_likelihoods(
    seed, num_arms, learning_rate, c1, c2
):
    log_probs, (winner, loser) = random_log_probs(seed, num_arms), random_pair(seed, num_arms)
    gradients = scores(log_probs)
    logits = log_probs + learning_rate * (c1 * gradients[winner] - c2 * gradients[loser])
    found = mode_seeking.contrastive_step(log_probs, winner, loser, learning_rate, c1, c2)
    assert_allclose(found, special.log_softmax(logits), rtol=1e-9, atol=1e-11)


@given(seeds, st.integers(2, 6), st.floats(0.01, 5.0), weights, weights)
def test_margin_growth_is_exact_for_steps_of_any_size(seed, num_arms, learning_rate, c1, c2):
    log_probs, (winner, loser) = random_log_probs(seed, num_arms), random_pair(seed, num_arms)
    after = mode_seeking.contrastive_step(log_probs, winner, loser, learning_rate, c1, c2)
    measured = after[winner] - after[loser] - (log_probs[winner] - log_probs[loser])
    found = mode_seeking.margin_growth(log_probs, winner, loser, learning_rate, c1, c2)
    p_w, p_l = np.exp(log_probs[winner]), np.exp(log_probs[loser])
    formula = learning_rate * (c1 * (1 - p_w + p_l) + c2 * (1 + p_w - p_l))
    assert_allclose(found, measured, rtol=1e-9, atol=1e-10)
    assert_allclose(found, formula, rtol=1e-9, atol=1e-12)
    if c2 > 1e-6:  # the negative gradient always widens the margin
        assert found > mode_seeking.margin_growth(log_probs, winner, loser, learning_rate, c1, 0.0)


@given(seeds, st.integers(2, 6), weights, weights)
def test_winner_growth_is_the_derivative_in_the_step_size(seed, num_arms, c1, c2):
    log_probs, (winner, loser) = random_log_probs(seed, num_arms), random_pair(seed, num_arms)
    gradients = scores(log_probs)
    direction = c1 * gradients[winner] - c2 * gradients[loser]
    winner_rate, loser_rate = (gradients @ direction)[[winner, loser]]
    found = mode_seeking.winner_growth(log_probs, winner, loser, 0.3, c1, c2)
    p = np.exp(log_probs)
    p_w, p_l, squares = p[winner], p[loser], (p**2).sum()
    formula = 0.3 * (c1 * (1 - 2 * p_w + squares) + c2 * (p_w + p_l - squares))
    assert_allclose(found, 0.3 * winner_rate, rtol=1e-9, atol=1e-12)
    assert_allclose(found, formula, rtol=1e-9, atol=1e-12)
    # The loser's is the same with arms and weights exchanged, and the sign reversed.
    exchanged = mode_seeking.winner_growth(log_probs, loser, winner, 0.3, c2, c1)
    assert_allclose(-exchanged, 0.3 * loser_rate, rtol=1e-9, atol=1e-12)


@given(seeds, st.integers(2, 6), st.floats(1e-3, 10.0), weights, weights)
def test_winner_growth_is_never_exceeded(seed, num_arms, learning_rate, c1, c2):
    log_probs, (winner, loser) = random_log_probs(seed, num_arms), random_pair(seed, num_arms)
    step = (log_probs, winner, loser, learning_rate, c1, c2)
    grown = mode_seeking.contrastive_step(*step)[winner] - log_probs[winner]
    assert grown <= mode_seeking.winner_growth(*step) + 1e-10


def test_winner_growth_misses_by_the_square_of_the_step_size():
    log_probs = np.log([0.35, 0.1, 0.55])

    def error(learning_rate):
        step = (log_probs, 0, 1, learning_rate, 1.0, 2.0)
        grown = mode_seeking.contrastive_step(*step)[0] - log_probs[0]
        return float(mode_seeking.winner_growth(*step) - grown)

    assert error(1e-2) / error(1e-3) == pytest.approx(100, rel=0.02)


@pytest.mark.parametrize("num_arms", [3, 4, 10])
def test_negative_gradient_helps_exactly_where_it_raises_the_winner(num_arms):
    seen = Counter()
    for seed in range(60):
        log_probs = random_log_probs(seed, num_arms)
        winner, loser = random_pair(seed, num_arms)
        gradients = scores(log_probs)
        rate = -gradients[loser] @ gradients[winner]
        p = np.exp(log_probs)
        condition = (p**2).sum() < p[winner] + p[loser]
        found = bool(mode_seeking.negative_gradient_helps_winner(log_probs, winner, loser))
        assert found == (rate > 0) == condition
        seen[found] += 1
    assert min(seen[True], seen[False]) >= 5


@given(seeds, st.integers(2, 8), st.floats(0.1, 8.0))
def test_negative_gradient_helps_when_either_arm_is_the_mode(seed, num_arms, scale):
    log_probs = random_log_probs(seed, num_arms, scale)
    mode = int(log_probs.argmax())
    other = (mode + 1 + seed % (num_arms - 1)) % num_arms
    assert mode_seeking.negative_gradient_helps_winner(log_probs, mode, other)
    assert mode_seeking.negative_gradient_helps_winner(log_probs, other, mode)


def test_negative_gradient_helps_with_two_arms_however_peaked_the_policy(float32):
    # In float32, Σp² and p_w + p_l both round to 1.
    log_probs = np.array([0.0, np.log(1e-12)], np.float32)
    assert mode_seeking.negative_gradient_helps_winner(log_probs, 1, 0)
    growth = mode_seeking.winner_growth(log_probs, 0, 1, 1.0, 0.0, 1.0)
    assert_allclose(growth, 2e-12, rtol=1e-5)
    margin = mode_seeking.margin_growth(log_probs, 0, 1, 1.0, 1.0, 0.0)
    assert_allclose(margin, 2e-12, rtol=1e-5)


def test_a_pair_the_policy_finds_unlikely_can_lose_its_winner_while_the_margin_grows():
    p = np.array([0.05, 0.05, 0.9])
    assert not mode_seeking.negative_gradient_helps_winner(np.log(p), 0, 1)
    squares = (p**2).sum()
    ratio = (1 - 2 * p[0] + squares) / (squares - p[0] - p[1])
    assert ratio > 1
    for learning_rate in (0.01, 1.0, 10.0):
        step = (np.log(p), 0, 1, learning_rate, 1.0, 1.01 * ratio)
        after = np.exp(mode_seeking.contrastive_step(*step))
        assert mode_seeking.margin_growth(*step) > 0
        assert after[0] / after[1] > 1
        assert after[0] < p[0]
        assert after[2] > p[2]
    step = (np.log(p), 0, 1, 0.01, 1.0, 0.9 * ratio)
    assert np.exp(mode_seeking.contrastive_step(*step))[0] > p[0]


def test_a_large_step_can_lower_a_winner_that_the_negative_gradient_helps():
    log_probs = np.log([0.35, 0.1, 0.55])
    assert mode_seeking.negative_gradient_helps_winner(log_probs, 0, 1)
    small = mode_seeking.contrastive_step(log_probs, 0, 1, 0.01, 0.0, 1.0)
    large = mode_seeking.contrastive_step(log_probs, 0, 1, 10.0, 0.0, 1.0)
    assert small[0] > log_probs[0] > large[0]


@given(seeds, st.integers(2, 8), st.floats(0.01, 20.0), st.floats(0.1, 8.0))
def test_equal_weights_raise_the_winner_at_every_step_size(seed, num_arms, learning_rate, scale):
    log_probs = random_log_probs(seed, num_arms, scale)
    winner, loser = random_pair(seed, num_arms)
    after = mode_seeking.contrastive_step(log_probs, winner, loser, learning_rate, 1.0, 1.0)
    # By how much is exp(ηc)/E_p[exp d], which is above 1 by (1 − p_w)(1 − exp(−ηc)) or more.
    at_least = -np.log1p((1 - np.exp(log_probs[winner])) * np.expm1(-learning_rate))
    assert after[winner] - log_probs[winner] >= at_least - 1e-12


def test_excluded_arms_stay_excluded():
    log_probs = np.array([np.log(0.4), -np.inf, np.log(0.6)])
    after = mode_seeking.contrastive_step(log_probs, 0, 2, 1.0, 1.0, 1.0)
    assert_allclose(np.exp(after).sum(), 1.0, rtol=1e-12)
    assert after[1] == -np.inf
    assert np.isfinite(mode_seeking.winner_growth(log_probs, 0, 2, 1.0, 1.0, 1.0))


P = np.log([0.5, 0.25, 0.25])
R = np.array([0.0, 1.0, 2.0])
HALF = np.array([np.log(0.5), np.log(0.5), -np.inf])


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("policy_gradient", (P, R, HALF, 1.0), r"exp\(reference_log_probs\) is zero on arm 2"),
        ("reverse_kl_gradient", (P, HALF), r"exp\(target_log_probs\) is zero on arm 2"),
        ("contrastive_step", (P, 1, 1, 1.0, 1.0, 1.0), "winner and loser are both arm 1; a pref"),
        ("contrastive_step", (P, [0, 2], 2, 1.0, 1.0, 1.0), "winner and loser are both arm 2"),
        ("contrastive_step", (HALF, 2, 1, 1.0, 1.0, 1.0), r"log_probs\[winner\] is -inf"),
        ("contrastive_step", (HALF, 0, 2, 1.0, 1.0, 1.0), r"log_probs\[loser\] is -inf"),
        ("negative_gradient_helps_winner", (P, 2, 2), "winner and loser are both arm 2"),
    ],
)
def test_pairs_and_policies_without_a_formula_are_refused(name, arguments, message):
    with pytest.raises(InvalidInput, match=message):
        getattr(mode_seeking, name)(*arguments)
