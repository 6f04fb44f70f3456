import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from jax.test_util import check_grads
from scipy import special

from theory.checks import InvalidInput
from theory.gibbs import gibbs_log_probs, optimal_value, regularised_objective

pytestmark = pytest.mark.usefixtures("float64")

K = 5
WEIGHTS = arrays(float, K, elements=st.just(0.0) | st.floats(1e-6, 1)).filter(np.any)
DISTRIBUTIONS = WEIGHTS.map(lambda weights: weights / weights.sum())
POSITIVE = arrays(float, K, elements=st.floats(1e-3, 1)).map(
    lambda weights: weights / weights.sum()
)
REWARDS = arrays(float, K, elements=st.floats(-5, 5))
BETAS = st.floats(0.05, 10)

RNG = np.random.default_rng(0)
POLICY, REFERENCE = RNG.dirichlet(np.ones(K), (2, 3))
REWARD = RNG.normal(size=(3, K))
BETA = np.array([0.1, 1.0, 5.0])


def log(probs):
    with np.errstate(divide="ignore"):
        return np.log(probs)


@given(REWARDS, DISTRIBUTIONS, BETAS)
def test_optimum_is_the_softmax_of_the_tilted_reference(reward, reference, beta):
    expected = special.log_softmax(log(reference) + reward / beta)
    value = beta * special.logsumexp(reward / beta, b=reference)
    np.testing.assert_allclose(
        gibbs_log_probs(reward, log(reference), beta), expected, rtol=1e-12, atol=1e-12
    )
    np.testing.assert_allclose(
        optimal_value(reward, log(reference), beta), value, rtol=1e-12, atol=1e-12
    )


@given(DISTRIBUTIONS, REWARDS, POSITIVE, BETAS)
def test_objective_is_reward_minus_the_reverse_kl_to_the_reference(policy, reward, reference, beta):
    expected = policy @ reward - beta * special.rel_entr(policy, reference).sum()
    objective = regularised_objective(log(policy), reward, np.log(reference), beta)
    np.testing.assert_allclose(objective, expected, rtol=1e-12, atol=1e-12)


@given(DISTRIBUTIONS, REWARDS, POSITIVE, BETAS)
def test_objective_is_the_optimal_value_minus_the_kl_to_the_optimum(
    policy, reward, reference, beta
):
    best = optimal_value(reward, np.log(reference), beta)
    optimum = np.exp(gibbs_log_probs(reward, np.log(reference), beta))
    objective = regularised_objective(log(policy), reward, np.log(reference), beta)
    expected = best - beta * special.rel_entr(policy, optimum).sum()
    np.testing.assert_allclose(objective, expected, rtol=1e-12, atol=1e-12)
    assert objective <= best + 1e-12


@given(REWARDS, DISTRIBUTIONS, BETAS)
def test_optimum_attains_the_optimal_value(reward, reference, beta):
    optimum = gibbs_log_probs(reward, log(reference), beta)
    np.testing.assert_allclose(
        regularised_objective(optimum, reward, log(reference), beta),
        optimal_value(reward, log(reference), beta),
        rtol=1e-12,
        atol=1e-12,
    )


@given(DISTRIBUTIONS, st.floats(-1e100, 1e100))
def test_excluded_arm_stays_at_zero_whatever_its_reward(reference, reward_of_excluded):
    reward = np.where(reference > 0, np.arange(K), reward_of_excluded)
    log_probs = np.asarray(gibbs_log_probs(reward, log(reference), 0.5))
    assert (np.exp(log_probs[reference == 0]) == 0).all()
    np.testing.assert_array_equal(log_probs, gibbs_log_probs(np.arange(K), log(reference), 0.5))


def test_policy_outside_the_references_support_is_worth_minus_infinity():
    reference, policy = np.array([0.5, 0.5, 0.0]), np.array([0.4, 0.4, 0.2])
    assert regularised_objective(np.log(policy), np.ones(3), log(reference), 1.0) == -np.inf
    assert regularised_objective(log(reference), np.ones(3), np.log(policy), 1.0) > -np.inf


def test_policy_gradient_of_the_objective_vanishes_at_the_optimum_and_nowhere_else():
    def objective(logits):
        return regularised_objective(
            jax.nn.log_softmax(logits), REWARD[0], np.log(REFERENCE[0]), 0.3
        )

    optimum = gibbs_log_probs(REWARD[0], np.log(REFERENCE[0]), 0.3)
    gradient = jax.jit(jax.grad(objective))
    np.testing.assert_allclose(gradient(optimum), np.zeros(K), atol=1e-14)
    assert np.abs(gradient(np.log(REFERENCE[0]))).max() > 0.01


def test_optimal_value_grows_with_each_reward_by_the_optimum_there():
    gradient = jax.jit(jax.grad(optimal_value))(REWARD[0], np.log(REFERENCE[0]), 0.3)
    optimum = np.exp(gibbs_log_probs(REWARD[0], np.log(REFERENCE[0]), 0.3))
    np.testing.assert_allclose(gradient, optimum, rtol=1e-12)


@given(REWARDS, POSITIVE, BETAS, st.permutations(range(K)))
def test_relabelling_the_arms_relabels_the_optimum(reward, reference, beta, order):
    optimum = gibbs_log_probs(reward, np.log(reference), beta)
    relabelled = gibbs_log_probs(reward[order], np.log(reference)[order], beta)
    np.testing.assert_allclose(relabelled, optimum[np.array(order)], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (gibbs_log_probs, (REWARD, np.log(REFERENCE), BETA)),
        (regularised_objective, (np.log(POLICY), REWARD, np.log(REFERENCE), BETA)),
        (optimal_value, (REWARD, np.log(REFERENCE), BETA)),
    ],
)
def test_transformations_agree_and_gradients_are_finite_differences(
    function, arguments, assert_transforms
):
    assert_transforms(function, *arguments)
    row = tuple(argument[0] for argument in arguments)
    check_grads(jax.jit(function), row, order=1, modes=["rev"], eps=1e-6)


def test_gradients_stay_finite_beside_an_excluded_arm():
    reference = log(np.array([0.5, 0.3, 0.0, 0.1, 0.1]))

    def value_of_optimum(reward, beta):
        optimum = gibbs_log_probs(reward, reference, beta)
        return regularised_objective(optimum, reward, reference, beta)

    by_reward, by_beta = jax.jit(jax.grad(value_of_optimum, (0, 1)))(REWARD[0], 0.3)
    # The optimum is stationary, so only the explicit dependence is left.
    np.testing.assert_allclose(
        by_reward, np.exp(gibbs_log_probs(REWARD[0], reference, 0.3)), rtol=1e-12, atol=1e-14
    )
    np.testing.assert_allclose(
        by_beta, jax.jit(jax.grad(optimal_value, 2))(REWARD[0], reference, 0.3), rtol=1e-12
    )


HALVES = np.log([0.5, 0.5])
BAD_PROBLEMS = [
    (([1.0, np.inf], HALVES, 1.0), r"reward\[1\] is inf; it must be a finite number"),
    (([np.nan, 1.0], HALVES, 1.0), r"reward\[0\] is nan; it must be a finite number"),
    (([1.0], HALVES, 1.0), "reward has 1 arms; at least 2 are needed"),
    ((1.0, HALVES, 1.0), "reward has no axis of arms; at least 2 are needed"),
    (([1.0, 2.0, 3.0], HALVES, 1.0), "reference_log_probs has 2 arms but reward has 3"),
    (([1.0, 2.0], np.zeros(2), 1.0), r"exp\(reference_log_probs\) sums to 2; .* sum to 1"),
    (([1.0, 2.0], [0.0, np.nan], 1.0), r"exp\(reference_log_probs\)\[1\] is nan"),
    (([1.0, 2.0], HALVES, 0.0), "beta is 0; it must be a finite number > 0"),
    (([1.0, 2.0], HALVES, -1.0), "beta is -1; it must be a finite number > 0"),
    (([1.0, 2.0], HALVES, np.nan), "beta is nan; it must be a finite number > 0"),
]


@pytest.mark.parametrize(("problem", "message"), BAD_PROBLEMS)
@pytest.mark.parametrize("function", [gibbs_log_probs, optimal_value])
def test_bad_problem_is_refused(function, problem, message):
    with pytest.raises(InvalidInput, match=message):
        function(*problem)


@pytest.mark.parametrize(
    ("policy", "problem", "message"),
    [
        (np.zeros(2), ([1.0, 2.0], HALVES, 1.0), r"exp\(log_probs\) sums to 2; .* sum to 1"),
        (np.log([0.2, 0.3, 0.5]), ([1.0, 2.0], HALVES, 1.0), "log_probs has 3 arms but reward has"),
        (HALVES, (1.0, HALVES, 1.0), "reward has .*arms"),
        (HALVES, ([1.0, np.inf], HALVES, 1.0), r"reward\[1\] is inf; it must be a finite number"),
        (HALVES, ([1.0, 2.0], np.zeros(2), 1.0), r"exp\(reference_log_probs\) sums to 2"),
        (HALVES, ([1.0, 2.0], HALVES, 0.0), "beta is 0; it must be a finite number > 0"),
    ],
)
def test_objective_refuses_a_bad_policy_or_problem(policy, problem, message):
    with pytest.raises(InvalidInput, match=message):
        regularised_objective(policy, *problem)
