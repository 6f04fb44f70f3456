import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bandits.kernels.columns import in_columns


@pytest.fixture
def seen():
    """A function of a vector and a number in columns, and the shapes that it was traced with."""
    shapes = []

    @in_columns
    def scaled(vector, number):
        shapes.append((vector.shape, number.shape))
        return {"scaled": number * vector, "total": jnp.sum(number * vector, axis=0)}

    return scaled, shapes


def test_all_mapped_axes_are_one_last_axis(seen):
    scaled, shapes = seen
    jax.vmap(jax.vmap(scaled))(np.ones((5, 2, 3)), np.ones((5, 2)))
    assert shapes[-1] == ((3, 10), (10,))
    jax.vmap(jax.vmap(scaled, (0, None)), (0, None))(np.ones((5, 2, 3)), 1.0)
    assert shapes[-1] == ((3, 10), (1,))


@pytest.mark.parametrize("inner", [(0, 0), (0, None), (None, 0)])
@pytest.mark.parametrize("outer", [(0, 0), (0, None), (None, 0)])
def test_results_of_vmap_in_vmap_are_those_of_a_plain_one(inner, outer):
    def plain(vector, number):
        return {"scaled": number * vector, "total": jnp.sum(number * vector, axis=0)}

    shapes = [tuple(n for n, pair in ((5, outer), (2, inner)) if pair[k] == 0) for k in (0, 1)]
    rng = np.random.default_rng(0)
    arguments = rng.normal(size=(*shapes[0], 3)), rng.normal(size=shapes[1])
    found, expected = (
        jax.vmap(jax.vmap(f, inner), outer)(*arguments) for f in (in_columns(plain), plain)
    )
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), found, expected)


def test_what_is_not_mapped_over_has_one_there(seen):
    scaled, shapes = seen
    jax.vmap(scaled, in_axes=(0, None))(np.ones((2, 3)), 1.0)
    assert shapes[-1] == ((3, 2), (1,))
    jax.vmap(scaled, in_axes=(None, 0))(np.ones(3), np.ones(2))
    assert shapes[-1] == ((3, 1), (2,))


@pytest.mark.parametrize("in_axes", [(0, 0), (0, None), (None, 0), (1, 0)])
def test_results_are_those_of_a_plain_vmap(in_axes):
    def plain(vector, number):
        return {"scaled": number * vector, "total": jnp.sum(number * vector, axis=0)}

    shapes = {0: (2, 3), 1: (3, 2), None: (3,)}
    vector = np.arange(6.0)[: np.prod(shapes[in_axes[0]])].reshape(shapes[in_axes[0]])
    number = np.array(2.0) if in_axes[1] is None else np.array([2.0, 3.0])
    mapped, expected = (jax.vmap(f, in_axes)(vector, number) for f in (in_columns(plain), plain))
    jax.tree.map(np.testing.assert_array_equal, mapped, expected)


def test_a_call_without_vmap_is_the_function_itself(seen):
    scaled, shapes = seen
    np.testing.assert_array_equal(scaled(np.array([1.0, 2.0]), 3.0)["scaled"], [3, 6])
    assert shapes == [((2,), ())]
