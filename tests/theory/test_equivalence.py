import chex
import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy import linalg, optimize, special

from theory import bradley_terry
from theory.checks import InvalidInput
from theory.equivalence import (
    UndeterminedWarning,
    are_isomorphic,
    class_distance,
    fit_dpo,
    fit_rlhf,
    implicit_reward,
)
from theory.gibbs import gibbs_log_probs, regularised_objective

pytestmark = [
    pytest.mark.usefixtures("float64"),
    # Only the fits of data that leave directions open may warn.
    pytest.mark.filterwarnings("error::theory.equivalence.UndeterminedWarning"),
]

K, F = 5, 2
EYE = np.eye(K)
SEEDS = st.integers(0, 10**6)
BETAS = st.floats(0.05, 10)
few_examples = settings(max_examples=25)


def random_reference(rng, excluded=()):
    weights = rng.dirichlet(np.ones(K)) + 1e-3
    weights[list(excluded)] = 0
    return np.log(weights / weights.sum())


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


def random_problem(seed, excluded=()):
    """Features of two classes, counts and a reference."""
    rng = np.random.default_rng(seed)
    features, other = rng.normal(size=(2, K, F))
    return features, other, random_counts(rng, excluded), random_reference(rng, excluded)


def log_linear(theta, features, reference):
    return special.log_softmax(reference + features @ theta)


def coordinates(found, features, reference):
    """The θ of a log-linear policy."""
    design, ratio = np.column_stack([features, np.ones(K)]), found.log_probs - reference
    return np.linalg.lstsq(design, ratio, rcond=None)[0][:F]


# The two views of one class


@given(SEEDS, BETAS, st.sets(st.integers(0, K - 1), max_size=3))
def test_implicit_reward_and_gibbs_policy_are_inverses_up_to_a_constant(seed, beta, excluded):
    rng = np.random.default_rng(seed)
    policy, reference = random_reference(rng, excluded), random_reference(rng, excluded)
    reward = np.asarray(implicit_reward(policy, reference, beta))
    again = gibbs_log_probs(reward, reference, beta)
    assert_allclose(again, policy, rtol=1e-12, atol=1e-12)
    assert (reward[list(excluded)] == 0).all()
    given_reward = 2 * rng.normal(size=K)
    optimum = gibbs_log_probs(given_reward, reference, beta)
    apart = np.asarray(implicit_reward(optimum, reference, beta)) - given_reward
    assert_allclose(np.ptp(apart[np.isfinite(reference)]), 0, atol=1e-11)


def test_the_reference_earns_nothing_and_what_a_policy_gives_up_minus_infinity():
    reference = np.log([0.5, 0.3, 0.2, 0.0])
    assert_array_equal(implicit_reward(reference, reference, 0.7), 0)
    found = implicit_reward(np.log([0.5, 0.5, 0.0, 0.0]), reference, 2.0)
    assert_allclose(found, [0, 2 * np.log(5 / 3), -np.inf, 0], rtol=1e-12)


def test_implicit_rewards_have_slopes_beside_an_excluded_arm():
    excluding = np.log([0.5, 0.5, 0.0])
    slope = jax.grad(lambda beta: implicit_reward(excluding, excluding, beta).sum())(0.3)
    assert slope == 0


# In one class


@given(SEEDS, BETAS)
def test_dpo_and_rlhf_end_with_one_policy_in_isomorphic_classes(seed, beta):
    features, _, counts, reference = random_problem(seed)
    reward_features = same_class(np.random.default_rng(seed), features)
    assert are_isomorphic(features, reward_features)
    dpo = fit_dpo(features, counts, reference, beta)
    rlhf = fit_rlhf(features, reward_features, counts, reference, beta)
    assert_allclose(dpo.log_probs, rlhf.log_probs, atol=1e-8)
    assert_allclose(dpo.reward, implicit_reward(dpo.log_probs, reference, beta), atol=0)
    assert_allclose(np.ptp(dpo.reward - rlhf.reward), 0, atol=1e-8)


@few_examples
@given(SEEDS, BETAS, st.integers(0, K - 1))
def test_what_the_reference_excludes_does_not_tell_classes_apart(seed, beta, arm):
    features, other, counts, reference = random_problem(seed, [arm])
    reward_features = same_class(np.random.default_rng(seed), features)
    reward_features[arm] = 5 * other[arm]
    assert are_isomorphic(features, reward_features, reference)
    assert not are_isomorphic(features, reward_features)
    dpo = fit_dpo(features, counts, reference, beta)
    rlhf = fit_rlhf(features, reward_features, counts, reference, beta)
    assert_allclose(np.exp(dpo.log_probs), np.exp(rlhf.log_probs), atol=1e-8)
    assert dpo.log_probs[arm] == rlhf.log_probs[arm] == -np.inf
    assert np.isfinite(dpo.reward).all()


@few_examples
@given(SEEDS, BETAS)
def test_a_class_with_a_redundant_feature_has_the_same_policy(seed, beta):
    features, _, counts, reference = random_problem(seed)
    redundant = np.column_stack([features, features @ [1.0, -2.0] + 1.0])
    expected = fit_dpo(features, counts, reference, beta).log_probs
    for found in (
        fit_dpo(redundant, counts, reference, beta),
        fit_rlhf(redundant, features, counts, reference, beta),
        fit_rlhf(features, redundant, counts, reference, beta),
    ):
        assert_allclose(found.log_probs, expected, atol=1e-8)


@few_examples
@given(SEEDS, BETAS)
def test_dpo_over_all_policies_is_maximum_likelihood_of_a_table(seed, beta):
    _, _, counts, reference = random_problem(seed)
    reward = bradley_terry.fit_tabular(counts, ridge=0.0)
    expected = gibbs_log_probs(reward, reference, beta)
    dpo = fit_dpo(EYE, counts, reference, beta)
    rlhf = fit_rlhf(EYE, EYE, counts, reference, beta)
    assert_allclose(dpo.log_probs, expected, atol=1e-10)
    assert_allclose(np.exp(rlhf.log_probs), np.exp(expected), atol=1e-12)


@few_examples
@given(SEEDS, BETAS)
def test_dpo_is_where_a_general_optimiser_of_its_loss_ends(seed, beta):
    features, _, counts, reference = random_problem(seed)

    def loss(x):
        """Label by label, from the policies, for θ = x/β."""
        ratios = log_linear(x / beta, features, reference) - reference
        total, gradient = 0.0, np.zeros(F)
        for a, b in np.argwhere(counts):
            margin = beta * (ratios[a] - ratios[b])
            total -= counts[a, b] * special.log_expit(margin)
            gradient -= counts[a, b] * special.expit(-margin) * (features[a] - features[b])
        return total, gradient

    best = optimize.minimize(loss, np.zeros(F), jac=True, options={"gtol": 1e-9})
    found = fit_dpo(features, counts, reference, beta)
    expected = beta * log_linear(best.x / beta, features, reference)
    assert_allclose(beta * found.log_probs, expected, atol=1e-6)
    theta = coordinates(found, features, reference)
    assert_allclose(log_linear(theta, features, reference), found.log_probs, atol=1e-9)
    assert loss(beta * theta)[0] <= best.fun + 1e-10
    assert_allclose(loss(beta * theta)[1], 0, atol=1e-9)


# Where the data leave directions open

UNIFORM = np.log(np.full(3, 1 / 3))
MIX = np.array([[2.0, 1.0, 0.0], [0.0, 1.0, 1.0], [1.0, 0.0, 3.0]])
ONE_PAIR = np.array([[0, 3, 0], [1, 0, 0], [0, 0, 0]])
"""Arm 0 was preferred to arm 1 three times, and arm 1 once; arm 2 is in no pair."""


def least_norm_policy(features, beta):
    """The shortest w with (φ_0 − φ_1) w = log 3, and its Gibbs policy, by hand."""
    difference = features[0] - features[1]
    reward = features @ difference * np.log(3) / (difference @ difference)
    return special.softmax(reward / beta)


@pytest.mark.parametrize("beta", [0.3, 1.0])
def test_isomorphic_classes_part_where_the_data_leave_a_direction_open(beta):
    features = np.eye(3)
    assert are_isomorphic(features, MIX)
    with pytest.warns(UndeterminedWarning) as of_dpo:
        dpo = fit_dpo(features, ONE_PAIR, UNIFORM, beta)
    with pytest.warns(UndeterminedWarning) as of_rlhf:
        rlhf = fit_rlhf(features, MIX, ONE_PAIR, UNIFORM, beta)
    warned = [*of_dpo, *of_rlhf]
    assert [str(warning.message) for warning in warned] == [
        f"counts leave 1 of 2 directions of {name} open; the parameters of least norm are taken, "
        "which depend on how the features are written"
        for name in ("features", "reward_features")
    ]
    assert {warning.filename for warning in warned} == {__file__}
    assert_allclose(np.exp(dpo.log_probs), least_norm_policy(features, beta), atol=1e-9)
    assert_allclose(np.exp(rlhf.log_probs), least_norm_policy(MIX, beta), atol=1e-9)
    assert np.abs(np.exp(dpo.log_probs) - np.exp(rlhf.log_probs)).max() > 0.05
    # Of what was asked they say the same.
    for found in (dpo, rlhf):
        assert_allclose(found.reward[0] - found.reward[1], np.log(3), rtol=1e-9)


@pytest.mark.parametrize("linked", [0, 1])
def test_they_agree_once_the_comparisons_span_the_class(linked):
    """One more pair that links arm 2 to any of the others; nothing is warned of."""
    counts = ONE_PAIR.copy()
    counts[2, linked], counts[linked, 2] = 2, 1
    expected = fit_dpo(np.eye(3), counts, UNIFORM, 0.5).log_probs
    rlhf, mixed = fit_rlhf(np.eye(3), MIX, counts, UNIFORM, 0.5), fit_dpo(MIX, counts, UNIFORM, 0.5)
    assert_allclose(rlhf.log_probs, expected, atol=1e-9)
    assert_allclose(mixed.log_probs, expected, atol=1e-9)


def test_one_pair_spans_a_class_of_one_direction():
    features = np.array([[1.0], [0.0], [2.0]])
    expected = special.softmax(features[:, 0] * np.log(3) / 0.5)
    for found in (
        fit_dpo(features, ONE_PAIR, UNIFORM, 0.5),
        fit_rlhf(features, 1 - 7 * features, ONE_PAIR, UNIFORM, 0.5),
        # The policy's features may be open, as the data do not fit them.
        fit_rlhf(np.eye(3), features, ONE_PAIR, UNIFORM, 0.5),
    ):
        assert_allclose(np.exp(found.log_probs), expected, atol=1e-9)


@pytest.mark.parametrize("unit", [1e-8, 1.0, 1e8])
@pytest.mark.parametrize(
    ("features", "counts", "message"),
    [
        (np.eye(3), ONE_PAIR, "1 of 2 directions"),
        (np.eye(4), np.pad(ONE_PAIR, (0, 1)), "2 of 3 directions"),
        (np.array([[0.0], [0.0], [1.0]]), ONE_PAIR, "1 of 1 directions"),
        (np.array([[1.0, 2.0], [0, 0], [3.0, 6.0]]), ONE_PAIR, None),  # a redundant column
        (np.eye(4)[:, :2], np.kron(np.eye(2), 1 - np.eye(2)), "1 of 2 directions"),
        (np.eye(3), 1 - np.eye(3), None),
    ],
)
def test_directions_are_counted_whatever_their_units(features, counts, message, unit):
    reference = np.log(np.full(len(features), 1 / len(features)))
    for fit, name in (
        (lambda: fit_dpo(unit * features, counts, reference, 1.0), "features"),
        (
            lambda: fit_rlhf(np.eye(len(reference)), unit * features, counts, reference, 1.0),
            "reward_features",
        ),
    ):
        if message is None:
            fit()
        else:
            with pytest.warns(UndeterminedWarning, match=f"{message} of {name} open"):
                fit()


@pytest.mark.parametrize("features", [np.eye(3), MIX], ids=["table", "mix"])
def test_directions_that_only_move_excluded_arms_are_not_open(features):
    reference = np.log([0.4, 0.6, 0.0])
    expected = special.softmax([np.log(0.4) + np.log(3) / 0.5, np.log(0.6)])
    for found in (
        fit_dpo(features, ONE_PAIR, reference, 0.5),
        fit_rlhf(np.eye(3), features, ONE_PAIR, reference, 0.5),
    ):
        assert_allclose(np.exp(found.log_probs)[:2], expected, atol=1e-9)


def test_traced_data_do_not_warn():
    counts = np.stack([ONE_PAIR, 2 * ONE_PAIR + ONE_PAIR.T])

    def both(counts):
        dpo = fit_dpo(np.eye(3), counts, UNIFORM, 0.5)
        rlhf = fit_rlhf(np.eye(3), MIX, counts, UNIFORM, 0.5)
        return np.e**dpo.log_probs, np.e**rlhf.log_probs

    for run in (jax.vmap(both), jax.jit(jax.vmap(both))):
        dpo, rlhf = run(counts)
        assert_allclose(dpo[0], least_norm_policy(np.eye(3), 0.5), atol=1e-9)
        assert_allclose(rlhf[0], least_norm_policy(MIX, 0.5), atol=1e-9)


# In two classes


def slope(found, features, reference, beta):
    """The gradient of E_π[r]/β − KL(π‖π_ref) in θ at a policy."""
    probs = np.exp(found.log_probs)
    advantage = found.reward / beta - (np.asarray(found.log_probs) - reference)
    return (probs * (advantage - probs @ advantage)) @ features


@few_examples
@given(SEEDS, BETAS)
def test_rlhf_ends_at_a_stationary_point_no_worse_than_the_reference(seed, beta):
    features, reward_features, counts, reference = random_problem(seed)
    found = fit_rlhf(features, reward_features, counts, reference, beta)
    weights = bradley_terry.fit_linear(reward_features, counts, ridge=0.0)
    assert_allclose(found.reward, reward_features @ weights, atol=1e-12)
    fitted = log_linear(coordinates(found, features, reference), features, reference)
    size = 1 + np.abs(found.log_probs - reference).max()
    assert_allclose(fitted, found.log_probs, atol=1e-8 * size)
    assert_allclose(slope(found, features, reference, beta), 0, atol=1e-5)
    value = regularised_objective(found.log_probs, found.reward, reference, beta)
    assert value >= np.exp(reference) @ found.reward - 1e-12


@pytest.mark.parametrize(("seed", "beta"), [(89, 0.3), (190, 10.0)])
def test_rlhf_between_classes_is_stationary_to_the_precision_of_the_numbers(seed, beta):
    features, reward_features, counts, reference = random_problem(seed)
    found = fit_rlhf(features, reward_features, counts, reference, beta)
    assert_allclose(slope(found, features, reference, beta), 0, atol=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_rlhf_is_where_a_general_optimiser_of_the_objective_ends_from_any_start(seed):
    features, reward_features, counts, reference = random_problem(seed)
    beta = 1.5
    found = fit_rlhf(features, reward_features, counts, reference, beta)

    def loss(theta):
        log_probs = log_linear(theta, features, reference)
        probs = np.exp(log_probs)
        advantage = np.asarray(found.reward) - beta * (log_probs - reference)
        return -probs @ advantage, -(probs * (advantage - probs @ advantage)) @ features

    for start in 2 * np.random.default_rng(seed).normal(size=(4, F)):
        best = optimize.minimize(loss, start, jac=True, options={"gtol": 1e-10})
        ended = log_linear(best.x, features, reference)
        assert_allclose(ended, found.log_probs, atol=1e-6)


@few_examples
@given(SEEDS, BETAS, st.sets(st.integers(0, K - 1), max_size=2))
def test_over_all_policies_rlhf_is_the_gibbs_policy_of_its_reward(seed, beta, excluded):
    excluded = sorted(excluded)
    _, reward_features, counts, reference = random_problem(seed, excluded)
    found = fit_rlhf(EYE, reward_features, counts, reference, beta)
    expected = gibbs_log_probs(found.reward, reference, beta)
    assert_allclose(np.exp(found.log_probs), np.exp(expected), atol=1e-12)
    assert (found.log_probs[np.array(excluded, int)] == -np.inf).all()


def test_different_classes_end_with_different_policies_each_best_at_its_own():
    features, reward_features, counts, reference = random_problem(3)
    beta = 0.5
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
    features, reward_features, *_ = random_problem(4)
    rows = [(*random_problem(seed)[2:], beta) for seed, beta in enumerate((0.1, 1.0, 5.0))]

    def both(*problem):
        rlhf = fit_rlhf(features, reward_features, *problem)
        return fit_dpo(features, *problem), rlhf

    swept = jax.jit(jax.vmap(both))(*map(np.stack, zip(*rows, strict=True)))
    one_by_one = jax.tree.map(lambda *x: np.stack(x), *(both(*row) for row in rows))
    chex.assert_trees_all_close(swept, one_by_one, atol=1e-8)


def test_float32_agrees_with_float64():
    features, reward_features, *problem = random_problem(5)

    def both():
        rlhf = fit_rlhf(features, reward_features, *problem, 0.5)
        return fit_dpo(features, *problem, 0.5), rlhf

    double = both()
    with jax.enable_x64(False):
        single = both()
    for found, expected in zip(single, double, strict=True):
        assert found.log_probs.dtype == found.reward.dtype == np.float32
        assert_allclose(found.log_probs, expected.log_probs, atol=1e-3)


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
    assert_allclose(found, expected, atol=1e-7)
    assert_allclose(class_distance(other, features, reference), found, atol=1e-12)
    assert 0 <= found <= 1


@given(SEEDS, st.integers(1, 3))
def test_distance_does_not_see_invertible_maps_and_constants(seed, columns):
    rng = np.random.default_rng(seed)
    features, other = rng.normal(size=(2, K, columns))
    expected = class_distance(features, other)
    moved = class_distance(same_class(rng, features), same_class(rng, other))
    assert_allclose(moved, expected, atol=1e-9)
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
    assert_allclose(class_distance(features, other), distance, atol=1e-12)
    assert are_isomorphic(features, other) == (distance == 0)


def test_isomorphic_is_a_distance_within_the_tolerance_however_features_are_written():
    features, other = np.array([[0.0], [1.0], [2.0]]), np.array([[0.0], [1.0], [2.001]])
    assert 1e-4 < class_distance(features, other) < 1e-3
    assert not are_isomorphic(features, other)
    assert are_isomorphic(features, other, tolerance=1e-3)
    # All policies are one class.
    assert are_isomorphic(EYE, EYE[:, 1:])
    assert are_isomorphic(EYE, np.tril(np.ones((K, K))))
    assert not are_isomorphic(EYE, EYE[:, 2:])


# Bad input

HALVES = np.log(np.full(4, 0.25))
TABLE = np.eye(4)
PAIRS = 1 - TABLE
ONE_WAY = np.tril(np.ones((4, 4)), -1)
EXCLUDING = np.append(np.log([0.5, 0.25, 0.25]), -np.inf)
FITS = {"dpo": fit_dpo, "rlhf": lambda features, *rest: fit_rlhf(features, TABLE, *rest)}


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize(
    ("counts", "reference", "beta", "message"),
    [
        (PAIRS, EXCLUDING, 1.0, "counts name arm 3, which the reference excludes"),
        (ONE_WAY, HALVES, 1.0, "infinite; add labels that disagree"),
        (PAIRS, np.stack([HALVES, HALVES]), 1.0, "a fit is of one problem"),
        (PAIRS, HALVES, np.ones(4), "a fit is of one problem"),
    ],
    ids=["excluded", "separable", "references", "betas"],
)
def test_what_has_no_fit_is_refused(fit, counts, reference, beta, message):
    with pytest.raises(InvalidInput, match=message):
        FITS[fit](TABLE, counts, reference, beta)


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
        (lambda: implicit_reward(HALVES, EXCLUDING, 1.0), "plays arm 3, which .* excludes"),
        (lambda: class_distance(TABLE, np.eye(3)), "other_features has 3 arms but features has 4"),
        (lambda: class_distance(TABLE, TABLE, HALVES[None]), "a distance is of one problem"),
    ],
)
def test_what_has_no_reward_or_no_distance_is_refused(call, message):
    with pytest.raises(InvalidInput, match=message):
        call()
