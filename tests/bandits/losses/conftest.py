"""What the tests of losses share: random groups, and a loss with its weights, compiled once."""

import functools

import jax
import numpy as np
import pytest

from bandits.losses import Responses, make_group, response_weights


@pytest.fixture
def random_group():
    """(seed) -> responses of two random policies, with random rewards and labels."""

    def draw(seed, size=4, whole_space=False):
        rng = np.random.default_rng(seed)
        arms = size if whole_space else size + 2
        policy, reference = rng.dirichlet(np.ones(arms), 2)[:, :size]
        wins = rng.uniform(0.1, 1, (size, size)) * rng.integers(0, 2, (size, size))
        wins = np.where(np.eye(size), 0, wins)
        return Responses(
            log_probs=np.log(policy),
            reference_log_probs=np.log(reference),
            behaviour_log_probs=np.log(policy) + rng.normal(0, 0.3, size),
            rewards=rng.normal(size=size),
            preferences=wins / max(wins.sum(), 0.1),
            shares=policy if whole_space else rng.dirichlet(np.ones(size)),
            baseline=np.array(rng.normal()),
        )

    return draw


@pytest.fixture
def evaluate():
    """(loss, responses, **hyperparameters) -> the loss and its weights."""

    def call(loss, responses, **hyperparameters):
        return jax.tree.map(np.asarray, _evaluate(loss, responses, hyperparameters))

    return call


@pytest.fixture
def far_apart():
    """Log ratios of ±200 to the reference and the behaviour, in a chosen precision.

    Ratios of exp(200) meet positive advantages only, where PPO is clipped: its loss is finite.
    """

    def group(dtype):
        near, far = np.array([[-1.0, -2.0, -200.0, -201.0], [-201.0, -202.0, 0.0, -1.0]])
        rewards = np.array([0.5, 0.1, 1.0, -1.0])
        made = make_group(near, rewards, reference_log_probs=far, behaviour_log_probs=far)
        return jax.tree.map(dtype, made)

    return group


@pytest.fixture
def numerical_weights():
    """Minus the slopes of f(log_probs), by central differences."""

    def weights(f, log_probs, step=1e-6):
        moves = step * np.eye(len(log_probs))
        return np.array([f(log_probs - m) - f(log_probs + m) for m in moves]) / (2 * step)

    return weights


@functools.partial(jax.jit, static_argnums=0)
def _evaluate(loss, responses, hyperparameters):
    bound = functools.partial(loss, **hyperparameters)
    return bound(responses), response_weights(bound, responses)
