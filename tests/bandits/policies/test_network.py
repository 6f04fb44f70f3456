import jax
import numpy as np
import pytest
from scipy import stats

from bandits.policies.network import Dense, apply_dense, init_layers, layer_norm

KEY = jax.random.key(20240414)
SHAPES = [(4, 9), (9, 100), (100, 1)]


def test_layers_have_the_given_shapes():
    layers = init_layers(KEY, SHAPES)
    assert [layer.kernel.shape for layer in layers] == SHAPES
    assert [layer.bias.shape for layer in layers] == [(9,), (100,), (1,)]


@pytest.mark.parametrize("part", ["kernel", "bias"])
def test_numbers_are_uniform_within_one_over_the_root_of_the_inputs(part):
    layers = init_layers(KEY, SHAPES)
    scaled = [getattr(x, part) * np.sqrt(len(x.kernel)) for x in layers]
    numbers = np.concatenate([np.ravel(x) for x in scaled])
    assert np.abs(numbers).max() <= 1 + 1e-6
    assert stats.kstest(numbers, stats.uniform(-1, 2).cdf).pvalue > 1e-3
    assert np.unique(numbers).size > 0.99 * numbers.size


def test_the_same_key_gives_the_same_layers_and_another_key_others():
    first, again, other = (init_layers(jax.random.key(seed), SHAPES) for seed in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert all(np.all(a.kernel != b.kernel) for a, b in zip(first, other, strict=True))


def test_a_dense_layer_is_affine_over_leading_axes():
    layer = Dense(np.arange(6.0).reshape(2, 3), np.array([1.0, 0.0, -1.0]))
    x = np.array([[[1.0, 2.0]], [[-1.0, 0.5]]])
    expected = np.einsum("abi,ij->abj", x, layer.kernel) + layer.bias
    np.testing.assert_allclose(apply_dense(layer, x), expected, rtol=1e-6)


def test_layer_norm_has_mean_zero_and_variance_one_in_every_row(float64):
    x = np.random.default_rng(0).normal(3.0, [[5.0], [0.5], [20.0]], size=(3, 40))
    found = layer_norm(x)
    np.testing.assert_allclose(found.mean(axis=-1), 0, atol=1e-14)
    np.testing.assert_allclose(found.var(axis=-1), 1, rtol=1e-4)
    np.testing.assert_array_equal(layer_norm(np.full(4, 7.0)), 0)
