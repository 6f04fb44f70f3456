import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from bandits.policies import context_network, log_linear, tabular_softmax
from theory.checks import InvalidInput

pytestmark = pytest.mark.usefixtures("float64")

KEY = jax.random.key(20240414)
POLICY = tabular_softmax()
LOG_PROBS = np.append(np.log([0.2, 0.3, 0.4, 0.1]), -np.inf)
LOGITS = np.random.default_rng(0).normal(size=(3, 5))
FEATURES = np.random.default_rng(1).normal(size=(5, 2))
CONTEXTS = np.array([[0.0, 0.0], [1.0, -2.0], [1e6, 1e-6]])

POLICIES = {
    "tabular": tabular_softmax(5),
    "log_linear": log_linear(FEATURES, LOG_PROBS),
    "network": context_network(5, 2, widths=(4, 8)),
}
each_policy = pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)


@each_policy
def test_log_prob_is_that_of_the_arms_asked_for(policy):
    params, arms = policy.init(key=KEY), np.array([3, 0, 0, 2])
    expected = policy.log_probs(params, CONTEXTS[1])
    np.testing.assert_allclose(special.logsumexp(expected), 0, atol=1e-14)
    np.testing.assert_array_equal(policy.log_prob(params, CONTEXTS[1], arms), expected[arms])


@each_policy
def test_samples_follow_the_log_probabilities(policy):
    params = policy.init(key=KEY)
    drawn = np.bincount(policy.sample(params, KEY, CONTEXTS[1], 50_000), minlength=5)
    expected = 50_000 * np.exp(policy.log_probs(params, CONTEXTS[1]))
    assert (drawn[expected == 0] == 0).all()
    held = expected > 0
    assert stats.chisquare(drawn[held], expected[held]).pvalue > 1e-3


@each_policy
def test_random_starts_differ_by_key_only(policy):
    first, again, other = (policy.init(key=jax.random.key(seed)) for seed in (0, 0, 1))
    log_probs = [policy.log_probs(params, CONTEXTS[1]) for params in (first, again, other)]
    np.testing.assert_array_equal(log_probs[0], log_probs[1])
    assert np.max(np.abs(log_probs[0] - log_probs[2])[:4]) > 1e-3


# The table


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


@pytest.mark.parametrize(("num_arms", "key"), [(None, KEY), (5, None)])
def test_a_random_table_needs_its_size_and_a_key(num_arms, key):
    with pytest.raises(InvalidInput, match="num_arms and a key"):
        tabular_softmax(num_arms).init(key=key)


# Log-linear


@pytest.mark.parametrize("base", [None, LOG_PROBS])
def test_log_linear_is_the_base_tilted_by_the_features(base):
    policy, theta = log_linear(FEATURES, base), np.array([0.7, -1.3])
    weights = np.exp(FEATURES @ theta) * (1 if base is None else np.exp(base))
    found = np.exp(policy.log_probs(theta))
    np.testing.assert_allclose(found, weights / weights.sum(), rtol=1e-12)


@pytest.mark.parametrize("base", [None, LOG_PROBS])
def test_log_linear_starts_at_its_base(base):
    policy = log_linear(FEATURES, base)
    expected = np.full(5, -np.log(5)) if base is None else base
    np.testing.assert_allclose(policy.log_probs(policy.init()), expected, rtol=1e-14, atol=1e-14)


def test_log_linear_score_is_the_feature_minus_its_mean():
    policy, theta = POLICIES["log_linear"], np.array([0.7, -1.3])
    scores = jax.jacobian(policy.log_prob)(theta, None, np.arange(4))
    mean = np.exp(policy.log_probs(theta)) @ FEATURES
    np.testing.assert_allclose(scores, FEATURES[:4] - mean, rtol=1e-12)


def test_log_linear_has_its_start_from_the_base_alone():
    with pytest.raises(InvalidInput, match="base_log_probs"):
        POLICIES["log_linear"].init(LOG_PROBS)


@pytest.mark.parametrize(("features", "base"), [(FEATURES[0], None), (FEATURES, LOG_PROBS[:4])])
def test_log_linear_refuses_shapes_that_do_not_match(features, base):
    with pytest.raises(AssertionError):
        log_linear(features, base)


# The network


def test_network_starts_at_exactly_the_given_log_probabilities_on_any_context():
    policy = POLICIES["network"]
    started = jax.vmap(policy.log_probs, (None, 0))(policy.init(LOG_PROBS, KEY), CONTEXTS)
    np.testing.assert_allclose(started, np.tile(LOG_PROBS, (3, 1)), rtol=1e-14, atol=1e-15)


def test_network_is_its_layers_in_a_row():
    policy = POLICIES["network"]
    first, second, last = policy.init(key=KEY)
    x = CONTEXTS[1] @ first.kernel + first.bias
    x = np.maximum((x - x.mean()) / np.sqrt(x.var() + 1e-5), 0)
    x = np.maximum(x @ second.kernel + second.bias, 0) @ last.kernel + last.bias
    found = policy.log_probs([first, second, last], CONTEXTS[1])
    np.testing.assert_allclose(found, special.log_softmax(x), rtol=1e-12)


def test_a_random_network_tells_contexts_apart_and_has_gradients_in_every_layer():
    policy = POLICIES["network"]
    params = policy.init(key=KEY)
    of_contexts = jax.vmap(policy.log_probs, (None, 0))(params, CONTEXTS)
    assert np.ptp(of_contexts, axis=0).max() > 1e-3
    gradient = jax.grad(lambda p: policy.log_probs(p, CONTEXTS[1])[0])(params)
    assert all(jnp.any(leaf != 0) for leaf in jax.tree.leaves(gradient))


def test_a_network_needs_a_key():
    with pytest.raises(InvalidInput, match="give a key"):
        POLICIES["network"].init(LOG_PROBS)
