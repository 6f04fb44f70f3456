import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import linalg, optimize, special

from theory import bradley_terry
from theory.checks import InvalidInput
from theory.equivalence import (
    are_isomorphic,
    class_distance,
    fit_dpo,
    fit_rlhf,
    implicit_reward,
)
from theory.gibbs import gibbs_log_probs, regularised_objective

pytestmark = pytest.mark.usefixtures("float64")

K, F = 5, 2
EYE = np.eye(K)
SEEDS = st.integers(0, 10**6)
BETAS = st.floats(0.05, 10)
few_examples = settings(max_examples=25)


def log(probs):
    with np.errstate(divide="ignore"):
        return np.log(probs)


def random_reference(rng, excluded=()):
    weights = rng.dirichlet(np.ones(K)) + 1e-3
    weights[list(excluded)] = 0
    return log(weights / weights.sum())


def random_counts(rng, excluded=()):
    """Counts among the arms that are left; a cycle through all of them keeps rewards finite."""
    counts = rng.integers(0, 5, (K, K)) * (1.0 - EYE)
    cycle = rng.permutation(np.setdiff1d(np.arange(K), excluded))
    counts[cycle, np.roll(cycle, 1)] += 1
    counts[list(excluded)] = 0
    counts[:, list(excluded)] = 0
    return counts


def invertible(rng, size=F):
    left, right = (np.linalg.qr(rng.normal(size=(size, size)))[0] for _ in range(2))
    return left @ np.diag(rng.uniform(0.3, 3, size)) @ right


def same_class(rng, features):
    """Other features of the same class: an invertible map of them, and a constant a column."""
    return features @ invertible(rng, features.shape[1]) + 3 * rng.normal(size=features.shape[1])


def log_linear(theta, features, reference):
    return special.log_softmax(reference + features @ theta)


# The two views of one class


@given(SEEDS, BETAS, st.sets(st.integers(0, K - 1), max_size=3))
def test_the_gibbs_policy_of_the_implicit_reward_is_the_policy(seed, beta, excluded):
    rng = np.random.default_rng(seed)
    policy, reference = random_reference(rng, excluded), random_reference(rng, excluded)
    reward = np.asarray(implicit_reward(policy, reference, beta))
    np.testing.assert_allclose(
        gibbs_log_probs(reward, reference, beta), policy, rtol=1e-12, atol=1e-12
    )
    assert (reward[list(excluded)] == 0).all()


@given(SEEDS, BETAS, st.sets(st.integers(0, K - 1), max_size=3))
def test_the_implicit_reward_of_the_gibbs_policy_is_the_reward_up_to_a_constant(
    seed, beta, excluded
):
    rng = np.random.default_rng(seed)
    reward, reference = 2 * rng.normal(size=K), random_reference(rng, excluded)
    policy = gibbs_log_probs(reward, reference, beta)
    constant = (np.asarray(implicit_reward(policy, reference, beta)) - reward)[
        np.isfinite(reference)
    ]
    np.testing.assert_allclose(constant, constant[0], atol=1e-11)


def test_the_reference_earns_nothing_and_what_a_policy_gives_up_minus_infinity():
    reference = log([0.5, 0.3, 0.2, 0.0])
    np.testing.assert_array_equal(implicit_reward(reference, reference, 0.7), 0)
    found = implicit_reward(log([0.5, 0.5, 0.0, 0.0]), reference, 2.0)
    np.testing.assert_allclose(found, [0, 2 * np.log(5 / 3), -np.inf, 0], rtol=1e-12)


def test_implicit_rewards_broadcast_and_differentiate(assert_transforms):
    rng = np.random.default_rng(0)
    policies = np.stack([random_reference(rng) for _ in range(3)])
    references = np.stack([random_reference(rng) for _ in range(3)])
    assert_transforms(implicit_reward, policies, references, np.array([0.1, 1.0, 5.0]))
    excluding = log([0.5, 0.5, 0.0])
    slope = jax.grad(lambda beta: implicit_reward(excluding, excluding, beta).sum())(0.3)
    assert slope == 0


# In one class


@given(SEEDS, BETAS)
def test_dpo_and_rlhf_end_with_one_policy_in_isomorphic_classes(seed, beta):
    rng = np.random.default_rng(seed)
    features, counts, reference = rng.normal(size=(K, F)), random_counts(rng), random_reference(rng)
    reward_features = same_class(rng, features)
    assert are_isomorphic(features, reward_features)
    dpo = fit_dpo(features, counts, reference, beta)
    rlhf = fit_rlhf(features, reward_features, counts, reference, beta)
    np.testing.assert_allclose(dpo.log_probs, rlhf.log_probs, atol=1e-8)
    np.testing.assert_allclose(dpo.reward, implicit_reward(dpo.log_probs, reference, beta), atol=0)
    constant = dpo.reward - rlhf.reward
    np.testing.assert_allclose(constant, constant[0], atol=1e-8)


@few_examples
@given(SEEDS, BETAS, st.integers(0, K - 1))
def test_what_the_reference_excludes_does_not_tell_classes_apart(seed, beta, arm):
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(K, F))
    counts, reference = random_counts(rng, [arm]), random_reference(rng, [arm])
    reward_features = same_class(rng, features)
    reward_features[arm] = 5 * rng.normal(size=F)
    assert are_isomorphic(features, reward_features, reference)
    assert not are_isomorphic(features, reward_features)
    dpo = fit_dpo(features, counts, reference, beta)
    rlhf = fit_rlhf(features, reward_features, counts, reference, beta)
    np.testing.assert_allclose(np.exp(dpo.log_probs), np.exp(rlhf.log_probs), atol=1e-8)
    assert dpo.log_probs[arm] == rlhf.log_probs[arm] == -np.inf
    assert np.isfinite(dpo.reward).all()


@few_examples
@given(SEEDS, BETAS)
def test_a_class_with_a_redundant_feature_has_the_same_policy(seed, beta):
    rng = np.random.default_rng(seed)
    features, counts, reference = rng.normal(size=(K, F)), random_counts(rng), random_reference(rng)
    redundant = np.column_stack([features, features @ [1.0, -2.0] + 1.0])
    expected = fit_dpo(features, counts, reference, beta).log_probs
    for found in (
        fit_dpo(redundant, counts, reference, beta),
        fit_rlhf(redundant, features, counts, reference, beta),
        fit_rlhf(features, redundant, counts, reference, beta),
    ):
        np.testing.assert_allclose(found.log_probs, expected, atol=1e-8)


@few_examples
@given(SEEDS, BETAS)
def test_dpo_over_all_policies_is_maximum_likelihood_of_a_table(seed, beta):
    rng = np.random.default_rng(seed)
    counts, reference = random_counts(rng), random_reference(rng)
    reward = bradley_terry.fit_tabular(counts, ridge=0.0)
    expected = gibbs_log_probs(reward, reference, beta)
    dpo = fit_dpo(EYE, counts, reference, beta)
    rlhf = fit_rlhf(EYE, EYE, counts, reference, beta)
    np.testing.assert_allclose(dpo.log_probs, expected, atol=1e-10)
    np.testing.assert_allclose(np.exp(rlhf.log_probs), np.exp(expected), atol=1e-12)


@few_examples
@given(SEEDS, BETAS)
def test_dpo_is_where_a_general_optimiser_of_its_loss_ends(seed, beta):
    rng = np.random.default_rng(seed)
    features, counts, reference = rng.normal(size=(K, F)), random_counts(rng), random_reference(rng)

    def loss(theta):
        """Label by label, from the policies."""
        ratios = log_linear(theta, features, reference) - reference
        total, gradient = 0.0, np.zeros(F)
        for a, b in np.argwhere(counts):
            margin = beta * (ratios[a] - ratios[b])
            total -= counts[a, b] * special.log_expit(margin)
            gradient -= counts[a, b] * special.expit(-margin) * (features[a] - features[b])
        return total, beta * gradient

    expected = optimize.minimize(
        lambda x: (loss(x / beta)[0], loss(x / beta)[1] / beta),
        np.zeros(F),
        jac=True,
        options={"gtol": 1e-9},
    )
    found = fit_dpo(features, counts, reference, beta)
    np.testing.assert_allclose(
        beta * found.log_probs,
        beta * log_linear(expected.x / beta, features, reference),
        atol=1e-6,
    )
    theta = np.linalg.lstsq(
        np.column_stack([features, np.ones(K)]), found.log_probs - reference, rcond=None
    )[0][:F]
    np.testing.assert_allclose(log_linear(theta, features, reference), found.log_probs, atol=1e-9)
    assert loss(theta)[0] <= expected.fun + 1e-10
    np.testing.assert_allclose(loss(theta)[1] / beta, 0, atol=1e-9)


# In two classes


def slope(found, features, reference, beta):
    """The gradient of E_π[r]/β − KL(π‖π_ref) in θ at a policy."""
    probs = np.exp(found.log_probs)
    advantage = found.reward / beta - (np.asarray(found.log_probs) - reference)
    return (probs * (advantage - probs @ advantage)) @ features


@few_examples
@given(SEEDS, BETAS)
def test_rlhf_ends_at_a_stationary_point_no_worse_than_the_reference(seed, beta):
    rng = np.random.default_rng(seed)
    features, reward_features = rng.normal(size=(2, K, F))
    counts, reference = random_counts(rng), random_reference(rng)
    found = fit_rlhf(features, reward_features, counts, reference, beta)
    weights = bradley_terry.fit_linear(reward_features, counts, ridge=0.0)
    np.testing.assert_allclose(found.reward, reward_features @ weights, atol=1e-12)

    design = np.column_stack([features, np.ones(K)])
    ratio = np.asarray(found.log_probs) - reference
    fitted = design @ np.linalg.lstsq(design, ratio, rcond=None)[0]
    np.testing.assert_allclose(fitted, ratio, atol=1e-8 * (1 + np.abs(ratio).max()))

    np.testing.assert_allclose(slope(found, features, reference, beta), 0, atol=1e-5)
    value = regularised_objective(found.log_probs, found.reward, reference, beta)
    assert value >= np.exp(reference) @ found.reward - 1e-12


@pytest.mark.parametrize(("seed", "beta"), [(89, 0.3), (190, 10.0)])
def test_rlhf_between_classes_is_stationary_to_the_precision_of_the_numbers(seed, beta):
    rng = np.random.default_rng(seed)
    features, reward_features = rng.normal(size=(2, K, F))
    counts, reference = random_counts(rng), random_reference(rng)
    found = fit_rlhf(features, reward_features, counts, reference, beta)
    np.testing.assert_allclose(slope(found, features, reference, beta), 0, atol=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_rlhf_is_where_a_general_optimiser_of_the_objective_ends_from_any_start(seed):
    rng = np.random.default_rng(seed)
    beta = 1.5
    features, reward_features = rng.normal(size=(2, K, F))
    counts, reference = random_counts(rng), random_reference(rng)
    found = fit_rlhf(features, reward_features, counts, reference, beta)

    def loss(theta):
        log_probs = log_linear(theta, features, reference)
        probs = np.exp(log_probs)
        advantage = np.asarray(found.reward) - beta * (log_probs - reference)
        return -probs @ advantage, -(probs * (advantage - probs @ advantage)) @ features

    for start in 2 * rng.normal(size=(4, F)):
        result = optimize.minimize(loss, start, jac=True, options={"gtol": 1e-10})
        np.testing.assert_allclose(
            log_linear(result.x, features, reference), found.log_probs, atol=1e-6
        )


@few_examples
@given(SEEDS, BETAS, st.sets(st.integers(0, K - 1), max_size=2))
def test_over_all_policies_rlhf_is_the_gibbs_policy_of_its_reward(seed, beta, excluded):
    rng = np.random.default_rng(seed)
    excluded = sorted(excluded)
    counts, reference = random_counts(rng, excluded), random_reference(rng, excluded)
    found = fit_rlhf(EYE, rng.normal(size=(K, F)), counts, reference, beta)
    expected = gibbs_log_probs(found.reward, reference, beta)
    np.testing.assert_allclose(np.exp(found.log_probs), np.exp(expected), atol=1e-12)
    assert (found.log_probs[np.array(excluded, int)] == -np.inf).all()


def test_different_classes_end_with_different_policies_each_best_at_its_own():
    rng = np.random.default_rng(3)
    features, reward_features = rng.normal(size=(2, K, F))
    counts, reference, beta = random_counts(rng), random_reference(rng), 0.5
    assert class_distance(features, reward_features) > 0.5
    dpo = fit_dpo(features, counts, reference, beta)
    rlhf = fit_rlhf(features, reward_features, counts, reference, beta)
    assert np.abs(np.exp(dpo.log_probs) - np.exp(rlhf.log_probs)).max() > 0.01

    def likelihood_loss(policy):
        return bradley_terry.bradley_terry_loss(implicit_reward(policy, reference, beta), counts)

    def objective(policy):
        return regularised_objective(policy, rlhf.reward, reference, beta)

    assert likelihood_loss(dpo.log_probs) < likelihood_loss(rlhf.log_probs) - 1e-4
    assert objective(rlhf.log_probs) > objective(dpo.log_probs) + 1e-4


def test_fits_run_under_jit_and_vmap():
    rng = np.random.default_rng(4)
    features, reward_features = rng.normal(size=(2, K, F))
    counts = np.stack([random_counts(rng) for _ in range(3)])
    references = np.stack([random_reference(rng) for _ in range(3)])
    betas = np.array([0.1, 1.0, 5.0])
    rows = list(zip(counts, references, betas, strict=True))

    def rlhf(*problem):
        return fit_rlhf(features, reward_features, *problem)

    def dpo(*problem):
        return fit_dpo(features, *problem)

    for fit in (dpo, rlhf):
        swept = jax.jit(jax.vmap(fit))(counts, references, betas)
        for i, row in enumerate(rows):
            expected = fit(*row)
            np.testing.assert_allclose(swept.log_probs[i], expected.log_probs, atol=1e-8)
            np.testing.assert_allclose(swept.reward[i], expected.reward, atol=1e-8)


def test_float32_agrees_with_float64():
    rng = np.random.default_rng(5)
    features, reward_features = rng.normal(size=(2, K, F))
    counts, reference = random_counts(rng), random_reference(rng)
    expected = (
        fit_dpo(features, counts, reference, 0.5),
        fit_rlhf(features, reward_features, counts, reference, 0.5),
    )
    with jax.enable_x64(False):
        found = (
            fit_dpo(features, counts, reference, 0.5),
            fit_rlhf(features, reward_features, counts, reference, 0.5),
        )
    for single, double in zip(found, expected, strict=True):
        assert single.log_probs.dtype == single.reward.dtype == np.float32
        np.testing.assert_allclose(single.log_probs, double.log_probs, atol=1e-3)


# How far apart classes are


@given(SEEDS, st.integers(1, 3), st.integers(1, 3), st.booleans())
def test_distance_is_the_sine_of_the_largest_principal_angle(seed, first, second, exclude):
    rng = np.random.default_rng(seed)
    features, other = rng.normal(size=(K, first)), rng.normal(size=(K, second))
    reference = random_reference(rng, [1] if exclude else [])
    held = np.isfinite(reference)
    centred = [f[held] - f[held].mean(axis=0) for f in (features, other)]
    expected = np.sin(linalg.subspace_angles(*centred).max()) if first == second else 1.0
    found = class_distance(features, other, reference)
    np.testing.assert_allclose(found, expected, atol=1e-7)
    np.testing.assert_allclose(class_distance(other, features, reference), found, atol=1e-12)
    assert 0 <= found <= 1


@given(SEEDS, st.integers(1, 3))
def test_distance_does_not_see_invertible_maps_and_constants(seed, columns):
    rng = np.random.default_rng(seed)
    features, other = rng.normal(size=(2, K, columns))
    expected = class_distance(features, other)
    moved = class_distance(same_class(rng, features), same_class(rng, other))
    np.testing.assert_allclose(moved, expected, atol=1e-9)
    assert class_distance(features, same_class(rng, features)) < 1e-12
    assert are_isomorphic(features, np.column_stack([features, np.ones(K), features[:, 0]]))


@pytest.mark.parametrize(
    ("other", "distance"),
    [
        ([[2.0], [2.0], [0.0], [0.0]], 0.0),
        ([[1.0], [-1.0], [0.0], [0.0]], 1.0),
        ([[1.0], [0.0], [0.0], [-1.0]], np.sqrt(0.5)),
        ([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 0.0]], 1.0),
    ],
    ids=["same", "orthogonal", "at 45 degrees", "larger"],
)
def test_distances_of_classes_known_by_hand(other, distance):
    features = [[1.0], [1.0], [-1.0], [-1.0]]
    np.testing.assert_allclose(class_distance(features, other), distance, atol=1e-12)
    assert are_isomorphic(features, other) == (distance == 0)


def test_isomorphic_is_a_distance_within_the_tolerance():
    features, other = np.array([[0.0], [1.0], [2.0]]), np.array([[0.0], [1.0], [2.001]])
    assert 1e-4 < class_distance(features, other) < 1e-3
    assert not are_isomorphic(features, other)
    assert are_isomorphic(features, other, tolerance=1e-3)


def test_all_policies_are_one_class_however_they_are_written():
    assert are_isomorphic(EYE, EYE[:, 1:])
    assert are_isomorphic(EYE, np.tril(np.ones((K, K))))
    assert not are_isomorphic(EYE, EYE[:, 2:])


# Bad input

HALVES = np.log(np.full(4, 0.25))
TABLE = np.eye(4)
PAIRS = 1 - TABLE
ONE_WAY = np.tril(np.ones((4, 4)), -1)
EXCLUDING = log([0.5, 0.25, 0.25, 0.0])
FITS = {"dpo": fit_dpo, "rlhf": lambda features, *rest: fit_rlhf(features, TABLE, *rest)}


@pytest.fixture(params=FITS)
def fit(request):
    return FITS[request.param]


def test_bad_counts_are_refused(fit, bad_counts):
    counts, message = bad_counts
    with pytest.raises(InvalidInput, match=message):
        fit(TABLE, counts, HALVES, 1.0)


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        ((TABLE[:3], PAIRS, HALVES, 1.0), "one row for each of 4 arms"),
        ((TABLE[0], PAIRS, HALVES, 1.0), r"features has shape \(4,\)"),
        ((TABLE[:, :0], PAIRS, HALVES, 1.0), r"features has shape \(4, 0\)"),
        ((np.ones((4, 2)), PAIRS, HALVES, 1.0), "features has rank 0"),
        ((TABLE * np.nan, PAIRS, HALVES, 1.0), r"features\[0, 0\] is nan"),
        ((TABLE, ONE_WAY, HALVES, 1.0), "separable.*infinite"),
        (
            (TABLE, PAIRS, np.log(np.full(3, 1 / 3)), 1.0),
            "reference_log_probs has 3 arms but counts has 4",
        ),
        ((TABLE, PAIRS, np.zeros(4), 1.0), "sums to 4"),
        ((TABLE, PAIRS, HALVES * np.nan, 1.0), "is nan"),
        ((TABLE, PAIRS, EXCLUDING, 1.0), "counts name arm 3, which the reference excludes"),
        ((TABLE, PAIRS, HALVES, 0.0), "beta is 0; it must be a finite number > 0"),
        ((TABLE, PAIRS, HALVES, -1.0), "beta is -1"),
        ((TABLE, PAIRS, HALVES, np.nan), "beta is nan"),
    ],
)
def test_bad_problems_are_refused(fit, problem, message):
    with pytest.raises(InvalidInput, match=message):
        fit(*problem)


def test_separable_counts_are_refused_with_advice_that_can_be_followed(fit):
    with pytest.raises(InvalidInput, match="infinite") as refusal:
        fit(TABLE, ONE_WAY, HALVES, 1.0)
    assert "choose a ridge" not in str(refusal.value)


@pytest.mark.parametrize(
    ("reference", "beta"), [(np.stack([HALVES, HALVES]), 1.0), (HALVES, np.ones(4))]
)
def test_batches_are_refused_as_each_fit_is_of_one_problem(fit, reference, beta):
    with pytest.raises(InvalidInput, match="shape"):
        fit(TABLE, PAIRS, reference, beta)


@pytest.mark.parametrize(
    ("reward_features", "message"),
    [
        (TABLE[:3], "reward_features has shape .*one row for each of 4 arms"),
        (np.ones((4, 1)), "reward_features has rank 0"),
        (TABLE + np.inf, r"reward_features\[0, 0\] is inf"),
    ],
)
def test_bad_reward_features_are_refused(reward_features, message):
    with pytest.raises(InvalidInput, match=message):
        fit_rlhf(TABLE, reward_features, PAIRS, HALVES, 1.0)


def test_labels_that_only_the_reward_class_separates_are_refused_by_rlhf_alone():
    features, rewards = np.array([[0.0], [1.0], [0.0]]), np.array([[2.0], [1.0], [0.0]])
    counts = np.array([[0, 1.0, 1.0], [0, 0, 1.0], [0, 0, 0]])
    reference = np.log(np.full(3, 1 / 3))
    assert np.isfinite(fit_dpo(features, counts, reference, 1.0).log_probs).all()
    with pytest.raises(InvalidInput, match="infinite"):
        fit_rlhf(features, rewards, counts, reference, 1.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: implicit_reward(np.zeros(4), HALVES, 1.0), r"exp\(log_probs\) sums to 4"),
        (lambda: implicit_reward(HALVES, np.zeros(4), 1.0), r"exp\(reference_log_probs\) sums"),
        (lambda: implicit_reward(HALVES, np.log([0.5, 0.5]), 1.0), "has 2 arms but .* has 4"),
        (lambda: implicit_reward(HALVES, HALVES, 0.0), "beta is 0"),
        (lambda: implicit_reward(HALVES, HALVES, np.nan), "beta is nan"),
        (lambda: implicit_reward(HALVES, EXCLUDING, 1.0), "plays arm 3, which .* excludes"),
        (lambda: class_distance(np.ones(4), TABLE), r"features has shape \(4,\)"),
        (lambda: class_distance(1.0, TABLE), r"features has shape \(\)"),
        (lambda: class_distance(np.ones((4, 2)), TABLE), "features has rank 0"),
        (lambda: class_distance(TABLE, np.ones((4, 2))), "other_features has rank 0"),
        (lambda: class_distance(TABLE, np.eye(3)), "other_features has shape .* 4 arms"),
        (lambda: class_distance(TABLE * np.nan, TABLE), r"features\[0, 0\] is nan"),
        (lambda: class_distance(TABLE, TABLE, np.zeros(4)), "sums to 4"),
        (lambda: class_distance(TABLE, TABLE, np.log([0.5, 0.5])), r"shape \(2,\) but .* 4 arms"),
        (lambda: are_isomorphic(TABLE, TABLE, tolerance=-1.0), "tolerance is -1"),
        (lambda: are_isomorphic(TABLE, TABLE, tolerance=np.nan), "tolerance is nan"),
    ],
)
def test_bad_input_is_refused_by_name(call, message):
    with pytest.raises(InvalidInput, match=message):
        call()
