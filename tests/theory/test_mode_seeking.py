import functools
import itertools
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from theory import gibbs, mode_seeking
from theory.checks import InvalidInput


def float64(test):
    """Run a test in double precision, with no global switch."""

    @functools.wraps(test)
    def wrapped(*args, **kwargs):
        with jax.enable_x64(True):
            return test(*args, **kwargs)

    return wrapped


seeds = st.integers(0, 2**32 - 1)
weights = st.floats(0.0, 5.0)
few_examples = settings(max_examples=40, deadline=None)


def random_log_probs(seed, shape, scale=2.0):
    logits = scale * np.random.default_rng(seed).normal(size=shape)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def random_problem(seed, num_arms=5):
    """A policy, a reference, rewards and β."""
    rng = np.random.default_rng(seed + 1)
    reference = random_log_probs(seed + 2, num_arms)
    return (
        random_log_probs(seed, num_arms),
        reference,
        rng.normal(size=num_arms),
        rng.uniform(0.1, 2),
    )


def random_pair(seed, num_arms):
    winner, loser = np.random.default_rng(seed).choice(num_arms, size=2, replace=False)
    return int(winner), int(loser)


score_rows = jax.jit(jax.jacobian(jax.nn.log_softmax))


def scores(log_probs):
    """∇log p(y) in the logits, a row for each arm y, by autodiff."""
    return np.asarray(score_rows(jnp.asarray(log_probs)))


def log_softmax_after(log_probs, direction, learning_rate):
    logits = np.asarray(log_probs) + learning_rate * np.asarray(direction)
    return logits - np.logaddexp.reduce(logits)


# Lemma 6.1


@float64
@pytest.mark.parametrize("seed", range(5))
def test_policy_gradient_is_the_gradient_of_the_regularised_objective(seed):
    log_probs, reference, reward, beta = random_problem(seed)

    def objective(logits):
        p = jnp.exp(logits) / jnp.exp(logits).sum()
        return (p * reward).sum() - beta * (p * (jnp.log(p) - reference)).sum()

    found = mode_seeking.policy_gradient(log_probs, reward, reference, beta)
    np.testing.assert_allclose(found, jax.grad(objective)(log_probs), rtol=1e-9, atol=1e-12)


@float64
@pytest.mark.parametrize("seed", range(5))
def test_reverse_kl_gradient_is_the_gradient_of_the_reverse_kl(seed):
    log_probs, target, _, _ = random_problem(seed)

    def reverse_kl(logits):
        p = jnp.exp(logits) / jnp.exp(logits).sum()
        return (p * (jnp.log(p) - target)).sum()

    found = mode_seeking.reverse_kl_gradient(log_probs, target)
    np.testing.assert_allclose(found, jax.grad(reverse_kl)(log_probs), rtol=1e-9, atol=1e-12)


@float64
@few_examples
@given(seeds)
def test_policy_gradient_is_reverse_kl_towards_the_gibbs_policy(seed):
    log_probs, reference, reward, beta = random_problem(seed)
    target = gibbs.gibbs_log_probs(reward, reference, beta)
    np.testing.assert_allclose(
        mode_seeking.policy_gradient(log_probs, reward, reference, beta),
        -beta * mode_seeking.reverse_kl_gradient(log_probs, target),
        rtol=1e-9,
        atol=1e-12,
    )


@float64
def test_policy_gradient_vanishes_at_the_gibbs_policy_and_not_elsewhere():
    log_probs, reference, reward, beta = random_problem(0)
    target = gibbs.gibbs_log_probs(reward, reference, beta)
    at_optimum = mode_seeking.policy_gradient(target, reward, reference, beta)
    elsewhere = mode_seeking.policy_gradient(log_probs, reward, reference, beta)
    np.testing.assert_allclose(at_optimum, 0.0, atol=1e-14)
    assert np.abs(elsewhere).max() > 0.01


@float64
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
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-14)
        d = log_probs - narrow_reference
        np.testing.assert_allclose(
            mode_seeking.reverse_kl_gradient(wide_policy, wide_reference),
            np.append(p * (d - p @ d), 0.0),
            rtol=1e-12,
            atol=1e-14,
        )


@float64
def test_a_reference_below_the_smallest_float_is_not_taken_for_an_excluded_arm():
    log_probs = np.log([0.5, 0.5])
    gradient = mode_seeking.reverse_kl_gradient(log_probs, np.array([0.0, -800.0]))
    # log p/q is (−log 2, 800 − log 2): 400 either side of its mean, times p.
    np.testing.assert_allclose(gradient, [-200.0, 200.0])


@float64
@pytest.mark.parametrize("seed", range(5))
def test_weighted_likelihood_on_own_samples_is_the_policy_gradient_of_the_weight(seed):
    log_probs = random_log_probs(seed, 5)
    held = np.random.default_rng(seed).normal(size=5)
    found = mode_seeking.weighted_likelihood_gradient(log_probs, held)
    expected_score = (np.exp(log_probs) * held) @ scores(log_probs)
    of_the_mean = jax.grad(lambda logits: jax.nn.softmax(logits) @ held)(log_probs)
    np.testing.assert_allclose(found, expected_score, rtol=1e-9, atol=1e-13)
    np.testing.assert_allclose(found, of_the_mean, rtol=1e-9, atol=1e-13)


@float64
def test_weighted_likelihood_on_two_arms_by_hand():
    # E_p[w] = 1.5, so p (w − 1.5) = (0.25 · 1.5, 0.75 · −0.5).
    found = mode_seeking.weighted_likelihood_gradient(np.log([0.25, 0.75]), [3.0, 1.0])
    np.testing.assert_allclose(found, [0.375, -0.375])


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


@float64
@pytest.mark.parametrize("n", [1, 2, 3, 5])
@pytest.mark.parametrize(
    "reward",
    [[0.3, -1.0, 2.0, 0.5], [1.0, 0.0, 1.0, 0.0], [0.0, 1.0, 1.0, 1.0], [2.0, 2.0, 2.0, 2.0]],
    ids=["distinct", "two pairs", "three at the top", "all equal"],
)
def test_best_of_n_is_what_enumerating_every_draw_gives(reward, n):
    p = np.array([0.15, 0.4, 0.25, 0.2])
    found = jnp.exp(mode_seeking.best_of_n_log_probs(np.log(p), np.array(reward), n))
    np.testing.assert_allclose(found, enumerate_best_of_n(p, reward, n), rtol=1e-12)


@float64
@pytest.mark.parametrize("n", [1, 3])
def test_best_of_n_never_returns_excluded_arms(n):
    p = np.array([0.0, 0.3, 0.0, 0.7, 0.0])
    reward = np.array([-1.0, 0.0, 0.0, 1.0, 2.0])
    with np.errstate(divide="ignore"):
        found = jnp.exp(mode_seeking.best_of_n_log_probs(np.log(p), reward, n))
    np.testing.assert_allclose(found, [0.0, 0.3**n, 0.0, 1 - 0.3**n, 0.0], rtol=1e-12)


@float64
@few_examples
@given(seeds, st.integers(2, 12), st.integers(1, 10**6))
def test_best_of_n_is_a_distribution_that_favours_reward(seed, num_arms, n):
    log_probs = random_log_probs(seed, num_arms)
    reward = np.random.default_rng(seed).integers(0, 4, size=num_arms).astype(float)
    found = np.asarray(mode_seeking.best_of_n_log_probs(log_probs, reward, n))
    np.testing.assert_allclose(np.exp(found).sum(), 1.0, rtol=1e-9)
    log_weight = found - log_probs
    order = np.argsort(reward, kind="stable")
    assert (np.diff(log_weight[order]) >= -1e-9).all()
    for level in np.unique(reward):
        np.testing.assert_allclose(np.ptp(log_weight[reward == level]), 0.0, atol=1e-9)


def test_best_of_n_keeps_arms_that_no_float_can_tell_from_zero():
    # F and F⁻ agree in float32 on the middle arm; its law is p n F^(n−1) to first order.
    log_probs = np.array([np.log(0.5), -200.0, np.log(0.5), -150.0], np.float32)

    def best_of_three(logits):
        log_p = jax.nn.log_softmax(logits)
        return mode_seeking.best_of_n_log_probs(log_p, np.array([0.0, 1.0, 2.0, -1.0]), 3)

    expected = [3 * np.log(0.5), -200.0 + np.log(3 / 4), np.log(7 / 8), -450.0]
    np.testing.assert_allclose(best_of_three(log_probs), expected, rtol=2e-6)
    # The gradient of log p + (n − 1) log F there: e − p + 2 (1/2, 0, −1/2, 0).
    gradient = jax.jacobian(best_of_three)(log_probs)[1]
    np.testing.assert_allclose(gradient, [0.5, 1.0, -1.5, 0.0], atol=1e-6)


def test_best_of_many_draws_is_exact_in_single_precision():
    # The best arm has 1e-6 of the mass: found with probability 1 − (1 − 1e-6)ⁿ.
    p = np.array([0.3, 0.3, 0.4 - 1e-6, 1e-6])
    for n in (10**3, 10**6, 10**7):
        found = mode_seeking.best_of_n_log_probs(np.log(p), np.arange(4.0), n)[-1]
        np.testing.assert_allclose(np.exp(found), -np.expm1(n * np.log1p(-1e-6)), rtol=1e-5)


@float64
def test_best_of_n_gradient_is_the_expected_score_of_the_best_draw():
    p = np.array([0.15, 0.4, 0.25, 0.2])
    reward = np.array([1.0, 0.0, 1.0, 2.0])
    law = enumerate_best_of_n(p, reward, 4)
    found = mode_seeking.best_of_n_gradient(np.log(p), reward, 4)
    np.testing.assert_allclose(found, law @ scores(np.log(p)), rtol=1e-9, atol=1e-13)
    as_weights = mode_seeking.weighted_likelihood_gradient(np.log(p), law / p)
    np.testing.assert_allclose(found, as_weights, rtol=1e-9, atol=1e-13)


@float64
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
    np.testing.assert_allclose(gradient(log_probs, reward), numeric, rtol=1e-7)
    # An excluded arm, of the least, a shared or the best reward, is as if it were not there.
    for arm in range(4):
        excluding = gradient(np.where(np.arange(4) == arm, -np.inf, log_probs), reward)
        without = gradient(np.delete(log_probs, arm), np.delete(reward, arm))
        np.testing.assert_allclose(excluding, np.insert(without, arm, 0.0), rtol=1e-9, atol=1e-13)


@float64
def test_best_of_n_keeps_single_precision_where_double_is_on():
    log_probs = np.log([0.5, 0.5]).astype(np.float32)
    found = mode_seeking.best_of_n_log_probs(log_probs, np.arange(2, dtype=np.float32), 3)
    assert found.dtype == jnp.float32


# Lemma 6.2


@float64
@few_examples
@given(seeds, st.integers(2, 6), st.floats(0.01, 5.0), weights, weights)
def test_contrastive_step_is_one_gradient_step_on_the_two_log_likelihoods(
    seed, num_arms, learning_rate, c1, c2
):
    log_probs, (winner, loser) = random_log_probs(seed, num_arms), random_pair(seed, num_arms)
    gradients = scores(log_probs)
    direction = c1 * gradients[winner] - c2 * gradients[loser]
    np.testing.assert_allclose(
        mode_seeking.contrastive_step(log_probs, winner, loser, learning_rate, c1, c2),
        log_softmax_after(log_probs, direction, learning_rate),
        rtol=1e-9,
        atol=1e-11,
    )


@float64
@few_examples
@given(seeds, st.integers(2, 6), st.floats(0.01, 5.0), weights, weights)
def test_margin_growth_is_exact_for_steps_of_any_size(seed, num_arms, learning_rate, c1, c2):
    log_probs, (winner, loser) = random_log_probs(seed, num_arms), random_pair(seed, num_arms)
    after = mode_seeking.contrastive_step(log_probs, winner, loser, learning_rate, c1, c2)
    measured = after[winner] - after[loser] - (log_probs[winner] - log_probs[loser])
    found = mode_seeking.margin_growth(log_probs, winner, loser, learning_rate, c1, c2)
    p_w, p_l = np.exp(log_probs[winner]), np.exp(log_probs[loser])
    formula = learning_rate * (c1 * (1 - p_w + p_l) + c2 * (1 + p_w - p_l))
    np.testing.assert_allclose(found, measured, rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(found, formula, rtol=1e-9, atol=1e-12)
    if c2 > 1e-6:  # the negative gradient always widens the margin
        assert found > mode_seeking.margin_growth(log_probs, winner, loser, learning_rate, c1, 0.0)


@float64
@few_examples
@given(seeds, st.integers(2, 6), weights, weights)
def test_winner_growth_is_the_derivative_in_the_step_size(seed, num_arms, c1, c2):
    log_probs, (winner, loser) = random_log_probs(seed, num_arms), random_pair(seed, num_arms)
    gradients = scores(log_probs)
    direction = c1 * gradients[winner] - c2 * gradients[loser]
    _, (winner_rate, loser_rate) = jax.jvp(
        lambda eta: tuple(
            jax.nn.log_softmax(log_probs + eta * direction)[np.array([winner, loser])]
        ),
        (0.0,),
        (1.0,),
    )
    found = mode_seeking.winner_growth(log_probs, winner, loser, 0.3, c1, c2)
    p = np.exp(log_probs)
    p_w, p_l, squares = p[winner], p[loser], (p**2).sum()
    formula = 0.3 * (c1 * (1 - 2 * p_w + squares) + c2 * (p_w + p_l - squares))
    np.testing.assert_allclose(found, 0.3 * winner_rate, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found, formula, rtol=1e-9, atol=1e-12)
    # The loser's is the same with arms and weights exchanged, and the sign reversed.
    exchanged = mode_seeking.winner_growth(log_probs, loser, winner, 0.3, c2, c1)
    np.testing.assert_allclose(-exchanged, 0.3 * loser_rate, rtol=1e-9, atol=1e-12)


@float64
@few_examples
@given(seeds, st.integers(2, 6), st.floats(1e-3, 10.0), weights, weights)
def test_winner_growth_is_never_exceeded(seed, num_arms, learning_rate, c1, c2):
    log_probs, (winner, loser) = random_log_probs(seed, num_arms), random_pair(seed, num_arms)
    step = (log_probs, winner, loser, learning_rate, c1, c2)
    grown = mode_seeking.contrastive_step(*step)[winner] - log_probs[winner]
    assert grown <= mode_seeking.winner_growth(*step) + 1e-10


@float64
def test_winner_growth_misses_by_the_square_of_the_step_size():
    log_probs = np.log([0.35, 0.1, 0.55])

    def error(learning_rate):
        step = (log_probs, 0, 1, learning_rate, 1.0, 2.0)
        grown = mode_seeking.contrastive_step(*step)[0] - log_probs[0]
        return float(mode_seeking.winner_growth(*step) - grown)

    assert error(1e-2) / error(1e-3) == pytest.approx(100, rel=0.02)


@float64
@pytest.mark.parametrize("num_arms", [3, 4, 10])
def test_negative_gradient_helps_exactly_where_it_raises_the_winner(num_arms):
    seen = Counter()
    for seed in range(60):
        log_probs = random_log_probs(seed, num_arms)
        winner, loser = random_pair(seed, num_arms)
        gradients = scores(log_probs)
        _, rate = jax.jvp(
            lambda eta: jax.nn.log_softmax(log_probs - eta * gradients[loser])[winner],  # noqa: B023
            (0.0,),
            (1.0,),
        )
        p = np.exp(log_probs)
        condition = (p**2).sum() < p[winner] + p[loser]
        found = bool(mode_seeking.negative_gradient_helps_winner(log_probs, winner, loser))
        assert found == (rate > 0) == condition == (gradients[winner] @ gradients[loser] < 0)
        seen[found] += 1
    assert min(seen[True], seen[False]) >= 5


@float64
@few_examples
@given(seeds, st.integers(2, 8), st.floats(0.1, 8.0))
def test_negative_gradient_helps_when_either_arm_is_the_mode(seed, num_arms, scale):
    log_probs = random_log_probs(seed, num_arms, scale)
    mode = int(log_probs.argmax())
    other = (mode + 1 + seed % (num_arms - 1)) % num_arms
    assert mode_seeking.negative_gradient_helps_winner(log_probs, mode, other)
    assert mode_seeking.negative_gradient_helps_winner(log_probs, other, mode)


def test_negative_gradient_helps_with_two_arms_however_peaked_the_policy():
    # In float32, Σp² and p_w + p_l both round to 1.
    log_probs = np.array([0.0, np.log(1e-12)], np.float32)
    assert mode_seeking.negative_gradient_helps_winner(log_probs, 1, 0)
    growth = mode_seeking.winner_growth(log_probs, 0, 1, 1.0, 0.0, 1.0)
    np.testing.assert_allclose(growth, 2e-12, rtol=1e-5)
    margin = mode_seeking.margin_growth(log_probs, 0, 1, 1.0, 1.0, 0.0)
    np.testing.assert_allclose(margin, 2e-12, rtol=1e-5)


@float64
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


@float64
def test_a_large_step_can_lower_a_winner_that_the_negative_gradient_helps():
    log_probs = np.log([0.35, 0.1, 0.55])
    assert mode_seeking.negative_gradient_helps_winner(log_probs, 0, 1)
    small = mode_seeking.contrastive_step(log_probs, 0, 1, 0.01, 0.0, 1.0)
    large = mode_seeking.contrastive_step(log_probs, 0, 1, 10.0, 0.0, 1.0)
    assert small[0] > log_probs[0] > large[0]


@float64
@few_examples
@given(seeds, st.integers(2, 8), st.floats(0.01, 20.0), st.floats(0.1, 8.0))
def test_equal_weights_raise_the_winner_at_every_step_size(seed, num_arms, learning_rate, scale):
    log_probs = random_log_probs(seed, num_arms, scale)
    winner, loser = random_pair(seed, num_arms)
    after = mode_seeking.contrastive_step(log_probs, winner, loser, learning_rate, 1.0, 1.0)
    # By how much is exp(ηc)/E_p[exp d], which is above 1 by (1 − p_w)(1 − exp(−ηc)) or more.
    at_least = -np.log1p((1 - np.exp(log_probs[winner])) * np.expm1(-learning_rate))
    assert after[winner] - log_probs[winner] >= at_least - 1e-12


@float64
def test_excluded_arms_stay_excluded():
    log_probs = np.array([np.log(0.4), -np.inf, np.log(0.6)])
    after = mode_seeking.contrastive_step(log_probs, 0, 2, 1.0, 1.0, 1.0)
    np.testing.assert_allclose(np.exp(after).sum(), 1.0, rtol=1e-12)
    assert after[1] == -np.inf
    assert np.isfinite(mode_seeking.winner_growth(log_probs, 0, 2, 1.0, 1.0, 1.0))


# All functions


def policy(rows):
    return random_log_probs(11, (rows, 4)).astype(np.float32)


TIED = np.array([0.5, 0.0, 0.5, 1.0], np.float32)
ETA, C1, C2 = np.array([0.1, 1.0, 2.0]), np.array([1.0, 0.5, 0.0]), np.array([1.0, 2.0, 0.3])
CALLS = {
    "policy_gradient": (
        policy(3),
        np.stack([TIED] * 3),
        policy(3)[::-1],
        np.array([0.1, 1.0, 2.0]),
    ),
    "reverse_kl_gradient": (policy(3), policy(3)[::-1]),
    "weighted_likelihood_gradient": (policy(3), np.stack([TIED, -TIED, 2 * TIED])),
    "best_of_n_log_probs": (policy(3), np.stack([TIED, -TIED, 2 * TIED]), np.array([1, 3, 8])),
    "best_of_n_gradient": (policy(3), np.stack([TIED, -TIED, 2 * TIED]), np.array([1, 3, 8])),
    "contrastive_step": (policy(3), np.array([0, 1, 2]), np.array([3, 2, 1]), ETA, C1, C2),
    "margin_growth": (policy(3), np.array([0, 1, 2]), np.array([3, 2, 1]), ETA, C1, C2),
    "winner_growth": (policy(3), np.array([0, 1, 2]), np.array([3, 2, 1]), ETA, C1, C2),
    "negative_gradient_helps_winner": (policy(3), np.array([0, 1, 2]), np.array([3, 2, 1])),
}


@pytest.mark.parametrize("name", CALLS)
def test_rows_alone_jitted_vmapped_and_broadcast_agree(name):
    function, rows = getattr(mode_seeking, name), CALLS[name]
    together = function(*rows)
    assert together.dtype == (bool if "helps" in name else jnp.float32)
    alone = jnp.stack([function(*row) for row in zip(*rows, strict=True)])
    np.testing.assert_allclose(together, alone, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(jax.jit(function)(*rows), alone, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(jax.vmap(function)(*rows), alone, rtol=1e-5, atol=1e-6)
    # One policy against several settings: the policy broadcasts over the settings' leading axis.
    shared = function(rows[0][0], *rows[1:])
    each = jnp.stack([function(rows[0][0], *row) for row in zip(*rows[1:], strict=True)])
    assert shared.shape == together.shape
    np.testing.assert_allclose(shared, each, rtol=1e-5, atol=1e-6)


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
