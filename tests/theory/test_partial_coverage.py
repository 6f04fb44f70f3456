"""DPO and RLHF under partial coverage, against descent, enumeration and SciPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from scipy import optimize, special

from theory import equivalence, gibbs
from theory.checks import InvalidInput
from theory.partial_coverage import (
    displaced,
    displacement_peak,
    dpo_optimum,
    global_coverage,
    ipo_parking,
    is_dpo_optimum,
    kl_ball_coverage,
    peak_margin,
    rlhf_bound,
)

coverage_in_ball = jax.jit(kl_ball_coverage)

pytestmark = pytest.mark.usefixtures("float64")

LECTURE = np.array([[0, 1, 0], [0, 0, 0], [0, 0, 0]])
HALVES = np.array([0.5, 0.5, 0.0])


def dpo_loss(log_probs, reference_log_probs, preferences, beta=0.1):
    ratios = log_probs - reference_log_probs
    winners, losers = np.nonzero(preferences)
    return -special.log_expit(beta * (ratios[winners] - ratios[losers])).sum()


@pytest.mark.parametrize(
    ("probs", "optimal"),
    [((1, 0, 0), True), ((0.1, 0, 0.9), True), ((0, 0, 1), True), ((0.5, 0.5, 0), False)],
)
def test_the_lectures_policies_are_dpo_optima_where_the_loser_has_no_mass(probs, optimal):
    assert is_dpo_optimum(np.log(np.array(probs, float)), LECTURE) == optimal


def test_an_optimum_has_the_wanted_mass_outside_the_data_and_rlhf_never_has_it():
    wanted = np.exp(dpo_optimum(np.log(HALVES), LECTURE, 0.9))
    assert_allclose(wanted, [0.1, 0, 0.9], atol=1e-15)
    assert (wanted[2] > np.exp(rlhf_bound(np.log(HALVES), 1.0, 0.1)))[2]


def test_optima_of_many_masses_are_one_program():
    masses = np.array([0.0, 0.3, 1.0])
    swept = jax.jit(jax.vmap(lambda mass: dpo_optimum(np.log(HALVES), LECTURE, mass)))(masses)
    expected = np.stack([1 - masses, np.zeros(3), masses], axis=1)
    assert_allclose(np.exp(swept), expected, atol=1e-15)


@given(st.integers(0, 10**6), st.floats(0, 1))
def test_every_member_is_the_limit_of_policies_whose_loss_vanishes(seed, mass):
    rng = np.random.default_rng(seed)
    order, k = rng.permutation(6), 6
    preferences = np.zeros((k, k))
    for _ in range(4):
        i, j = sorted(rng.choice(5, 2, replace=False))
        preferences[order[i], order[j]] += 1
    reference = np.log(rng.dirichlet(np.ones(k)))
    member = np.asarray(dpo_optimum(reference, preferences, mass))
    assert is_dpo_optimum(member, preferences)
    covered = (preferences + preferences.T).any(axis=1)
    assert_allclose(np.exp(member)[~covered].sum(), mass, atol=1e-12)
    assert_allclose(np.exp(member).sum(), 1, rtol=1e-12)

    rank = np.empty(k)
    rank[order] = np.arange(k)  # a winner comes before its loser
    losses = []
    for decay in (10.0, 1000.0):
        tail = special.log_softmax(np.where(covered, -decay * rank, -np.inf))
        near = np.logaddexp(member, tail - decay)
        losses.append(dpo_loss(near - special.logsumexp(near), reference, preferences))
    assert losses[1] < 1e-30 < losses[0]


def test_a_policy_with_mass_on_a_loser_has_a_loss_above_zero():
    probs = np.array([0.8, 0.1, 0.1])
    assert not is_dpo_optimum(np.log(probs), LECTURE)
    assert dpo_loss(np.log(probs), np.log(np.full(3, 1 / 3)), LECTURE) > 0.1


@given(st.integers(0, 10**6), st.floats(0.05, 5), st.floats(0.1, 3))
def test_rlhf_never_breaks_its_bound(seed, beta, bound):
    rng = np.random.default_rng(seed)
    reference = np.log(rng.dirichlet(np.ones(5)))
    reward = bound * rng.uniform(-1, 1, 5)
    optimum = gibbs.gibbs_log_probs(reward, reference, beta)
    assert (optimum <= rlhf_bound(reference, bound, beta) + 1e-12).all()


def descend(reference, loss, rate, steps=4000):
    """Plain gradient descent of a table of logits on a loss of the margin of arm 0 over arm 1."""
    start = jnp.log(reference)

    def margin(logits):
        ratio = jax.nn.log_softmax(logits) - start
        return ratio[0] - ratio[1]

    def step(logits, _):
        gradient = jax.grad(lambda x: loss(margin(x)))(logits)
        return logits - rate * gradient, (jax.nn.softmax(logits), margin(logits))

    return jax.lax.scan(step, start, length=steps)[1]


FIVE = np.array([0.02, 0.38, 0.3, 0.2, 0.1])
PATHS = {
    "dpo": (lambda h: -jax.nn.log_sigmoid(0.5 * h), 0.05),
    "ipo": (lambda h: (h - 1 / (2 * 0.0625)) ** 2, 0.005),
}


@pytest.mark.parametrize("loss", PATHS)
@pytest.mark.parametrize(
    ("winner", "loser"), [(0.001, 0.499), (0.02, 0.38), (0.1, 0.3), (0.3, 0.1)]
)
def test_descent_on_either_loss_leads_along_one_path_over_its_peak(winner, loser, loss):
    others = (1 - winner - loser) * np.array([0.5, 0.3, 0.2])
    probs, margins = descend(np.array([winner, loser, *others]), *PATHS[loss])
    uncovered = probs[:, 2:].sum(axis=1)
    pair = displaced(winner, loser, margins)
    assert_allclose(np.column_stack([*probs[:, :2].T, uncovered]), np.stack(pair, 1), rtol=1e-9)
    assert_allclose(probs[:, 2:], uncovered[:, None] * others / others.sum(), rtol=1e-9)
    peak = np.argmax(uncovered)
    assert_allclose(uncovered[peak], displacement_peak(winner, loser), rtol=1e-3)
    assert_allclose(margins[peak], peak_margin(winner, loser), atol=0.1)
    if loss == "ipo":
        parked = np.stack(ipo_parking(winner, loser, 0.0625))
        assert_allclose([*probs[-1, :2], uncovered[-1]], parked, rtol=1e-9)


def test_descent_on_dpo_leaves_the_bound_that_holds_for_rlhf():
    beta, bound = 1.0, 0.25
    limit = np.exp(rlhf_bound(np.log(FIVE), bound, beta))
    probs, _ = descend(FIVE, lambda h: -jax.nn.log_sigmoid(beta * h), rate=0.05)
    assert (probs[0] <= limit).all()
    assert probs[-1, 0] > 10 * limit[0]
    corners = bound * np.stack(np.meshgrid(*[[-1, 1]] * 5), axis=-1).reshape(-1, 5)
    optima = gibbs.gibbs_log_probs(corners, np.log(FIVE), np.full(len(corners), beta))
    assert (np.exp(optima) <= limit + 1e-12).all()


def test_a_zero_of_the_reference_is_kept_by_rlhf_and_not_by_optima_of_dpo():
    reward = np.array([0.0, 0.0, 1e6])
    assert np.exp(gibbs.gibbs_log_probs(reward, np.log(HALVES), 0.1))[2] == 0
    counts, features = np.array([[0, 3, 0], [1, 0, 0], [0, 0, 0]]), np.eye(3)
    rlhf = equivalence.fit_rlhf(features, features, counts, np.log(HALVES), 0.1)
    assert_allclose(np.exp(rlhf.log_probs[:2]), special.softmax([10 * np.log(3), 0]))
    assert np.exp(rlhf.log_probs)[2] == 0
    assert np.exp(dpo_optimum(np.log(HALVES), LECTURE, 1.0))[2] == 1


def test_the_published_peak_and_where_ipo_parks():
    assert_allclose(displacement_peak(0.001, 0.499), 0.918, atol=5e-4)
    parked = ipo_parking(0.001, 0.499, 0.5 / np.log(499))
    assert_allclose(parked, (0.041, 0.041, 0.918), atol=5e-4)


@given(st.floats(-1e4, 1e4))
def test_probabilities_of_a_pair_are_finite_and_sum_to_one_at_any_margin(margin):
    pair = np.array(displaced(0.2, 0.3, margin))
    assert np.isfinite(pair).all()
    assert_allclose(pair.sum(), 1, rtol=1e-12)


@pytest.mark.parametrize("excess", [0.0, 1e-12, 1e-9])
@pytest.mark.parametrize("winner", [0.1, 0.4, 0.7])
def test_a_pair_with_all_the_mass_leaves_nothing_and_never_less(winner, excess):
    loser = 1 - winner + excess
    margins = np.linspace(-50, 50, 41)
    pair = np.array(displaced(winner, loser, margins))
    assert (pair >= 0).all()
    assert_allclose(pair.sum(axis=0), 1, rtol=1e-12)
    assert 0 <= displacement_peak(winner, loser) < 1e-15
    assert ipo_parking(winner, loser, 0.1).uncovered >= 0


@given(st.integers(0, 10**6), st.floats(0, 2))
def test_kl_ball_coverage_is_what_a_solver_finds(seed, radius):
    q, mu = np.random.default_rng(seed).dirichlet(np.ones(4), 2)

    def most(y):
        def excess(p):
            return special.rel_entr([p, 1 - p], [q[y], 1 - q[y]]).sum() - radius

        return 1.0 if excess(1.0) <= 0 else optimize.brentq(excess, q[y], 1.0, xtol=1e-14)

    expected = max(most(y) / mu[y] for y in range(4))
    assert_allclose(coverage_in_ball(np.log(q), np.log(mu), radius), expected, rtol=1e-6)


def test_coverage_grows_with_the_ball_up_to_the_global_one():
    reference, data = np.log(np.array([0.6, 0.3, 0.1])), np.log(np.array([0.2, 0.3, 0.5]))
    found = coverage_in_ball(reference, data, np.array([0.0, 0.1, 1.0, 50.0]))
    assert_allclose(found[0], 3.0, rtol=1e-6)
    assert (np.diff(found) >= 0).all()
    assert_allclose(found[-1], global_coverage(data), rtol=1e-12)
    assert global_coverage(np.log(HALVES)) == np.inf
    assert coverage_in_ball(np.log(HALVES), np.log(HALVES), 10.0) == 2.0
    assert coverage_in_ball(np.log(np.full(3, 1 / 3)), np.log(HALVES), 0.1) == np.inf


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: is_dpo_optimum(np.log(HALVES), np.roll(np.eye(3), 1, 0)), "cycle through arm"),
        (
            lambda: dpo_optimum(np.log(HALVES[:2]), LECTURE[:2, :2], 0.5),
            "every response is in some",
        ),
        (
            lambda: dpo_optimum(np.log(HALVES[::-1]), LECTURE, 0.5),
            "preferences name arm 0, which the reference excludes",
        ),
        (
            lambda: dpo_optimum(np.log(HALVES[[0, 2, 1]]), LECTURE, 0.5),
            "preferences name arm 1, which the reference excludes",
        ),
        (
            lambda: dpo_optimum(np.log(np.stack([HALVES, HALVES])), LECTURE, 0.5),
            r"reference_log_probs has shape \(2, 3\); one optimum is of one problem, use jax.vmap",
        ),
        (
            lambda: dpo_optimum(np.log(HALVES), LECTURE, np.array([0.1, 0.2])),
            r"uncovered_mass has shape \(2,\)",
        ),
        (lambda: displaced(0.7, 0.5, 1.0), "sum to 1.2"),
    ],
)
def test_what_has_no_optimum_is_refused(call, message):
    with pytest.raises(InvalidInput, match=message):
        call()
