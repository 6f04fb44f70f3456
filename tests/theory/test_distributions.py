import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.testing import assert_allclose
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


@given(DISTRIBUTIONS, DISTRIBUTIONS)
def test_kl_divergence_is_scipys_with_zeros_anywhere(p, q):
    expected = special.rel_entr(p, q).sum()
    assert_allclose(kl_divergence(np.log(p), np.log(q)), expected, rtol=1e-12, atol=1e-14)


@given(DISTRIBUTIONS)
def test_entropy_is_scipys_and_between_zero_and_log_k(p):
    value = entropy(np.log(p))
    assert_allclose(value, special.entr(p).sum(), rtol=1e-12, atol=1e-14)
    assert -1e-15 <= value <= np.log(K) + 1e-15


@given(DISTRIBUTIONS, DISTRIBUTIONS)
def test_concentrability_is_the_largest_ratio_on_the_support_of_p(p, q):
    with np.errstate(divide="ignore"):
        expected = (p[p > 0] / q[p > 0]).max()
    value = concentrability(np.log(p), np.log(q))
    assert_allclose(value, expected, rtol=1e-12)
    assert value >= 1 - 1e-15


def test_mass_outside_the_support_is_infinitely_far():
    outside = np.array([0.25, 0.25, 0.0, 0.0, 0.5])
    assert kl_divergence(np.log(Q_ZEROS), np.log(outside)) == np.inf
    assert concentrability(np.log(Q_ZEROS), np.log(outside)) == np.inf
    assert np.isfinite(kl_divergence(np.log(outside), np.log(Q_ZEROS)))


def test_kl_gradients_are_the_closed_forms_and_zero_on_excluded_arms():
    by_p, by_q = jax.jit(jax.grad(kl_divergence, (0, 1)))(np.log(P_ZEROS), np.log(Q_ZEROS))
    held = P_ZEROS > 0
    expected = np.zeros(K)
    expected[held] = P_ZEROS[held] * (np.log(P_ZEROS[held] / Q_ZEROS[held]) + 1)
    assert_allclose(by_p, expected, rtol=1e-12, atol=0)
    assert_allclose(by_q, -P_ZEROS, rtol=1e-12, atol=0)


def test_entropy_gradient_is_the_closed_form_and_zero_on_excluded_arms():
    gradient = jax.jit(jax.grad(entropy))(np.log(P_ZEROS))
    expected = special.entr(P_ZEROS) - P_ZEROS
    assert_allclose(gradient, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("function", [kl_divergence, concentrability])
def test_zeros_stay_exact_under_jit_and_vmap(function):
    expected = function(np.log(P_ZEROS), np.log(Q_ZEROS))
    assert np.isfinite(expected)
    batched = jax.jit(jax.vmap(functools.partial(function, np.log(P_ZEROS))))
    assert_allclose(batched(np.log(Q_ZEROS)[None]), [expected], rtol=1e-12)


@pytest.mark.parametrize("function", [kl_divergence, lambda p, q: entropy(p), concentrability])
def test_nan_is_not_passed_over(function):
    lost = np.log(P[0]) + np.where(np.arange(K) == 2, np.nan, 0.0)
    assert np.isnan(function(lost, np.log(Q[0])))


SHIFTS = (0.0, 1e-8, 1e-7, 1e-6, 1e-4, 1e-2, 0.3, 0.49, 0.51, 1.0, 10.0, 90.0)


def by_definition(log_p, log_q):
    log_p, log_q = np.asarray(log_p, np.float64), np.asarray(log_q, np.float64)
    with np.errstate(invalid="ignore"):
        return np.where(log_p == -np.inf, 0.0, np.exp(log_p) * (log_p - log_q)).sum(-1)


@given(st.integers(0, 2**32 - 1), st.integers(2, 40), st.sampled_from(SHIFTS))
def test_in_float32_kl_is_not_negative_and_right_to_rounding(seed, num_arms, shift):
    rng = np.random.default_rng(seed)
    logits = 3 * rng.normal(size=num_arms)
    p, q = (special.log_softmax(x) for x in (logits, logits + shift * rng.normal(size=num_arms)))
    p, q = p.astype(np.float32), q.astype(np.float32)
    found = float(jax.jit(kl_divergence)(p, q))
    assert found >= 0.0
    assert found == pytest.approx(by_definition(p, q), abs=3e-6, rel=3e-6)


def test_equal_policies_are_at_zero_to_the_bit_and_near_ones_have_digits():
    p = jnp.asarray(special.log_softmax(np.arange(5.0)))
    assert float(kl_divergence(p, p)) == 0.0
    tilt = 1e-9 * np.array([1.0, -1.0, 2.0, 0.0, 0.5])
    probs = np.exp(np.asarray(p))
    near = jnp.asarray(special.log_softmax(np.asarray(p) + tilt))
    variance = probs @ tilt**2 - (probs @ tilt) ** 2
    assert float(kl_divergence(p, near)) == pytest.approx(variance / 2, rel=1e-6)


@given(st.integers(0, 2**32 - 1))
def test_the_slopes_of_kl_are_those_of_the_plain_sum(seed):
    rng = np.random.default_rng(seed)
    p, q = (jnp.asarray(special.log_softmax(rng.normal(size=6))) for _ in range(2))

    def plain(log_p, log_q):
        return jnp.sum(jnp.exp(log_p) * (log_p - log_q))

    for argument in (0, 1):
        found = jax.grad(kl_divergence, argument)(p, q)
        assert_allclose(found, jax.grad(plain, argument)(p, q), atol=1e-14)
    second = jax.hessian(lambda x: kl_divergence(jax.nn.log_softmax(x), q))(p)
    expected = jax.hessian(lambda x: plain(jax.nn.log_softmax(x), q))(p)
    assert_allclose(second, expected, atol=1e-13)
