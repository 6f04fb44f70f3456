import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bandits.losses import METHODS, make_group
from theory import mode_seeking

pytestmark = pytest.mark.usefixtures("float64")

LIKELIHOOD = [name for name, method in METHODS.items() if method.family == "likelihood"]
seeds = st.integers(0, 2**32 - 1)

PROBS = np.array([0.5, 0.25, 0.125])
GROUP = {
    "rewards": np.array([0.0, 0.5, 1.0]),
    "preferences": np.array([[0, 0.25, 0], [0, 0, 0.125], [0.625, 0, 0]]),
    "shares": np.array([0.5, 0.25, 0.25]),
    "baseline": 0.5,
}
# The loss is −Σ w log π: by hand, each method's hyperparameters and its w on GROUP.
WEIGHTS = {
    "supervised": ({}, [0.5, 0.25, 0.25]),
    "preference_likelihood": ({}, [0.25, 0.125, 0.625]),
    "best_of_n": ({}, [0, 0, 1]),
    "reward_weighted": ({"temperature": 0.5}, [0.5, 0.25 * np.e, 0.25 * np.e**2]),
    "advantage_weighted": ({"temperature": 0.5}, [0.5 / np.e, 0.25, 0.25 * np.e]),
}


def textbook_weights(name, g):
    """W at the default hyperparameters."""
    if name == "supervised":
        return g.shares
    if name == "preference_likelihood":
        return [sum(row) for row in g.pair_weights]
    if name == "best_of_n":
        return g.rewards == max(g.rewards)
    if name == "reward_weighted":
        return g.shares * np.exp(g.rewards / 0.1)
    return g.shares * np.minimum(np.exp((g.rewards - g.baseline) / 0.1), 20)


def in_logits(weights, probs):
    """Σ w ∇log π in the logits of a tabular softmax."""
    return weights @ (np.eye(len(probs)) - probs)


@pytest.mark.parametrize("name", LIKELIHOOD)
def test_loss_and_weights_are_those_computed_by_hand(name, evaluate):
    hyperparameters, weights = WEIGHTS[name]
    group = make_group(np.log(PROBS), **GROUP)
    loss, found = evaluate(METHODS[name].loss, group, **hyperparameters)
    np.testing.assert_allclose(found, weights, rtol=1e-14)
    np.testing.assert_allclose(loss, -np.dot(weights, np.log(PROBS)), rtol=1e-14)


@pytest.mark.parametrize("name", LIKELIHOOD)
@given(seeds)
def test_random_groups_follow_the_textbook(name, evaluate, random_group, seed):
    group = random_group(seed)
    expected = np.asarray(textbook_weights(name, group), float)
    loss, weights = evaluate(METHODS[name].loss, group)

    np.testing.assert_allclose(loss, -np.dot(expected, group.log_probs), rtol=1e-12)
    np.testing.assert_allclose(weights, expected, rtol=1e-12)
    assert (weights >= 0).all()


def test_best_of_n_raises_the_first_of_equals_and_no_other(evaluate):
    log_probs = np.log([0.2, 0.3, 0.3, 0.1])
    for rewards, best in ([0.0, 1.0, 1.0, 0.5], 1), (np.ones(4), 0):
        loss, weights = evaluate(METHODS["best_of_n"].loss, make_group(log_probs, rewards))
        assert loss == -log_probs[best]
        np.testing.assert_array_equal(weights, np.arange(4) == best)


def test_equal_rewards_weigh_as_the_shares(evaluate):
    group = make_group(np.log(PROBS), 0.3 * np.ones(3), shares=GROUP["shares"], baseline=0.3)
    np.testing.assert_array_equal(
        evaluate(METHODS["advantage_weighted"].loss, group)[1], group.shares
    )
    np.testing.assert_allclose(
        evaluate(METHODS["reward_weighted"].loss, group)[1], np.exp(3) * group.shares, rtol=1e-12
    )
    loss, weights = evaluate(METHODS["preference_likelihood"].loss, group)
    assert loss == 0
    assert (weights == 0).all()


def test_advantage_weights_stop_at_twenty_however_large_the_advantage(evaluate):
    rewards = [0.1 * np.log(19), 0.1 * np.log(21), 1e6, -1e6]
    group = make_group(np.log([0.4, 0.3, 0.2, 0.1]), rewards)
    weights = 4 * evaluate(METHODS["advantage_weighted"].loss, group)[1]
    np.testing.assert_allclose(weights, [19, 20, 20, 0], rtol=1e-12)


@given(seeds)
def test_exact_reward_weighted_is_the_gradient_of_theory(evaluate, random_group, seed):
    group = random_group(seed, whole_space=True)
    weights = evaluate(METHODS["reward_weighted"].loss, group, temperature=0.7)[1]
    expected = mode_seeking.weighted_likelihood_gradient(
        group.log_probs, np.exp(group.rewards / 0.7)
    )
    np.testing.assert_allclose(in_logits(weights, group.shares), expected, atol=1e-13)


def test_mean_over_all_groups_of_best_of_n_is_the_gradient_of_theory():
    probs, rewards, n = np.array([0.5, 0.3, 0.2]), np.array([0.2, 1.0, 0.5]), 3
    draws = jnp.array(list(itertools.product(range(3), repeat=n)))

    def expected_loss(logits):
        log_probs = jax.nn.log_softmax(logits)
        groups = jax.vmap(make_group)(log_probs[draws], rewards[draws])
        held = jax.lax.stop_gradient(log_probs)
        return jnp.exp(held[draws].sum(axis=1)) @ jax.vmap(METHODS["best_of_n"].loss)(groups)

    expected = mode_seeking.best_of_n_gradient(np.log(probs), rewards, n)
    np.testing.assert_allclose(
        -jax.jit(jax.grad(expected_loss))(np.log(probs)), expected, atol=1e-14
    )
