import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize, special

from theory.bradley_terry import bradley_terry_loss, fit_linear, fit_tabular
from theory.checks import InvalidInput

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
    """The loss and its gradient, label by label."""
    loss, gradient = ridge / 2 * weights @ weights, ridge * weights
    for a, b in np.argwhere(counts):
        difference = features[a] - features[b]
        share = counts[a, b] / counts.sum()
        loss = loss - share * special.log_expit(difference @ weights)
        gradient = gradient - share * special.expit(-difference @ weights) * difference
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
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_allclose(objective(found, *arguments)[1], 0, atol=1e-10)
    if features is EYE:
        table = fit_tabular(*arguments[1:])
        np.testing.assert_allclose(table, expected - expected.mean(), atol=1e-6)


@pytest.mark.parametrize("ridge", [1e-1, 1e-3, 1e-6])
def test_noiseless_labels_are_fitted_in_the_true_order(ridge):
    found = np.asarray(fit_tabular(NOISELESS, ridge))
    np.testing.assert_array_equal(np.argsort(found), np.argsort(TRUE))
    np.testing.assert_allclose(objective(found, EYE, NOISELESS, ridge)[1], 0, atol=1e-10)


def test_rewards_are_recovered_from_their_own_probabilities():
    found = fit_tabular(bradley_terry(TRUE), ridge=0.0)
    np.testing.assert_allclose(found, TRUE - TRUE.mean(), atol=1e-10)
    weights = np.array([0.8, -1.5])
    found = fit_linear(FEATURES, 7 * bradley_terry(FEATURES @ weights), ridge=0.0)
    np.testing.assert_allclose(found, weights, atol=1e-10)


def test_float32_agrees_with_float64():
    counts = random_counts(0) + OFF_DIAGONAL
    expected = fit_tabular(counts)
    with jax.enable_x64(False):
        found = fit_tabular(counts.astype(np.float32))
        assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_the_fit_is_precise_to_the_numbers():
    counts = np.random.default_rng(0).integers(0, 6, (60, 4, 4)) * OFF_DIAGONAL
    with jax.enable_x64(False):
        fits = np.float64(jax.vmap(lambda c: fit_linear(FEATURES, c, 1.0))(np.float32(counts)))
    gradients = [objective(w, FEATURES, c, 1.0)[1] for w, c in zip(fits, counts, strict=True)]
    np.testing.assert_allclose(gradients, 0, atol=1e-6)


def test_the_scale_of_the_counts_does_not_matter():
    counts = random_counts(0)
    np.testing.assert_allclose(fit_tabular(1e6 * counts), fit_tabular(counts), atol=1e-9)


@pytest.mark.parametrize("ridge", [0.0, 1e-2])
def test_arms_without_data_get_the_mean(ridge):
    counts = bradley_terry(TRUE)
    counts[1] = counts[:, 1] = 0
    found = fit_tabular(counts, ridge)
    np.testing.assert_allclose(found[1], 0, atol=1e-12)
    np.testing.assert_allclose(found.mean(), 0, atol=1e-12)
    assert found[2] > found[3] > found[0]


def test_a_sweep_over_ridges_is_a_loop():
    ridges = np.array([1e-3, 1e-1, 10.0])
    swept = jax.jit(jax.vmap(lambda ridge: fit_tabular(NOISELESS, ridge)))(ridges)
    np.testing.assert_allclose(swept, [fit_tabular(NOISELESS, r) for r in ridges], atol=1e-9)
    assert (np.diff(np.ptp(swept, axis=1)) < 0).all()


def test_counts_can_be_traced():
    counts = np.stack([random_counts(0), random_counts(1)])
    swept = jax.jit(jax.vmap(fit_tabular))(counts)
    np.testing.assert_allclose(swept, [fit_tabular(c) for c in counts], atol=1e-9)


# What has no maximum, and bad input

ONE_PAIR = np.zeros((4, 4))
ONE_PAIR[2, 1] = 3
TWO_CAMPS = bradley_terry(TRUE)
TWO_CAMPS[:2, 2:] = 0


@pytest.mark.parametrize("counts", [NOISELESS, ONE_PAIR, TWO_CAMPS])
def test_separable_labels_need_a_ridge(counts):
    with pytest.raises(InvalidInput, match=r"infinite.*ridge"):
        fit_tabular(counts, ridge=0.0)
    assert np.isfinite(fit_tabular(counts, ridge=1e-3)).all()


@pytest.mark.parametrize("unit", [1e-10, 1e-5, 1e10])
def test_labels_are_separable_or_not_whatever_the_units_of_the_features(unit):
    for counts in (NOISELESS, ONE_PAIR, TWO_CAMPS):
        with pytest.raises(InvalidInput, match=r"infinite.*ridge"):
            fit_linear(unit * EYE, counts, ridge=0.0)
        assert np.isfinite(fit_linear(unit * EYE, counts, ridge=1e-3 * unit**2)).all()
    weights = fit_linear(unit * EYE, bradley_terry(TRUE), ridge=0.0)
    np.testing.assert_allclose(unit * weights, TRUE - TRUE.mean(), atol=1e-9)


def test_pairs_that_the_features_do_not_tell_apart_are_not_separable():
    np.testing.assert_array_equal(fit_linear(EYE[:, :1], ONE_PAIR, ridge=0.0), 0)


def test_a_cycle_is_not_separable():
    counts = np.zeros((4, 4))
    counts[[0, 1, 2, 3], [1, 2, 3, 0]] = 1
    np.testing.assert_allclose(fit_tabular(counts, ridge=0.0), 0, atol=1e-12)


def test_bad_counts_are_refused(bad_counts):
    counts, message = bad_counts
    with pytest.raises(InvalidInput, match=message):
        fit_tabular(counts)


@pytest.mark.parametrize("ridge", [-1.0, np.nan, np.inf])
def test_bad_ridges_are_refused(ridge):
    with pytest.raises(InvalidInput, match="ridge"):
        fit_tabular(NOISELESS, ridge)


@pytest.mark.parametrize("features", [EYE[:3], EYE[0]], ids=["rows", "rank"])
def test_features_need_a_row_an_arm(features):
    with pytest.raises(InvalidInput, match="one row for each of 4 arms"):
        fit_linear(features, NOISELESS)


def test_features_must_be_finite():
    with pytest.raises(InvalidInput, match="features"):
        fit_linear(EYE + np.inf, NOISELESS)


def test_features_must_tell_arms_apart():
    with pytest.raises(InvalidInput, match="features has rank 0"):
        fit_linear(np.ones((4, 2)), NOISELESS)
