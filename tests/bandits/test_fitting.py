"""Full-batch descent against plain loops over the same steps."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bandits.fitting import minimize

MATRIX = np.array([[3.0, 1.0], [1.0, 2.0]])
VECTOR = np.array([1.0, -2.0])
START = {"a": jnp.array([4.0, -1.0]), "b": jnp.array(0.5)}


def quadratic(params):
    x = params["a"]
    return 0.5 * x @ MATRIX @ x - VECTOR @ x + (params["b"] - 2.0) ** 2


@pytest.mark.parametrize("steps", [0, 1, 7])
def test_gradient_descent_is_the_loop_by_hand(float64, steps):
    x, b = np.asarray(START["a"], float), 0.5
    for _ in range(steps):
        x, b = x - 0.1 * (MATRIX @ x - VECTOR), b - 0.2 * (b - 2.0)
    found = minimize(
        quadratic, jax.tree.map(lambda v: v.astype(float), START), optax.sgd(0.1), steps
    )
    np.testing.assert_allclose(found["a"], x, rtol=1e-12)
    np.testing.assert_allclose(found["b"], b, rtol=1e-12)


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.adam(0.05),
        optax.adamw(0.05, weight_decay=0.3),  # needs the parameters
        optax.sgd(optax.cosine_decay_schedule(0.1, 20), momentum=0.9),
    ],
    ids=["adam", "adamw", "schedule"],
)
def test_the_state_of_an_optimiser_is_carried_along(optimizer):
    params, state = START, optimizer.init(START)
    step = jax.jit(lambda p, s: optimizer.update(jax.grad(quadratic)(p), s, p))
    for _ in range(20):
        updates, state = step(params, state)
        params = optax.apply_updates(params, updates)
    found = minimize(quadratic, START, optimizer, 20)
    assert jax.tree.structure(found) == jax.tree.structure(START)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(params), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)


def test_many_steps_end_at_the_minimum():
    found = minimize(quadratic, START, optax.sgd(0.2), 300)
    np.testing.assert_allclose(found["a"], np.linalg.solve(MATRIX, VECTOR), atol=1e-5)
    np.testing.assert_allclose(found["b"], 2.0, atol=1e-5)


def test_starts_can_be_batched_in_one_program():
    starts = jnp.array([[1.0, 2.0], [-3.0, 0.5]])

    def run(start):
        return minimize(lambda x: jnp.sum((x - 1.0) ** 4), start, optax.adam(0.1), 15)

    swept = jax.jit(jax.vmap(run))(starts)
    np.testing.assert_allclose(swept, [run(start) for start in starts], rtol=1e-5)
