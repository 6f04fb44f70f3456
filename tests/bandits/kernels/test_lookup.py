import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bandits.kernels import lookup
from bandits.kernels.lookup import look_up

TABLES = np.random.default_rng(0).normal(size=(4, 3, 7)).astype(np.float32)
ARMS = np.random.default_rng(1).integers(0, 7, (4, 3, 5))
AXES = [(0, 0), (0, None), (None, 0)]


def plain(table, arms):
    return jnp.asarray(table)[arms]


def mapped(f, *levels):
    """The function under a vmap for each of the levels, the first the innermost."""
    return functools.reduce(lambda f, axes: jax.vmap(f, axes), levels, f)


def arguments(*levels):
    """A table and arms for `mapped`, of which each level has its axis where it maps."""
    shared = [tuple(0 if axes[k] is None else slice(None) for axes in levels[::-1]) for k in (0, 1)]
    skipped = (0,) * (2 - len(levels))
    return TABLES[(*skipped, *shared[0])], ARMS[(*skipped, *shared[1])]


@pytest.mark.parametrize(
    "levels", [(), *((a,) for a in AXES), *((a, b) for a in AXES for b in AXES)]
)
def test_what_is_looked_up_is_what_the_table_has_there(levels):
    found, expected = (mapped(f, *levels)(*arguments(*levels)) for f in (look_up, plain))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("shape", [(), (0,), (2, 2)])
def test_arms_have_any_shape(shape):
    arms = np.zeros((3, *shape), int)
    found = jax.vmap(look_up)(TABLES[0], arms)
    np.testing.assert_array_equal(found, jax.vmap(plain)(TABLES[0], arms))


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.uint32])
def test_arms_of_few_bits_find_their_place_in_all_tables(dtype):
    tables, arms = np.arange(2700.0).reshape(9, 300), np.full((9, 1), 100, dtype)
    np.testing.assert_array_equal(jax.vmap(look_up)(tables, arms)[:, 0], tables[:, 100])


def test_no_arm_is_looked_up_in_another_table():
    found = jax.vmap(look_up)(TABLES[0], np.array([[-1, 7]] * 3))
    np.testing.assert_array_equal(found, TABLES[0][:, [0, -1]])


def test_tables_too_many_for_one_are_looked_up_each_alone(monkeypatch):
    monkeypatch.setattr(lookup, "MOST_PLACES", 10)
    found = jax.vmap(look_up)(TABLES[0], ARMS[0])
    np.testing.assert_array_equal(found, jax.vmap(plain)(TABLES[0], ARMS[0]))


@pytest.mark.parametrize("derivative", [jax.grad, jax.jacfwd, jax.jacrev, jax.hessian])
@pytest.mark.parametrize("levels", [(), ((0, 0),), ((0, None), (0, 0))])
def test_derivatives_are_those_of_the_table(derivative, levels):
    def of(f):
        return mapped(derivative(lambda table, arms: jnp.sum(f(table, arms) ** 3)), *levels)

    found, expected = (of(f)(*arguments(*levels)) for f in (look_up, plain))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_loss_over_many_tables_has_the_gradient_of_each():
    def loss(f):
        return lambda tables: jnp.sum(jax.vmap(f)(tables, ARMS[0]) ** 2)

    found, expected = (jax.grad(loss(f))(TABLES[0]) for f in (look_up, plain))
    np.testing.assert_allclose(found, expected, rtol=1e-6)
