import jax
import numpy as np
import pytest
from scipy import special

from bandits.problems import reward_models
from bandits.problems.preferences import preference_probabilities
from bandits.problems.reward_models import fit_network, network_rewards
from theory import bradley_terry

pytestmark = pytest.mark.usefixtures("float64")

KEY = jax.random.key(20240414)
TRUE = np.array([0.3, -1.0, 1.2, 0.5])
EYE = np.eye(4)
FEATURES = np.random.default_rng(1).normal(size=(4, 2))
NOISELESS = (TRUE[:, None] > TRUE).astype(float)


def test_tables_and_linear_rewards_are_those_of_the_theory():
    for name in ("bradley_terry_loss", "fit_linear", "fit_tabular"):
        assert getattr(reward_models, name) is getattr(bradley_terry, name)


def test_noiseless_preference_probabilities_are_the_order_of_the_rewards():
    counts = np.asarray(preference_probabilities(TRUE)) * (1 - EYE)
    np.testing.assert_array_equal(counts, NOISELESS)


@jax.jit
def fit_small(key, ridge=1e-4):
    layers = fit_network(key, FEATURES, NOISELESS, widths=(16,), ridge=ridge, steps=200)
    return network_rewards(layers, FEATURES)


def test_network_gets_every_noiseless_pair_right_and_is_reproducible():
    found = np.asarray(fit_small(KEY))
    np.testing.assert_array_equal(found[:, None] > found, NOISELESS > 0)
    np.testing.assert_array_equal(fit_small(KEY), found)
    assert (fit_small(jax.random.key(1)) != found).all()


def test_network_ridges_sweep():
    swept = jax.vmap(fit_small, (None, 0))(KEY, np.array([0.0, 1.0]))
    np.testing.assert_allclose(swept[0], fit_small(KEY, 0.0), rtol=1e-6)
    assert np.ptp(swept[1]) < np.ptp(swept[0])


def test_a_ridge_of_a_network_is_in_units_of_the_counts():
    fits = [
        network_rewards(
            fit_network(KEY, FEATURES, scale * NOISELESS, widths=(16,), ridge=scale, steps=50),
            FEATURES,
        )
        for scale in (1.0, 100.0)
    ]
    np.testing.assert_allclose(*fits, atol=1e-8)


def test_the_prior_of_a_network_fades_with_data():
    spreads = [
        np.ptp(network_rewards(fit_network(KEY, EYE, n * NOISELESS, ridge=1.0), EYE))
        for n in (1, 10, 100)
    ]
    assert spreads == sorted(spreads)
    assert spreads[2] > 1.5 * spreads[0]


def test_network_nears_the_rewards_behind_the_probabilities():
    counts = special.expit(TRUE[:, None] - TRUE) * (1 - EYE)
    layers = jax.jit(lambda: fit_network(KEY, EYE, counts, widths=(16,), ridge=0.0))()
    found = network_rewards(layers, EYE)
    np.testing.assert_allclose(found - found.mean(), TRUE - TRUE.mean(), atol=1e-2)
