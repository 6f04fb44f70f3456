import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy import optimize, special

from theory.bradley_terry import bradley_terry_loss, fit_linear, fit_tabular
from theory.checks import InvalidInput
from theory.pairs import Pairs

pytestmark = pytest.mark.usefixtures("float64")

TRUE = np.array([0.3, -1.0, 1.2, 0.5])
EYE = np.eye(4)
FEATURES = np.random.default_rng(1).normal(size=(4, 2))
OFF_DIAGONAL = 1 - EYE
NOISELESS = (TRUE[:, None] > TRUE).astype(float)


def bradley_terry(rewards):
    return special.expit(rewards[:, None] - rewards) * OFF_DIAGONAL


def random_counts(seed):
    return np.random.default_rng(seed).integers(0, 6, (4, 4)) * OFF_DIAGONAL


def objective(weights, features, counts, ridge):
    """The loss and its gradient, pair by pair."""
    loss, gradient = ridge / 2 * weights @ weights, ridge * weights
    for a, b in np.argwhere(counts):
        difference = features[a] - features[b]
        loss = loss - counts[a, b] * special.log_expit(difference @ weights)
        gradient = gradient - counts[a, b] * special.expit(-difference @ weights) * difference
    return loss, gradient


# Maximum likelihood


def test_loss_is_the_mean_cross_entropy_of_the_labels():
    counts = np.array([[0, 3.0], [1.0, 0]])
    found = bradley_terry_loss(np.array([np.log(3.0), 0.0]), counts)
    assert found == pytest.approx(-0.75 * np.log(0.75) - 0.25 * np.log(0.25), rel=1e-14)


@pytest.mark.parametrize("ridge", [0.0, 1e-3, 1.0])
@pytest.mark.parametrize("features", [EYE, FEATURES], ids=["table", "features"])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_fit_is_where_a_general_optimiser_ends(features, ridge, seed):
    arguments = (features, random_counts(seed) + OFF_DIAGONAL, ridge)
    expected = optimize.minimize(
        objective, np.zeros(features.shape[1]), arguments, jac=True, options={"gtol": 1e-10}
    ).x
    found = np.asarray(fit_linear(*arguments))
    assert_allclose(found, expected, atol=1e-6)
    assert_allclose(objective(found, *arguments)[1], 0, atol=1e-10)
    if features is EYE:
        table = fit_tabular(*arguments[1:])
        assert_allclose(table, expected - expected.mean(), atol=1e-6)


@pytest.mark.parametrize("ridge", [1e-1, 1e-3, 1e-6])
def test_noiseless_labels_are_fitted_in_the_true_order(ridge):
    found = np.asarray(fit_tabular(NOISELESS, ridge))
    assert_array_equal(np.argsort(found), np.argsort(TRUE))
    assert_allclose(objective(found, EYE, NOISELESS, ridge)[1], 0, atol=1e-10)


def test_rewards_are_recovered_from_their_own_probabilities():
    found = fit_tabular(bradley_terry(TRUE), ridge=0.0)
    assert_allclose(found, TRUE - TRUE.mean(), atol=1e-10)
    weights = np.array([0.8, -1.5])
    found = fit_linear(FEATURES, 7 * bradley_terry(FEATURES @ weights), ridge=0.0)
    assert_allclose(found, weights, atol=1e-10)


def test_float32_is_float64_rounded():
    counts = random_counts(0) + OFF_DIAGONAL
    expected = fit_tabular(counts)
    with jax.enable_x64(False):
        found = fit_tabular(counts.astype(np.float32))
        traced = jax.jit(fit_tabular)(counts.astype(np.float32))
        assert found.dtype == traced.dtype == jnp.float32
    assert_array_equal(found, np.float32(expected))
    assert_allclose(traced, expected, atol=1e-3)


def test_the_fit_is_precise_to_the_numbers():
    counts = np.random.default_rng(0).integers(0, 6, (60, 4, 4)) * OFF_DIAGONAL
    with jax.enable_x64(False):
        fits = np.float64(jax.vmap(lambda c: fit_linear(FEATURES, c, 1.0))(np.float32(counts)))
    gradients = [objective(w, FEATURES, c, 1.0)[1] for w, c in zip(fits, counts, strict=True)]
    assert_allclose(gradients, 0, atol=3e-5)  # of 30 labels


@pytest.mark.parametrize("scale", [1e-3, 1e6])
def test_a_ridge_is_in_units_of_the_counts(scale):
    counts = random_counts(0)
    for fit in (fit_tabular, lambda *arguments: fit_linear(FEATURES, *arguments)):
        expected = fit(counts, 0.3)
        assert_allclose(fit(scale * counts, scale * 0.3), expected, atol=1e-9)


@pytest.mark.parametrize("ridge", [0.0, 1e-2])
def test_arms_without_data_get_the_mean(ridge):
    counts = bradley_terry(TRUE)
    counts[1] = counts[:, 1] = 0
    found = fit_tabular(counts, ridge)
    assert_allclose(found[1], 0, atol=1e-12)
    assert_allclose(found.mean(), 0, atol=1e-12)
    assert found[2] > found[3] > found[0]


def test_a_sweep_over_ridges_is_a_loop():
    ridges = np.array([1e-3, 1e-1, 10.0])
    swept = jax.jit(jax.vmap(lambda ridge: fit_tabular(NOISELESS, ridge)))(ridges)
    assert_allclose(swept, [fit_tabular(NOISELESS, r) for r in ridges], atol=1e-9)
    assert (np.diff(np.ptp(swept, axis=1)) < 0).all()


def test_counts_can_be_traced():
    counts = np.stack([random_counts(0), random_counts(1)])
    swept = jax.jit(jax.vmap(fit_tabular))(counts)
    assert_allclose(swept, [fit_tabular(c) for c in counts], atol=1e-9)
    listed = [Pairs(*np.nonzero(OFF_DIAGONAL), c[OFF_DIAGONAL > 0]) for c in counts]
    traced = jax.jit(lambda pairs: fit_tabular(pairs, num_arms=4))
    assert_allclose(swept, [traced(pairs) for pairs in listed], atol=1e-9)


# Independent answers


def one_pair(wins, losses, num_arms=2, others=0.0):
    """The table of a first pair of arms, among others that come in pairs of 5 to 2."""
    counts = np.zeros((num_arms, num_arms))
    for first in range(0, num_arms - 1, 2):
        counts[first, first + 1], counts[first + 1, first] = 5 * others, 2 * others
    counts[0, 1], counts[1, 0] = wins, losses
    return counts


@given(st.integers(1, 10**9), st.integers(1, 10**9))
def test_the_gap_of_one_pair_is_the_log_ratio_of_its_counts(wins, losses):
    first, second = fit_tabular(one_pair(wins, losses), ridge=0.0)
    assert first - second == pytest.approx(np.log(wins / losses), abs=1e-9)
    assert first + second == pytest.approx(0, abs=1e-12)


@given(st.integers(1, 400), st.integers(1, 400), st.floats(1e-6, 10))
def test_the_gap_of_one_pair_under_a_prior_solves_one_equation(wins, losses, ridge):
    """With r = (d, −d)/2 the derivative in d is −n σ(−d) + m σ(d) + ridge d/2."""

    def slope(d):
        return -wins * special.expit(-d) + losses * special.expit(d) + ridge * d / 2

    expected = optimize.brentq(slope, -100, 100, xtol=1e-14)
    first, second = fit_tabular(one_pair(wins, losses), ridge)
    assert first - second == pytest.approx(expected, abs=1e-9)
    weight = fit_linear(np.array([[0.5], [-0.5]]), one_pair(wins, losses), ridge / 2)
    assert weight == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize("others", [1, 20])
@pytest.mark.parametrize("weight", [1e-3, 40.0, 1e6])
def test_the_gap_of_a_pair_does_not_depend_on_the_other_pairs(others, weight):
    counts = one_pair(300, 100, 2 + 2 * others, weight)
    alone = fit_tabular(one_pair(300, 100))
    assert_allclose(fit_tabular(counts)[:2], alone, atol=1e-9)
    if weight == 40.0:
        assert_allclose(fit_linear(np.eye(len(counts)), counts)[:2], alone, atol=1e-8)
        assert_allclose(jax.jit(fit_tabular)(counts)[:2], alone, atol=1e-8)


@given(st.integers(1, 10**7))
def test_the_prior_fades_with_data(labels):
    """Near log 3 the curvature of n labels is 3n/16, so the prior takes 8 ridge log 3/(3n) off."""
    first, second = fit_tabular(one_pair(3 * labels, labels))
    shortfall = np.log(3) - (first - second)
    assert 0 < shortfall < 2 * 8 * 0.01 * np.log(3) / (3 * 4 * labels)


@given(st.integers(0, 2**32 - 1), st.integers(2, 30))
def test_on_a_tree_of_comparisons_rewards_are_sums_of_log_ratios(seed, num_arms):
    rng = np.random.default_rng(seed)
    wins, losses = 10 ** rng.uniform(-1, 4, (2, num_arms))
    expected, counts = np.zeros(num_arms), np.zeros((num_arms, num_arms))
    for arm in range(1, num_arms):
        parent = rng.integers(arm)
        expected[arm] = expected[parent] + np.log(wins[arm] / losses[arm])
        counts[arm, parent], counts[parent, arm] = wins[arm], losses[arm]
    found = fit_tabular(counts, ridge=0.0)
    assert_allclose(found, expected - expected.mean(), atol=1e-6)


@pytest.mark.parametrize("alpha", [1e-3, 0.1])
def test_the_fit_is_that_of_choix_with_alpha_half_the_ridge(alpha):
    """Its objective, as documented: Σ log(1 + exp(r_loser − r_winner)) + α Σ r², label by label."""
    rng = np.random.default_rng(7)
    winners = rng.integers(0, 12, 60)
    losers = (winners + rng.integers(1, 12, 60)) % 12

    def penalised(r):
        return np.logaddexp(0, r[losers] - r[winners]).sum() + alpha * (r**2).sum()

    expected = optimize.minimize(penalised, np.zeros(12), tol=1e-12).x
    found = fit_tabular(Pairs(winners, losers, np.ones(60)), 2 * alpha, num_arms=12)
    assert_allclose(found, expected, atol=1e-5)


# Lists of pairs


def test_a_list_is_fitted_like_its_table_in_any_order_and_division():
    counts = random_counts(3) + OFF_DIAGONAL
    pairs = Pairs.from_table(counts)
    twice = [np.concatenate([field, field[::-1]]) for field in (pairs.winners, pairs.losers)]
    halves = Pairs(*twice, np.concatenate([0.25 * pairs.weights, 0.75 * pairs.weights[::-1]]))
    for listed in (pairs, halves):
        found = fit_tabular(listed, num_arms=4)
        assert_allclose(found, fit_tabular(counts), atol=1e-12)


def assert_optimal(pairs, num_arms, ridge):
    """The gradient of the loss vanishes beside its terms, arm by arm; return the rewards."""
    with jax.enable_x64(True):
        found = np.asarray(fit_tabular(pairs, ridge, num_arms=num_arms))
    pull = pairs.weights * special.expit(found[pairs.losers] - found[pairs.winners])
    pulls = [np.bincount(ends, pull, num_arms) for ends in (pairs.winners, pairs.losers)]
    labels = sum(
        np.bincount(ends, pairs.weights, num_arms) for ends in (pairs.winners, pairs.losers)
    )
    gradient = ridge * found - pulls[0] + pulls[1]
    assert np.max(np.abs(gradient) / np.maximum(labels, 1e-300)) < 1e-10
    assert found.mean() == pytest.approx(0, abs=1e-9)
    return found


def random_pairs(num_arms, number, seed=0):
    rng = np.random.default_rng(seed)
    first, true = rng.integers(0, num_arms, number), rng.normal(size=num_arms)
    second = (first + rng.integers(1, num_arms, number)) % num_arms
    right = rng.uniform(size=number) < special.expit(true[first] - true[second])
    return np.where(right, first, second), np.where(right, second, first)


@pytest.mark.parametrize("weight", [1.0, 1e9, 1e-3])
def test_ten_thousand_arms_and_a_hundred_thousand_random_pairs_are_fitted(weight):
    pairs = Pairs(*random_pairs(10_000, 100_000), np.full(100_000, weight))
    assert_optimal(pairs, 10_000, 0.01)


def chain(num_arms):
    return np.arange(num_arms - 1), np.arange(1, num_arms)


@pytest.mark.parametrize("shape", ["path", "star", "ladder"])
@pytest.mark.parametrize("ridge", [0.0, 0.01])
def test_long_and_wide_graphs_are_fitted(shape, ridge):
    first, second = chain(10_000)
    if shape == "star":
        first = np.zeros_like(first)
    if shape == "ladder":
        rails = (first != 4999), np.arange(5000)
        first = np.append(first[rails[0]], rails[1])
        second = np.append(second[rails[0]], rails[1] + 5000)
    wins, losses = np.random.default_rng(0).integers(1, 9, (2, len(first)))
    ends = np.append(first, second), np.append(second, first)
    found = assert_optimal(Pairs(*ends, np.append(wins, losses)), 10_000, ridge)
    if shape != "ladder" and ridge == 0:
        assert_allclose(found[first] - found[second], np.log(wins / losses), atol=1e-7)


@pytest.mark.parametrize("ridge", [1e-2, 1e-8])
def test_separable_lists_are_fitted_under_a_weak_prior(ridge):
    first, second = chain(3000)
    assert_optimal(Pairs(first, second, np.ones(2999)), 3000, ridge)
    assert_optimal(Pairs(np.zeros_like(first), second, np.full(2999, 1e3)), 3000, ridge)
    winners, losers = random_pairs(1000, 10_000)
    ranked = Pairs(np.maximum(winners, losers), np.minimum(winners, losers), np.ones(10_000))
    assert_optimal(ranked, 1000, ridge)


def test_light_pairs_are_fitted_beside_heavy_ones():
    ends, rng = random_pairs(500, 2500), np.random.default_rng(1)
    weights = 10 ** rng.uniform(-3, 9, 5000)
    both = Pairs(np.append(*ends), np.append(*ends[::-1]), weights)
    with jax.enable_x64(True):
        found = np.asarray(fit_tabular(both, 0.01, num_arms=500))
        again = np.asarray(fit_tabular(both.to_table(500), 0.01))
    assert_allclose(found, again, atol=1e-6)
    pull = weights * special.expit(found[both.losers] - found[both.winners])
    gradient = 0.01 * found - np.bincount(both.winners, pull) + np.bincount(both.losers, pull)
    assert np.abs(gradient).max() < 1e-9 * weights.max()


# What has no maximum

ONE_PAIR = np.zeros((4, 4))
ONE_PAIR[2, 1] = 3
TWO_CAMPS = bradley_terry(TRUE)
TWO_CAMPS[:2, 2:] = 0


@pytest.mark.parametrize("unit", [1e-10, 1e-5, 1e10])
def test_separable_labels_need_a_ridge_whatever_the_units_of_the_features(unit):
    for counts in (NOISELESS, ONE_PAIR, TWO_CAMPS):
        with pytest.raises(InvalidInput, match=r"infinite.*ridge"):
            fit_tabular(counts, ridge=0.0)
        assert np.isfinite(fit_tabular(counts, ridge=1e-3)).all()
        with pytest.raises(InvalidInput, match=r"infinite.*ridge"):
            fit_linear(unit * EYE, counts, ridge=0.0)
        assert np.isfinite(fit_linear(unit * EYE, counts, ridge=1e-3 * unit**2)).all()
    weights = fit_linear(unit * EYE, bradley_terry(TRUE), ridge=0.0)
    assert_allclose(unit * weights, TRUE - TRUE.mean(), atol=1e-9)


def test_pairs_that_the_features_do_not_tell_apart_are_not_separable():
    assert_array_equal(fit_linear(EYE[:, :1], ONE_PAIR, ridge=0.0), 0)


def test_a_cycle_is_not_separable():
    counts = np.zeros((4, 4))
    counts[[0, 1, 2, 3], [1, 2, 3, 0]] = 1
    assert_allclose(fit_tabular(counts, ridge=0.0), 0, atol=1e-12)


ONE = Pairs(np.array([0]), np.array([1]), np.array([1.0]))


@pytest.mark.parametrize(
    ("counts", "options", "message"),
    [
        (np.zeros((4, 4)), {}, "counts is zero everywhere"),
        (EYE, {}, "counts prefers arm 0 to itself"),
        (ONE, {}, "num_arms is missing"),
        (ONE, {"ridge": 0.0, "num_arms": 2}, "infinite; ridge is 0"),
        (Pairs(np.array([4]), ONE.losers, ONE.weights), {"num_arms": 4}, "arms go from 0 to 3"),
    ],
)
def test_what_has_no_fit_is_refused(counts, options, message):
    with pytest.raises(InvalidInput, match=message):
        fit_tabular(counts, **options)
