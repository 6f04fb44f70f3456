import functools
import warnings
from decimal import Decimal, localcontext

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.testing import assert_allclose, assert_array_equal
from scipy import special

from theory import mass_relocation as theory
from theory.checks import InvalidInput

pytestmark = pytest.mark.usefixtures("float64")

K = 5
STEPS = [theory.forward_kl_step, theory.reverse_kl_step]
MEANS = [theory.logarithmic_mean, theory.identric_mean]

WEIGHTS = arrays(float, K, elements=st.just(0.0) | st.floats(1e-6, 1)).filter(np.any)
DISTRIBUTIONS = WEIGHTS.map(lambda weights: weights / weights.sum())
POSITIVE = arrays(float, K, elements=st.floats(1e-6, 1)).map(
    lambda weights: weights / weights.sum()
)
LEARNING_RATES = st.floats(-3, 1).map(lambda exponent: 10.0**exponent)
PAIRS = st.permutations(range(K)).map(lambda order: order[:2])

RNG = np.random.default_rng(0)
P, Q = RNG.dirichlet(np.ones(K), (2, 3))
LEARNING_RATE = np.array([0.1, 1.0, 10.0])
FIRST, SECOND = np.array([0, 3, 2]), np.array([1, 0, 4])


def forward_kl(logits, q):
    return jnp.sum(q * (jnp.log(q) - logits + jax.nn.logsumexp(logits)))


def reverse_kl(logits, q):
    p = jnp.exp(logits) / jnp.sum(jnp.exp(logits))
    return jnp.sum(p * (jnp.log(p) - jnp.log(q)))


@pytest.mark.parametrize("learning_rate", [0.01, 1.0, 30.0])
@pytest.mark.parametrize(("step", "kl"), [(STEPS[0], forward_kl), (STEPS[1], reverse_kl)])
def test_step_is_gradient_descent_on_the_kl_in_logits(step, kl, learning_rate):
    for p, q in zip(P, Q, strict=True):
        logits = np.log(p) - learning_rate * jax.jit(jax.grad(kl))(np.log(p), q)
        assert_allclose(step(p, q, learning_rate), special.softmax(logits), rtol=1e-12)


@pytest.mark.parametrize("step", STEPS)
def test_arm_that_both_exclude_does_not_change_the_step(step):
    with_zero = [np.insert(x[0], 2, 0.0) for x in (P, Q)]
    expected = np.insert(step(P[0], Q[0], 2.0), 2, 0.0)
    assert_allclose(step(*with_zero, 2.0), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("step", STEPS)
def test_gradients_in_target_and_learning_rate_are_finite_beside_an_excluded_arm(step):
    q, q_zero, p_zero = Q[0], np.insert(Q[0], 2, 0.0), np.insert(P[0], 2, 0.0)
    gradient = jax.jit(jax.grad(lambda p, *rest: step(p, *rest)[0], (1, 2)))
    by_q, by_rate = gradient(P[0], q, 2.0)
    by_q_zero, by_rate_zero = gradient(p_zero, q_zero, 2.0)
    assert_allclose(np.delete(by_q_zero, 2), by_q, rtol=1e-12)
    assert_allclose((by_q_zero[2], by_rate_zero), (0, by_rate), rtol=1e-12)


@pytest.mark.parametrize("step", STEPS)
@given(DISTRIBUTIONS, POSITIVE, LEARNING_RATES)
def test_step_keeps_the_simplex_and_exact_zeros(step, p, q, learning_rate):
    p_next = np.asarray(step(p, q, learning_rate))
    assert abs(p_next.sum() - 1) < 1e-14
    assert ((p_next > 0) == (p > 0)).all()
    assert (p_next[p == 0] == 0).all()


@pytest.mark.parametrize("step", STEPS)
def test_step_keeps_the_simplex_and_exact_zeros_in_float32(step):
    with jax.enable_x64(False):
        p = np.array([0.0, 0.3, 0.0, 0.6, 0.1], np.float32)
        p_next = jax.jit(step)(p, Q[0].astype(np.float32), 3.0)
    assert p_next.dtype == np.float32
    assert abs(p_next.sum() - 1) < 1e-6
    assert ((p_next > 0) == (p > 0)).all()


@pytest.mark.parametrize("step", STEPS)
def test_target_is_a_fixed_point(step):
    assert_allclose(step(Q, Q, 10.0), Q, rtol=1e-12)


@pytest.mark.parametrize("step", STEPS)
@given(DISTRIBUTIONS, POSITIVE, LEARNING_RATES, st.permutations(range(K)))
def test_relabelling_the_arms_relabels_the_step(step, p, q, learning_rate, order):
    expected = np.asarray(step(p, q, learning_rate))[order]
    relabelled = step(p[order], q[order], learning_rate)
    assert_allclose(relabelled, expected, rtol=1e-12, atol=0)


@given(POSITIVE, POSITIVE, LEARNING_RATES, PAIRS)
def test_relative_change_is_the_difference_of_the_logit_changes(p, q, learning_rate, pair):
    first, second = pair
    forward = q - p
    reverse = -p * (np.log(p / q) - special.rel_entr(p, q).sum())
    for step, change in zip(STEPS, (forward, reverse), strict=True):
        relative = theory.relative_change(p, step(p, q, learning_rate), first, second)
        expected = learning_rate * (change[first] - change[second])
        assert_allclose(relative, expected, rtol=1e-12, atol=1e-13)


def test_relative_change_is_the_log_ratio_of_the_odds():
    p, p_next = np.array([0.2, 0.3, 0.5]), np.array([0.4, 0.1, 0.5])
    assert_allclose(theory.relative_change(p, p_next, 0, 1), np.log(6), rtol=1e-14)
    assert_allclose(theory.relative_change(p, p_next, 1, 2), -np.log(3), rtol=1e-14)


def test_relative_change_of_an_arm_without_mass_is_undefined():
    p = np.array([0.0, 0.3, 0.7])
    assert np.isnan(theory.relative_change(p, p, 0, 1))
    assert theory.relative_change(p, p, 1, 2) == 0


@given(DISTRIBUTIONS, POSITIVE, LEARNING_RATES, PAIRS)
def test_gap_is_what_both_steps_show_per_unit_of_step_size(p, q, learning_rate, pair):
    assume((p[pair] > 0).all())
    forward, reverse = (
        theory.relative_change(p, step(p, q, learning_rate), *pair) for step in STEPS
    )
    gap = theory.relocation_gap(p, q, *pair)
    assert_allclose(gap, (reverse - forward) / learning_rate, rtol=1e-9, atol=1e-10)
    assume(abs(reverse - forward) > 1e-11)
    assert theory.reverse_moves_more(p, q, *pair) == (reverse > forward)


@given(DISTRIBUTIONS, POSITIVE, PAIRS, st.permutations(range(K)))
def test_gap_ignores_labels_and_changes_sign_with_the_order_of_the_pair(p, q, pair, order):
    gap = theory.relocation_gap(p, q, *pair)
    assert_allclose(theory.relocation_gap(p, q, *pair[::-1]), -gap, rtol=1e-14)
    places = np.argsort(order)[pair]
    relabelled = theory.relocation_gap(p[order], q[order], *places)
    assert_allclose(relabelled, gap, rtol=1e-12, atol=1e-14)


def test_equal_changes_do_not_count_as_moving_more():
    assert not theory.reverse_moves_more(P[0], P[0], 0, 1)


def random_instances(seed, concentration, size=500):
    """p, q, a pair of arms, and learning rates; some p exclude another arm."""
    rng = np.random.default_rng(seed)
    p, q = rng.dirichlet(np.full(K, concentration), (2, size))
    arms = rng.permuted(np.tile(np.arange(K), (size, 1)), axis=1)
    excluded = rng.uniform(size=size) < 0.3
    np.put_along_axis(p, arms[:, 2:3], np.where(excluded, 0.0, p[:, 2])[:, None], axis=1)
    return p, q, arms[:, 0], arms[:, 1], 10 ** rng.uniform(-3, 1, size)


def equalise(probs, first, second):
    rows = np.arange(len(probs))
    probs[rows, second] = probs[rows, first]
    return probs / probs.sum(axis=1, keepdims=True)


def take_both_steps(p, q, first, second, learning_rate):
    """Δʳ − Δᶠ, and which instances are decided beyond rounding."""
    forward, reverse = (
        theory.relative_change(p, step(p, q, learning_rate), first, second) for step in STEPS
    )
    difference = np.asarray(reverse - forward)
    return difference, np.abs(difference) > 1e-11


SEEDS, CONCENTRATIONS = st.integers(0, 2**32 - 1), st.floats(0.3, 5)


@settings(max_examples=10)
@given(SEEDS, CONCENTRATIONS)
def test_case_1_reverse_moves_more_if_and_only_if_p_exceeds_its_threshold(seed, concentration):
    p, q, first, second, learning_rate = random_instances(seed, concentration)
    p, q = equalise(p, first, second), q / q.sum(axis=1, keepdims=True)
    rows = np.arange(len(p))
    swap = q[rows, first] < q[rows, second]
    first, second = np.where(swap, second, first), np.where(swap, first, second)
    difference, decided = take_both_steps(p, q, first, second, learning_rate)
    predicted = p[rows, first] > theory.equal_policy_threshold(q, first, second)
    assert decided.mean() > 0.9
    assert 0 < predicted[decided].mean() < 1
    assert_array_equal(predicted[decided], difference[decided] > 0)
    sufficient = p[rows, first] > q[rows, first]
    assert (difference[decided & sufficient] > 0).all()


@settings(max_examples=10)
@given(SEEDS, CONCENTRATIONS)
def test_cases_2_and_3_the_sign_of_q_minus_its_threshold_decides(seed, concentration):
    p, q, first, second, learning_rate = random_instances(seed, concentration)
    p, q = p / p.sum(axis=1, keepdims=True), equalise(q, first, second)
    rows = np.arange(len(p))
    swap = p[rows, first] < p[rows, second]
    first, second = np.where(swap, second, first), np.where(swap, first, second)
    difference, decided = take_both_steps(p, q, first, second, learning_rate)
    threshold = theory.equal_target_threshold(p, q, first, second)
    more, less = q[rows, first] > threshold, q[rows, first] < threshold
    assert decided.mean() > 0.9
    assert 0 < more[decided].mean() < 1
    assert_array_equal(more[decided], difference[decided] > 0)
    assert_array_equal(less[decided], difference[decided] < 0)
    kl = special.rel_entr(p, q).sum(axis=1)
    assert (difference[decided & (q[rows, first] > p[rows, first])] > 0).all()
    assert (difference[decided & (q[rows, first] * np.exp(kl) < p[rows, second])] < 0).all()


def exact_logarithmic_mean(a, b):
    if a == b or 0 in (a, b):
        return a if a == b else Decimal(0)
    return (a - b) / (a.ln() - b.ln())


def exact_identric_mean(a, b):
    if a == b:
        return a
    return (sum(s * x * x.ln() for s, x in ((1, a), (-1, b)) if x) / (a - b) - 1).exp()


def mean_arguments():
    """Scales times ratios: equal, one unit in the last place apart, to 20 decades, and zero."""
    near = [1.0, np.nextafter(1.0, 0), *(1 - 10.0 ** -np.arange(1, 16))]
    series_edge = [(1 - x) / (1 + x) for x in (0.2999, 0.3, 0.3001)]
    far = [*(10.0 ** -np.arange(1, 21)), 0.0]
    scales = np.array([1.0, 0.3, 1e-300, 1e100])
    a, b = np.broadcast_arrays(scales[:, None], scales[:, None] * [*near, *series_edge, *far])
    a, b = a.ravel(), b.ravel()
    normal = (b == 0) | (b >= np.finfo(float).tiny)
    return np.append(a[normal], [0.0, 1.0]), np.append(b[normal], [0.0, 1e-300])


@pytest.mark.parametrize(
    ("mean", "exact"), [(MEANS[0], exact_logarithmic_mean), (MEANS[1], exact_identric_mean)]
)
def test_mean_has_twelve_digits_for_arguments_near_and_far(mean, exact):
    a, b = mean_arguments()
    with localcontext(prec=60):
        expected = [float(exact(*map(Decimal, pair))) for pair in zip(a, b, strict=True)]
    assert_allclose(mean(a, b), expected, rtol=1e-12, atol=0)
    assert_array_equal(mean(b, a), mean(a, b))


MAGNITUDES = st.just(0.0) | st.floats(-100, 100).map(lambda exponent: 10.0**exponent)


@given(MAGNITUDES, MAGNITUDES)
def test_means_lie_in_order_between_their_arguments(a, b):
    logarithmic, identric = (float(mean(a, b)) for mean in MEANS)
    slack = 1 + 4e-16
    assert min(a, b) <= logarithmic * slack
    assert logarithmic <= identric * slack
    assert identric <= max(a, b) * slack


@pytest.mark.parametrize("mean", MEANS)
@given(MAGNITUDES, MAGNITUDES, st.floats(1e-9, 1e9))
def test_mean_is_symmetric_and_homogeneous(mean, a, b, factor):
    assert mean(a, b) == mean(b, a)
    assert_allclose(mean(factor * a, factor * b), factor * mean(a, b), rtol=1e-12)


@functools.partial(jax.jit, static_argnums=0)
def slopes(mean, a, b):
    return jax.vmap(jax.grad(mean, (0, 1)))(a, b)


@pytest.mark.parametrize("mean", MEANS)
def test_mean_of_equal_arguments_grows_by_half_with_each(mean):
    value = np.array([1e-300, 1e-3, 0.5, 1.0])
    assert_allclose(slopes(mean, value, value), np.full((2, 4), 0.5), rtol=1e-12)


@pytest.mark.parametrize(("mean", "expected"), [(MEANS[0], 0), (MEANS[1], 1 / np.e)])
def test_mean_has_a_finite_slope_in_one_argument_where_the_other_is_zero(mean, expected):
    by_a, _ = slopes(mean, np.array([0.5, 0.1, 1.0, 1e-3]), np.zeros(4))
    assert_allclose(by_a, np.full(4, expected), rtol=1e-12)


def test_slopes_of_the_means_are_the_closed_forms():
    a, b = np.array([0.5, 0.2, 1e-6, 0.9]), np.array([0.3, 0.9, 0.5, 1e-3])
    log_ratio, gap = np.log(a / b), a - b
    logarithmic = 1 / log_ratio - gap / (a * log_ratio**2), gap / (b * log_ratio**2) - 1 / log_ratio
    assert_allclose(slopes(MEANS[0], a, b), logarithmic, rtol=1e-12)
    quotient = (a * np.log(a) - b * np.log(b)) / gap
    by_log = (np.log(a) + 1 - quotient) / gap, (quotient - np.log(b) - 1) / gap
    assert_allclose(slopes(MEANS[1], a, b), np.exp(quotient - 1) * by_log, rtol=1e-12)


def test_case_1_threshold_is_the_logarithmic_mean_of_the_targets():
    expected = (Q[:, 1] - Q[:, 4]) / (np.log(Q[:, 1]) - np.log(Q[:, 4]))
    assert_allclose(theory.equal_policy_threshold(Q, 1, 4), expected, rtol=1e-12)


def test_case_2_threshold_is_the_identric_mean_of_the_policy_damped_by_the_kl():
    a, b = P[:, 1], P[:, 4]
    log_identric = (a * np.log(a) - b * np.log(b)) / (a - b) - 1
    expected = np.exp(log_identric - special.rel_entr(P, Q).sum(axis=1))
    assert_allclose(theory.equal_target_threshold(P, Q, 1, 4), expected, rtol=1e-12)


def test_case_2_threshold_holds_with_an_arm_that_the_policy_excludes():
    p, q = np.array([0.4, 0.6, 0.0]), np.array([0.3, 0.3, 0.4])
    expected = 0.6 / np.e * np.exp(-special.rel_entr(p, q).sum())
    assert_allclose(theory.equal_target_threshold(p, q, 1, 2), expected, rtol=1e-12)


def test_gap_has_finite_gradients_beside_an_excluded_arm():
    gradient = jax.jit(jax.grad(lambda p, q: theory.relocation_gap(p, q, 0, 1), (0, 1)))
    with_zero = gradient(np.array([0.4, 0.6, 0.0]), np.array([0.5, 0.5, 0.0]))
    without = gradient(np.array([0.4, 0.6]), np.array([0.5, 0.5]))
    assert_allclose(with_zero, np.pad(without, ((0, 0), (0, 1))), rtol=1e-12, atol=0)


def test_plain_lists_are_taken_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert theory.relocation_gap([0.5, 0.5], [0.5, 0.5], 0, 1) == 0
        assert theory.relative_change([0.5, 0.5], [0.5, 0.5], 0, 1) == 0


HALVES = [0.5, 0.5]


@pytest.mark.parametrize(
    "function",
    [
        lambda p, q: theory.relocation_gap(p, q, 0, 1),
        lambda p, q: theory.reverse_moves_more(p, q, 0, 1),
        lambda p, q: theory.equal_target_threshold(p, q, 0, 1),
        lambda p, q: theory.reverse_kl_step(p, q, 1.0),
    ],
    ids=["gap", "more", "threshold", "step"],
)
def test_infinite_reverse_kl_is_refused(function):
    with pytest.raises(InvalidInput, match=r"q is zero on arm 1 where p is not"):
        function(HALVES, [1.0, 0.0])


def test_forward_step_takes_a_target_that_excludes_arms():
    expected = special.softmax(np.log([0.5, 0.5]) + 2.0 * np.array([0.5, -0.5]))
    assert_allclose(theory.forward_kl_step(HALVES, [1.0, 0.0], 2.0), expected, rtol=1e-14)
