import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import special
from scipy.spatial import distance

from bandits.kernels.descent import LOGIT_GRADIENTS
from bandits.losses import DIVERGENCES, METHODS, make_group
from bandits.losses.divergences import jensen_shannon, reverse_kl
from theory import gibbs, mode_seeking

pytestmark = pytest.mark.usefixtures("float64")

each = pytest.mark.parametrize("name", DIVERGENCES)
seeds = st.integers(0, 2**32 - 1)
K = 5
WEIGHTS = arrays(float, K, elements=st.just(0.0) | st.floats(1e-6, 1)).filter(np.any)
DISTRIBUTIONS = WEIGHTS.map(lambda weights: weights / weights.sum())
POSITIVE = arrays(float, K, elements=st.floats(1e-6, 1)).map(
    lambda weights: weights / weights.sum()
)


@functools.partial(jax.jit, static_argnums=0)
def value_and_weights(loss, log_p, log_q):
    value, gradient = jax.value_and_grad(loss)(log_p, log_q)
    return value, -gradient


@functools.partial(jax.jit, static_argnums=0)
def gradient_in_logits(loss, logits, target):
    return jax.grad(lambda x: loss(x - jax.nn.logsumexp(x), target))(logits)


def log(probs):
    with np.errstate(divide="ignore"):
        return np.log(probs)


def log_ratio(p, q):
    """log(p/q), and 0 where p is."""
    return np.where(p > 0, log(np.where(p > 0, p, 1)) - log(np.where(p > 0, q, 1)), 0)


def scipys(name, p, q):
    forward, reverse = special.rel_entr(q, p).sum(), special.rel_entr(p, q).sum()
    known = {"forward_kl": forward, "reverse_kl": reverse, "jeffreys": forward + reverse}
    if name in known:
        return known[name]
    with np.errstate(invalid="ignore"):  # SciPy takes the root of −1e-17 for p next to q
        return np.nan_to_num(distance.jensenshannon(p, q) ** 2)


def textbook_weights(name, p, q):
    reverse = -p * (log_ratio(p, q) + 1)
    return {
        "forward_kl": q,
        "reverse_kl": reverse,
        "jeffreys": q + reverse,
        "jensen_shannon": -0.5 * p * log_ratio(p, (p + q) / 2),
    }[name]


@each
@given(DISTRIBUTIONS, DISTRIBUTIONS)
def test_values_are_scipys_with_arms_excluded_on_either_side(name, p, q):
    value, _ = value_and_weights(DIVERGENCES[name], log(p), log(q))
    np.testing.assert_allclose(value, scipys(name, p, q), rtol=1e-10, atol=1e-14)


@each
def test_value_and_weights_are_those_computed_by_hand(name):
    L = np.log(2)
    value, weights = {
        "forward_kl": (L / 4, [1 / 4, 1 / 4, 1 / 2]),
        "reverse_kl": (L / 4, [-(L + 1) / 2, -1 / 4, -(1 - L) / 4]),
        "jeffreys": (L / 2, [-L / 2 - 1 / 4, 0, L / 4 + 1 / 4]),
        "jensen_shannon": (
            np.log(4 / 3) / 2 + np.log(2 / 3) / 4,
            [-np.log(4 / 3) / 4, 0, -np.log(2 / 3) / 8],
        ),
    }[name]
    p, q = np.log([0.5, 0.25, 0.25]), np.log([0.25, 0.25, 0.5])
    found = value_and_weights(DIVERGENCES[name], p, q)
    np.testing.assert_allclose(found[0], value, rtol=1e-13)
    np.testing.assert_allclose(found[1], weights, rtol=1e-13, atol=1e-16)


@each
@given(POSITIVE, POSITIVE, st.sets(st.integers(0, K - 1), max_size=K - 2))
def test_weights_and_gradients_in_logits_are_the_closed_forms_with_arms_excluded(
    name, p, q, excluded
):
    mask = np.isin(np.arange(K), list(excluded))
    p, q = (np.where(mask, 0, x) / np.where(mask, 0, x).sum() for x in (p, q))
    expected = textbook_weights(name, p, q)

    _, weights = value_and_weights(DIVERGENCES[name], log(p), log(q))
    np.testing.assert_allclose(weights, expected, rtol=1e-10, atol=1e-14)
    assert (weights[mask] == 0).all()
    found = gradient_in_logits(DIVERGENCES[name], log(p), log(q))
    np.testing.assert_allclose(found, p * expected.sum() - expected, rtol=1e-10, atol=1e-14)


@given(DISTRIBUTIONS, DISTRIBUTIONS)
def test_jensen_shannon_is_symmetric_bounded_and_finite_on_different_supports(p, q):
    value, weights = value_and_weights(jensen_shannon, log(p), log(q))
    np.testing.assert_allclose(value, jensen_shannon(log(q), log(p)), rtol=1e-10, atol=1e-14)
    assert -1e-14 <= value <= np.log(2) * (1 + 1e-14)
    expected = textbook_weights("jensen_shannon", p, q)
    np.testing.assert_allclose(weights, expected, rtol=1e-10, atol=1e-14)


@each
def test_loss_is_zero_with_no_slope_in_logits_at_the_target(name):
    target = np.log([0.1, 0.2, 0.3, 0.15, 0.25])
    np.testing.assert_allclose(DIVERGENCES[name](target, target), 0, atol=1e-15)
    slope = gradient_in_logits(DIVERGENCES[name], target, target)
    np.testing.assert_allclose(slope, np.zeros(K), atol=1e-14)


@each
def test_policy_and_target_of_different_sizes_are_not_broadcast(name):
    with pytest.raises(AssertionError, match="different shapes"):
        DIVERGENCES[name](np.log([0.5, 0.5]), np.zeros(1))


@each
@given(seeds, st.floats(0.05, 5))
def test_method_is_the_divergence_from_the_gibbs_policy(name, evaluate, random_group, seed, beta):
    group = random_group(seed, whole_space=True)
    target = gibbs.gibbs_log_probs(group.rewards, group.reference_log_probs, beta)
    loss, weights = evaluate(METHODS[name].loss, group, beta=beta)
    expected, slopes = value_and_weights(DIVERGENCES[name], group.log_probs, target)
    np.testing.assert_allclose(loss, expected, rtol=1e-11, atol=1e-14)
    np.testing.assert_allclose(weights, slopes, rtol=1e-11, atol=1e-14)


@given(seeds, st.floats(0.05, 5))
def test_exact_reverse_kl_is_the_policy_gradient_of_theory(evaluate, random_group, seed, beta):
    group = random_group(seed, whole_space=True)
    weights = evaluate(METHODS["reverse_kl"].loss, group, beta=beta)[1]
    expected = mode_seeking.policy_gradient(
        group.log_probs, group.rewards, group.reference_log_probs, beta
    )
    in_logits = beta * weights @ (np.eye(4) - group.shares)
    np.testing.assert_allclose(in_logits, expected, rtol=1e-9, atol=1e-13)


@each
def test_arms_that_the_reference_excludes_add_nothing(name, evaluate):
    policy, reference, rewards = [0.5, 0.0, 0.5], [0.75, 0.0, 0.25], np.array([0.1, 9.0, 0.2])
    kept = [0, 2]
    full = make_group(log(policy), rewards, reference_log_probs=log(reference))
    held = make_group(
        log(np.take(policy, kept)), rewards[kept], reference_log_probs=log(np.take(reference, kept))
    )
    loss, weights = evaluate(METHODS[name].loss, full)
    expected, slopes = evaluate(METHODS[name].loss, held)
    np.testing.assert_allclose(loss, expected, rtol=1e-13)
    np.testing.assert_allclose(weights[kept], slopes, rtol=1e-13)
    assert weights[1] == 0


def test_reverse_kl_outside_the_targets_support_is_infinite():
    assert reverse_kl(np.log([0.5, 0.5]), log([1.0, 0.0])) == np.inf


@pytest.mark.parametrize("loss", list(LOGIT_GRADIENTS))
def test_closed_gradients_in_the_logits_are_those_of_autodiff(loss):
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.normal(0, 3, (4, 7)), float)
    target = jax.nn.log_softmax(jnp.asarray(rng.normal(0, 3, (4, 7)), float))
    expected = jax.vmap(jax.grad(lambda x, q: loss(jax.nn.log_softmax(x), q)))(logits, target)
    found = LOGIT_GRADIENTS[loss](logits.T, target.T).T
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(LOGIT_GRADIENTS[loss](logits[0], target[0]), found[0], atol=1e-6)


@pytest.mark.parametrize("num_arms", [5, 37, 100])
def test_a_policy_gets_the_same_reverse_kl_gradient_whoever_is_beside_it(num_arms):
    rng = np.random.default_rng(0)
    logits, target = (jnp.asarray(rng.normal(0, 3, (num_arms, n)), jnp.float32) for n in (70, 1))
    gradient = jax.jit(LOGIT_GRADIENTS[reverse_kl])
    together = np.asarray(gradient(logits, target))
    # Up to rounding, which is another in other versions of XLA.
    same = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7)
    for first, last in ((0, 1), (0, 2), (0, 3), (3, 36), (32, 70)):
        same(gradient(logits[:, first:last], target), together[:, first:last])
    same(gradient(logits[:, 7], target[:, 0]), together[:, 7])


@pytest.mark.parametrize("loss", list(LOGIT_GRADIENTS))
def test_closed_gradients_do_not_round_what_all_logits_share(loss):
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.integers(-512, 512, 37) / 64, jnp.float32)  # exact beside 4096, too
    target = jax.nn.log_softmax(jnp.asarray(rng.normal(0, 3, 37), jnp.float32))
    gradient = jax.jit(LOGIT_GRADIENTS[loss])
    np.testing.assert_allclose(
        gradient(logits + 4096.0, target), gradient(logits, target), atol=1e-6
    )


@pytest.mark.parametrize("excluded", [-np.inf, -1e30])
def test_an_arm_that_neither_holds_leaves_the_closed_gradients_of_the_others(excluded):
    logits, target = jnp.array([0.3, -1.0, 0.5]), jnp.log(jnp.array([0.2, 0.3, 0.5]))
    for loss, gradient in LOGIT_GRADIENTS.items():
        with_it = gradient(jnp.append(logits, excluded), jnp.append(target, -jnp.inf))
        expected = jnp.append(gradient(logits, target), 0.0)
        np.testing.assert_allclose(with_it, expected, atol=1e-12, err_msg=loss.__name__)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_spoils_the_whole_reverse_kl_gradient_and_no_others(value):
    logits, target = np.zeros((3, 2)), np.log(np.full((3, 1), 1 / 3))
    for place in range(3):
        broken = logits.copy()
        broken[place, 0] = value
        found = LOGIT_GRADIENTS[reverse_kl](jnp.asarray(broken), target)
        assert np.isnan(found[:, 0]).all()
        assert np.isfinite(found[:, 1]).all()
