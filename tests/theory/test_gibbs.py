import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.testing import assert_allclose, assert_array_equal
from scipy import optimize, special

from theory.gibbs import gibbs_at_kl, gibbs_log_probs, optimal_value, regularised_objective

pytestmark = pytest.mark.usefixtures("float64")

K = 5
WEIGHTS = arrays(float, K, elements=st.just(0.0) | st.floats(1e-6, 1)).filter(np.any)
DISTRIBUTIONS = WEIGHTS.map(lambda weights: weights / weights.sum())
POSITIVE = arrays(float, K, elements=st.floats(1e-3, 1)).map(
    lambda weights: weights / weights.sum()
)
REWARDS = arrays(float, K, elements=st.floats(-5, 5))
BETAS = st.floats(0.05, 10)

NONZERO = REWARDS.filter(lambda reward: np.abs(reward).max() > 1e-3)

at_kl = jax.jit(gibbs_at_kl)

RNG = np.random.default_rng(0)
POLICY, REFERENCE = RNG.dirichlet(np.ones(K), (2, 3))
REWARD = RNG.normal(size=(3, K))
BETA = np.array([0.1, 1.0, 5.0])


@given(REWARDS, DISTRIBUTIONS, BETAS)
def test_optimum_is_the_softmax_of_the_tilted_reference_and_attains_its_value(
    reward, reference, beta
):
    expected = special.log_softmax(np.log(reference) + reward / beta)
    value = beta * special.logsumexp(reward / beta, b=reference)
    optimum = gibbs_log_probs(reward, np.log(reference), beta)
    assert_allclose(optimum, expected, rtol=1e-12, atol=1e-12)
    for found in (
        optimal_value(reward, np.log(reference), beta),
        regularised_objective(optimum, reward, np.log(reference), beta),
    ):
        assert_allclose(found, value, rtol=1e-12, atol=1e-12)


@given(DISTRIBUTIONS, REWARDS, POSITIVE, BETAS)
def test_objective_is_reward_minus_the_reverse_kl_to_the_reference(policy, reward, reference, beta):
    expected = policy @ reward - beta * special.rel_entr(policy, reference).sum()
    objective = regularised_objective(np.log(policy), reward, np.log(reference), beta)
    assert_allclose(objective, expected, rtol=1e-12, atol=1e-12)


@given(DISTRIBUTIONS, REWARDS, POSITIVE, BETAS)
def test_objective_is_the_optimal_value_minus_the_kl_to_the_optimum(
    policy, reward, reference, beta
):
    best = optimal_value(reward, np.log(reference), beta)
    optimum = np.exp(gibbs_log_probs(reward, np.log(reference), beta))
    objective = regularised_objective(np.log(policy), reward, np.log(reference), beta)
    expected = best - beta * special.rel_entr(policy, optimum).sum()
    assert_allclose(objective, expected, rtol=1e-12, atol=1e-12)
    assert objective <= best + 1e-12


@given(DISTRIBUTIONS, st.floats(-1e100, 1e100))
def test_excluded_arm_stays_at_zero_whatever_its_reward(reference, reward_of_excluded):
    reward = np.where(reference > 0, np.arange(K), reward_of_excluded)
    log_probs = np.asarray(gibbs_log_probs(reward, np.log(reference), 0.5))
    assert (np.exp(log_probs[reference == 0]) == 0).all()
    assert_array_equal(log_probs, gibbs_log_probs(np.arange(K), np.log(reference), 0.5))


def test_policy_outside_the_references_support_is_worth_minus_infinity():
    reference, policy = np.array([0.5, 0.5, 0.0]), np.array([0.4, 0.4, 0.2])
    assert regularised_objective(np.log(policy), np.ones(3), np.log(reference), 1.0) == -np.inf
    assert regularised_objective(np.log(reference), np.ones(3), np.log(policy), 1.0) > -np.inf


@given(REWARDS, POSITIVE, BETAS, st.permutations(range(K)))
def test_relabelling_the_arms_relabels_the_optimum(reward, reference, beta, order):
    optimum = gibbs_log_probs(reward, np.log(reference), beta)
    relabelled = gibbs_log_probs(reward[order], np.log(reference)[order], beta)
    assert_allclose(relabelled, optimum[np.array(order)], rtol=1e-12, atol=1e-12)


def test_gradients_stay_finite_beside_an_excluded_arm():
    reference = np.log(np.array([0.5, 0.3, 0.0, 0.1, 0.1]))

    def value_of_optimum(reward, beta):
        optimum = gibbs_log_probs(reward, reference, beta)
        return regularised_objective(optimum, reward, reference, beta)

    by_reward, by_beta = jax.jit(jax.grad(value_of_optimum, (0, 1)))(REWARD[0], 0.3)
    # The optimum is stationary, so only the explicit dependence is left.
    optimum = np.exp(gibbs_log_probs(REWARD[0], reference, 0.3))
    assert_allclose(by_reward, optimum, rtol=1e-12, atol=1e-14)
    of_value = jax.jit(jax.grad(optimal_value, (0, 2)))(REWARD[0], reference, 0.3)
    assert_allclose(of_value[0], optimum, rtol=1e-12, atol=1e-14)
    assert_allclose(by_beta, of_value[1], rtol=1e-12)


# At a given KL


def kl(policy, reference):
    return special.rel_entr(np.exp(policy), reference).sum(-1)


@given(DISTRIBUTIONS, NONZERO, st.floats(0.01, 0.99))
def test_the_policy_at_a_kl_has_that_kl_wherever_it_can(reference, reward, part):
    held = reference > 0
    best = held & (reward == reward[held].max())
    farthest = -np.log(reference[best].sum())
    limit = part * farthest
    found = kl(np.asarray(at_kl(reward, np.log(reference), limit)), reference)
    assert found <= limit + 1e-12
    behind = reward[held & ~best]
    # Rewards that hardly differ are out of the search's range, and so are KLs near rounding.
    if behind.size and reward[best].max() - behind.max() > 1e-3 and limit > 1e-6:
        assert_allclose(found, limit, rtol=1e-7)


@pytest.mark.parametrize("row", range(3))
@pytest.mark.parametrize("limit", [0.01, 0.1, 0.4])
def test_no_policy_within_the_kl_earns_more(row, limit):
    reward, reference = REWARD[row], REFERENCE[row]
    found = np.exp(at_kl(reward, np.log(reference), limit))
    best = optimize.minimize(
        lambda p: -p @ reward,
        reference,
        jac=lambda p: -reward,
        bounds=[(1e-12, 1)] * K,
        constraints=[
            {"type": "eq", "fun": lambda p: p.sum() - 1, "jac": np.ones_like},
            {
                "type": "ineq",
                "fun": lambda p: limit - special.rel_entr(p, reference).sum(),
                # Exact: the noise of finite differences ends the line search on some processors.
                "jac": lambda p: -np.log(p / reference) - 1,
            },
        ],
        tol=1e-12,
    )
    assert best.success
    assert_allclose(found @ reward, best.x @ reward, rtol=0, atol=1e-7)
    assert_allclose(found, best.x, atol=1e-3)


@pytest.mark.parametrize("row", range(3))
@pytest.mark.parametrize("beta", [0.2, 1.0, 7.0])
def test_the_policy_at_the_kl_of_a_gibbs_policy_is_that_policy(row, beta):
    expected = np.asarray(gibbs_log_probs(REWARD[row], np.log(REFERENCE[row]), beta))
    found = at_kl(REWARD[row], np.log(REFERENCE[row]), kl(expected, REFERENCE[row]))
    assert_allclose(found, expected, atol=1e-8)


@pytest.mark.parametrize("limit", [10.0, np.inf])
def test_beyond_reach_the_arms_of_highest_reward_share_as_in_the_reference(limit):
    reference, reward = np.array([0.1, 0.3, 0.2, 0.4, 0.0]), np.array([1.0, 1.0, 0.0, -2.0, 1.5])
    found = np.exp(at_kl(reward, np.log(reference), limit))
    assert_allclose(found, [0.25, 0.75, 0, 0, 0], atol=1e-12)


def test_the_policy_at_kl_zero_is_the_reference():
    found = np.exp(at_kl(REWARD, np.log(REFERENCE), 0.0))
    # The KL goes with the square of the distance: rounding of it is 1e-8 in the policy.
    assert_allclose(found, REFERENCE, atol=1e-7)


@pytest.mark.parametrize("reward", [0.0, 3.0, -1e-3])
@pytest.mark.parametrize("function", [gibbs_at_kl, at_kl], ids=["plain", "jit"])
def test_where_all_rewards_are_the_same_the_policy_is_the_reference(function, reward):
    found = np.exp(function(np.full(K, reward), np.log(REFERENCE[0]), 0.3))
    assert_allclose(found, REFERENCE[0], rtol=1e-6)


@given(DISTRIBUTIONS, NONZERO, st.floats(0, 3))
def test_what_the_reference_excludes_stays_at_zero_at_any_kl(reference, reward, limit):
    found = np.exp(at_kl(reward, np.log(reference), limit))
    assert (found[reference == 0] == 0).all()
    assert_allclose(found.sum(), 1, rtol=1e-12)


def test_the_reward_grows_with_the_kl_that_is_allowed():
    limits = np.linspace(0, 3, 31)
    earned = np.exp(at_kl(REWARD[0], np.log(REFERENCE[0]), limits)) @ REWARD[0]
    assert (np.diff(earned) > -1e-12).all()
    assert earned[0] == pytest.approx(REFERENCE[0] @ REWARD[0], abs=1e-6)
    assert earned[-1] > earned[0]


@pytest.mark.parametrize(
    ("shift", "scale", "atol"),
    [(3.0, 1.0, 1e-7), (-100.0, 1.0, 1e-7), (1e10, 1, 1e-5), (0.0, 1e5, 1e-7), (0.0, 1e-5, 1e-7)],
)
def test_neither_shift_nor_unit_of_the_reward_changes_the_policy_at_a_kl(shift, scale, atol):
    expected = at_kl(REWARD[0], np.log(REFERENCE[0]), 0.2)
    found = at_kl(shift + scale * REWARD[0], np.log(REFERENCE[0]), 0.2)
    assert_allclose(found, expected, atol=atol)


@pytest.mark.parametrize("size", [1e12, -1e12])
def test_the_reward_of_an_excluded_arm_does_not_matter_at_a_kl(size):
    reference, reward = np.array([0.1, 0.3, 0.2, 0.4, 0.0]), np.array([1.0, 0.5, 0.0, -2.0, 0.0])
    expected = at_kl(reward, np.log(reference), 0.2)
    reward[-1] = size
    assert_allclose(at_kl(reward, np.log(reference), 0.2), expected, atol=1e-7)
