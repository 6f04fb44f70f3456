import functools

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from jax.test_util import check_grads
from scipy import special

from theory.distributions import concentrability, entropy, kl_divergence

pytestmark = pytest.mark.usefixtures("float64")

K = 5
WEIGHTS = arrays(float, K, elements=st.just(0.0) | st.floats(1e-6, 1)).filter(np.any)
DISTRIBUTIONS = WEIGHTS.map(lambda weights: weights / weights.sum())
P, Q = np.random.default_rng(0).dirichlet(np.ones(K), (2, 3))
# p excludes two arms, q one of them.
P_ZEROS = np.array([0.2, 0.5, 0.0, 0.0, 0.3])
Q_ZEROS = np.array([0.1, 0.2, 0.3, 0.0, 0.4])


def log(probs):
    with np.errstate(divide="ignore"):
        return np.log(probs)


@given(DISTRIBUTIONS, DISTRIBUTIONS)
def test_kl_divergence_is_scipys_with_zeros_anywhere(p, q):
    expected = special.rel_entr(p, q).sum()
    np.testing.assert_allclose(kl_divergence(log(p), log(q)), expected, rtol=1e-12, atol=1e-14)


@given(DISTRIBUTIONS)
def test_entropy_is_scipys_and_between_zero_and_log_k(p):
    value = entropy(log(p))
    np.testing.assert_allclose(value, special.entr(p).sum(), rtol=1e-12, atol=1e-14)
    assert -1e-15 <= value <= np.log(K) + 1e-15


@given(DISTRIBUTIONS, DISTRIBUTIONS)
def test_concentrability_is_the_largest_ratio_on_the_support_of_p(p, q):
    with np.errstate(divide="ignore"):
        expected = (p[p > 0] / q[p > 0]).max()
    value = concentrability(log(p), log(q))
    np.testing.assert_allclose(value, expected, rtol=1e-12)
    assert value >= 1 - 1e-15


def test_mass_outside_the_support_is_infinitely_far():
    outside = np.array([0.25, 0.25, 0.0, 0.0, 0.5])
    assert kl_divergence(log(Q_ZEROS), log(outside)) == np.inf
    assert concentrability(log(Q_ZEROS), log(outside)) == np.inf
    assert np.isfinite(kl_divergence(log(outside), log(Q_ZEROS)))


def test_kl_gradients_are_the_closed_forms_and_zero_on_excluded_arms():
    by_p, by_q = jax.jit(jax.grad(kl_divergence, (0, 1)))(log(P_ZEROS), log(Q_ZEROS))
    held = P_ZEROS > 0
    expected = np.zeros(K)
    expected[held] = P_ZEROS[held] * (np.log(P_ZEROS[held] / Q_ZEROS[held]) + 1)
    np.testing.assert_allclose(by_p, expected, rtol=1e-12, atol=0)
    np.testing.assert_allclose(by_q, -P_ZEROS, rtol=1e-12, atol=0)


def test_entropy_gradient_is_the_closed_form_and_zero_on_excluded_arms():
    gradient = jax.jit(jax.grad(entropy))(log(P_ZEROS))
    expected = special.entr(P_ZEROS) - P_ZEROS
    np.testing.assert_allclose(gradient, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("function", "arguments"),
    [(kl_divergence, (P, Q)), (entropy, (P,)), (concentrability, (P, Q))],
)
def test_transformations_agree_and_gradients_are_finite_differences(
    function, arguments, assert_transforms
):
    logs = tuple(map(np.log, arguments))
    if len(logs) > 1:
        assert_transforms(function, *logs)
    else:
        assert_transforms(lambda log_p, shift: function(log_p) + shift, *logs, np.zeros(3))
    check_grads(jax.jit(function), tuple(x[0] for x in logs), order=1, modes=["rev"], eps=1e-6)


@pytest.mark.parametrize("function", [kl_divergence, concentrability])
def test_zeros_stay_exact_under_jit_and_vmap(function):
    expected = function(log(P_ZEROS), log(Q_ZEROS))
    assert np.isfinite(expected)
    batched = jax.jit(jax.vmap(functools.partial(function, log(P_ZEROS))))
    np.testing.assert_allclose(batched(log(Q_ZEROS)[None]), [expected], rtol=1e-12)


@pytest.mark.parametrize("function", [kl_divergence, lambda p, q: entropy(p), concentrability])
def test_nan_is_not_passed_over(function):
    lost = np.log(P[0]) + np.where(np.arange(K) == 2, np.nan, 0.0)
    assert np.isnan(function(lost, np.log(Q[0])))
