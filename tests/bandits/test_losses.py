import functools

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import special

from bandits.losses import METHODS, forward_kl, reverse_kl

pytestmark = pytest.mark.usefixtures("float64")

EXACT = {name: METHODS[name] for name in ("forward_kl", "reverse_kl")}
K = 5
WEIGHTS = arrays(float, K, elements=st.just(0.0) | st.floats(1e-6, 1)).filter(np.any)
DISTRIBUTIONS = WEIGHTS.map(lambda weights: weights / weights.sum())
POSITIVE = arrays(float, K, elements=st.floats(1e-6, 1)).map(
    lambda weights: weights / weights.sum()
)


# Minus the weights that a loss puts on the responses.
gradient = functools.partial(jax.jit, static_argnums=0)(lambda loss, p, q: jax.grad(loss)(p, q))


@functools.partial(jax.jit, static_argnums=0)
def gradient_in_logits(loss, logits, target):
    return jax.grad(lambda x: loss(x - jax.nn.logsumexp(x), target))(logits)


def log(probs):
    with np.errstate(divide="ignore"):
        return np.log(probs)


def log_ratio(p, q):
    """log(p/q), and 0 where p is."""
    return np.where(p > 0, log(np.where(p > 0, p, 1)) - log(np.where(p > 0, q, 1)), 0)


@given(DISTRIBUTIONS, DISTRIBUTIONS)
def test_losses_are_scipys_divergences_each_way(p, q):
    np.testing.assert_allclose(
        [forward_kl(log(p), log(q)), reverse_kl(log(p), log(q))],
        [special.rel_entr(q, p).sum(), special.rel_entr(p, q).sum()],
        rtol=1e-12,
        atol=1e-14,
    )


@given(POSITIVE, DISTRIBUTIONS)
def test_forward_kl_weighs_each_response_by_the_target(p, q):
    np.testing.assert_allclose(-gradient(forward_kl, log(p), log(q)), q, rtol=1e-12, atol=0)


@given(DISTRIBUTIONS, POSITIVE)
def test_reverse_kl_weighs_each_response_by_its_advantage(p, q):
    weights = -gradient(reverse_kl, log(p), log(q))
    np.testing.assert_allclose(weights, -p * (log_ratio(p, q) + 1), rtol=1e-12, atol=1e-15)
    assert (weights[p == 0] == 0).all()


@given(POSITIVE, POSITIVE, st.sets(st.integers(0, K - 1), max_size=K - 2))
def test_gradients_in_logits_are_the_closed_forms_with_arms_masked(p, q, masked):
    mask = np.isin(np.arange(K), list(masked))
    p, q = (np.where(mask, 0, x) / np.where(mask, 0, x).sum() for x in (p, q))

    forward, reverse = (gradient_in_logits(x, log(p), log(q)) for x in (forward_kl, reverse_kl))
    np.testing.assert_allclose(forward, p - q, rtol=1e-12, atol=1e-14)
    expected = p * (log_ratio(p, q) - special.rel_entr(p, q).sum())
    np.testing.assert_allclose(reverse, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("method", EXACT.values(), ids=EXACT)
def test_negative_gradient_mark_says_whether_some_weight_is_negative(method):
    pairs = np.log(np.random.default_rng(0).dirichlet(np.ones(K), (2, 200)))
    weights = -jax.jit(jax.vmap(jax.grad(method.loss)))(*pairs)
    assert (weights != 0).all()
    assert (weights < 0).any(axis=1).all() == method.negative_gradient
    assert (weights < 0).any() == method.negative_gradient


@pytest.mark.parametrize("method", EXACT.values(), ids=EXACT)
def test_loss_is_zero_with_no_slope_in_logits_at_the_target(method):
    target = np.log([0.1, 0.2, 0.3, 0.15, 0.25])

    assert method.loss(target, target) == 0
    slope = gradient_in_logits(method.loss, target, target)
    np.testing.assert_allclose(slope, np.zeros(K), atol=1e-14)


@pytest.mark.parametrize("method", EXACT.values(), ids=EXACT)
def test_transformations_agree(method):
    p, q = np.log(np.random.default_rng(0).dirichlet(np.ones(K), (2, 3)))
    rows = [method.loss(*pair) for pair in zip(p, q, strict=True)]
    np.testing.assert_allclose(jax.jit(jax.vmap(method.loss))(p, q), rows, rtol=1e-13)


@pytest.mark.parametrize("method", EXACT.values(), ids=EXACT)
def test_policy_and_target_of_different_sizes_are_not_broadcast(method):
    with pytest.raises(AssertionError, match="different shapes"):
        method.loss(np.log([0.5, 0.5]), np.zeros(1))


def test_methods_carry_their_published_marks():
    marks = {name: method[-3:] for name, method in EXACT.items()}
    assert marks == {"forward_kl": (False, False, False), "reverse_kl": (True, False, True)}
    assert METHODS["forward_kl"].loss is forward_kl
    assert METHODS["reverse_kl"].loss is reverse_kl
