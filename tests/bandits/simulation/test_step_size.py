"""Step sizes that are safe: 1/L for a bound L of the Hessian, on random problems."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bandits.losses import METHODS
from bandits.policies import tabular_softmax
from bandits.problems.environments import CategoricalBandit
from bandits.simulation import step_size
from bandits.training import on_whole_space
from theory.pairs import Pairs

pytestmark = pytest.mark.usefixtures("float64")


def collected(seed, num_arms):
    rng = np.random.default_rng(seed)
    table = rng.gamma(0.3, size=(num_arms, num_arms)) * (1 - np.eye(num_arms))
    pairs = Pairs.from_table(table / table.sum())
    pairs = jax.tree.map(jnp.asarray, pairs)
    start = jnp.asarray(np.log(rng.dirichlet(np.ones(num_arms))))
    collect = on_whole_space(tabular_softmax(), CategoricalBandit(0 * start, start), pairs)
    return start, collect(start, jax.random.key(0), jnp.int32(0))


@settings(max_examples=15)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(2, 8),
    st.sampled_from([("dpo", "beta"), ("ipo", "tau")]),
    st.floats(-2, 1),
)
def test_one_over_the_step_bounds_the_curvature_of_losses_on_pairs(seed, arms, method, exponent):
    name, hyperparameter = method
    loss = METHODS[name].bind(**{hyperparameter: 10.0**exponent})
    start, first = collected(seed, arms)
    rate = step_size.of_data(loss, first, start, 0.0)

    def objective(logits):
        log_probs = jax.nn.log_softmax(logits)
        groups = jax.tree.map(lambda leaf: leaf[0], first.groups)
        return loss(groups.with_log_probs(log_probs))

    largest = np.linalg.eigvalsh(jax.hessian(objective)(start)).max()
    assert largest <= 1.0 / float(rate) * (1 + 1e-6)
    moved = -rate * jax.grad(objective)(start)
    assert np.ptp(moved) <= 1 + 1e-9
    assert objective(start + moved) <= objective(start)


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [("dpo", {"beta": 2.0}, 1.0), ("ipo", {"tau": 0.3}, 2.0), ("hinge", {"beta": 2.0}, 20.0)],
)
def test_the_curvature_of_a_pair_is_the_closed_form(name, settings, expected):
    # β²/4 for DPO, 2 for IPO; the hinge's slope β jumps, which counts as a change over 0.1 nats.
    found = step_size.pair_curvature(METHODS[name].bind(**settings))
    assert float(found) == pytest.approx(expected, rel=0.02)


@settings(max_examples=15)
@given(st.integers(0, 2**32 - 1), st.integers(2, 8), st.floats(0.0, 10.0))
def test_reinforcement_never_ends_below_its_start_with_its_step(seed, arms, beta):
    rng = np.random.default_rng(seed)
    reward = jnp.asarray(rng.normal(size=arms) * 10 ** rng.uniform(-2, 2))
    start = jnp.asarray(np.log(rng.dirichlet(np.ones(arms))))
    rate = step_size.of_rewards(reward, start, beta)

    def value(logits):
        log_probs = jax.nn.log_softmax(logits)
        return jnp.exp(log_probs) @ (reward - beta * (log_probs - start))

    logits = start
    values = [value(start)]
    for _ in range(60):
        logits = logits + rate * jax.grad(value)(logits)
        values.append(value(logits))
    rises = np.diff(np.array(values))
    assert rises.min() >= -1e-9 * (1 + abs(values[0]))
