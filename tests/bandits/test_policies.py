import jax
import numpy as np
import pytest
from scipy import special

from bandits.policies import tabular_softmax

pytestmark = pytest.mark.usefixtures("float64")

POLICY = tabular_softmax()
LOG_PROBS = np.append(np.log([0.2, 0.3, 0.4, 0.1]), -np.inf)
LOGITS = np.random.default_rng(0).normal(size=(3, 5))


def test_policy_starts_at_exactly_the_given_log_probabilities():
    started = POLICY.log_probs(POLICY.init(LOG_PROBS))
    np.testing.assert_allclose(started, LOG_PROBS, rtol=1e-15, atol=1e-15)
    assert np.exp(started[-1]) == 0


def test_log_probabilities_are_the_log_softmax_of_the_logits():
    for shift in (0.0, 700.0, -1000.0):
        np.testing.assert_allclose(
            POLICY.log_probs(LOGITS[0] + shift), special.log_softmax(LOGITS[0]), rtol=1e-12
        )


def test_transformations_agree():
    expected = special.log_softmax(LOGITS, axis=1)
    np.testing.assert_allclose(jax.vmap(POLICY.log_probs)(LOGITS), expected, rtol=1e-12)
    np.testing.assert_allclose(jax.jit(POLICY.log_probs)(LOGITS[0]), expected[0], rtol=1e-12)


def test_score_is_the_indicator_minus_the_policy_also_beside_an_excluded_arm():
    parameters = POLICY.init(LOG_PROBS)
    score = jax.grad(lambda logits: POLICY.log_probs(logits)[1])(parameters)
    np.testing.assert_allclose(score, np.eye(5)[1] - np.exp(LOG_PROBS), rtol=1e-12, atol=0)
