import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from bandits.policies import (
    context_linear,
    context_network,
    context_residual,
    log_linear,
    tabular_softmax,
)
from theory.checks import InvalidInput

pytestmark = pytest.mark.usefixtures("float64")

KEY = jax.random.key(20240414)
POLICY = tabular_softmax()
LOG_PROBS = np.append(np.log([0.2, 0.3, 0.4, 0.1]), -np.inf)
LOGITS = np.random.default_rng(0).normal(size=(3, 5))
FEATURES = np.random.default_rng(1).normal(size=(5, 2))
CONTEXTS = np.array([[0.0, 0.0], [1.0, -2.0], [1e6, 1e-6]])

SLOPES = np.random.default_rng(2).normal(size=(2, 5))


def base(context):
    """Log-probabilities that depend on the context and exclude the last arm."""
    logits = jnp.where(jnp.arange(5) < 4, jnp.asarray(context) @ SLOPES, -jnp.inf)
    return jax.nn.log_softmax(logits)


POLICIES = {
    "tabular": tabular_softmax(5),
    "log_linear": log_linear(FEATURES, LOG_PROBS),
    "network": context_network(5, 2, widths=(4, 8)),
    "linear": context_linear(5, 2),
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


# Linear in the context


def test_linear_is_the_softmax_of_the_context_times_its_weights():
    policy = POLICIES["linear"]
    weights = np.array([[1.0, 0.0, -1.0, 0.5, 2.0], [0.0, 2.0, 0.3, 0.5, 1.0]])
    expected = special.log_softmax([3 - 2 * 0, -4.0, -3 - 0.6, 1.5 - 1.0, 6 - 2.0])
    found = policy.log_probs(weights, np.array([3.0, -2.0]))
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    np.testing.assert_allclose(policy.log_probs(weights, np.zeros(2)), -np.log(5), rtol=1e-12)


def test_a_random_linear_policy_has_logits_of_variance_one_on_standard_contexts():
    weights = np.asarray(context_linear(200, 50).init(key=KEY))
    assert weights.shape == (50, 200)
    np.testing.assert_allclose(weights.std() * 50**0.5, 1, atol=0.03)
    assert abs(weights.mean()) < 0.005


def test_linear_score_is_the_context_at_the_arm_minus_its_mean():
    policy = POLICIES["linear"]
    weights, x = SLOPES, CONTEXTS[1]
    score = jax.grad(lambda w: policy.log_probs(w, x)[1])(weights)
    expected = np.outer(x, np.eye(5)[1] - np.exp(policy.log_probs(weights, x)))
    np.testing.assert_allclose(score, expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"log_probs": LOG_PROBS, "key": KEY}, "has no bias"), ({}, "give a key")],
)
def test_linear_starts_neither_at_one_law_nor_without_a_key(arguments, message):
    with pytest.raises(InvalidInput, match=message):
        POLICIES["linear"].init(**arguments)


# A network beside a base


RESIDUAL = context_residual(base, 5, 2, widths=(4, 8))


def test_residual_starts_at_its_base_exactly_on_any_context():
    params = RESIDUAL.init(key=KEY)
    for context in CONTEXTS[:2]:
        found = RESIDUAL.log_probs(params, context)
        np.testing.assert_allclose(found, base(context), rtol=1e-15, atol=1e-15)
        assert np.exp(found[-1]) == 0


def test_residual_takes_logits_as_a_base_too():
    policy = context_residual(lambda x: 3.0 + x @ SLOPES, 5, 2)
    params = policy.init(key=KEY)
    assert [layer.kernel.shape for layer in params] == [(2, 64), (64, 5)]
    expected = special.log_softmax(CONTEXTS[1] @ SLOPES)
    np.testing.assert_allclose(policy.log_probs(params, CONTEXTS[1]), expected, rtol=1e-12)


def test_residual_is_its_base_plus_its_layers_in_a_row():
    first, second, _ = RESIDUAL.init(key=KEY)
    last = context_network(5, 8, widths=()).init(key=KEY)[0]
    x = CONTEXTS[1]
    hidden = np.maximum(x @ first.kernel + first.bias, 0)
    hidden = np.maximum(hidden @ second.kernel + second.bias, 0)
    logits = np.asarray(base(x)) + hidden @ last.kernel + last.bias
    found = RESIDUAL.log_probs([first, second, last], x)
    np.testing.assert_allclose(found, special.log_softmax(logits), rtol=1e-12)


def test_gradients_reach_the_last_layer_at_once_and_all_layers_after_one_step():
    def gradient(params):
        return jax.grad(lambda p: RESIDUAL.log_probs(p, CONTEXTS[1])[0])(params)

    params = RESIDUAL.init(key=KEY)
    first = gradient(params)
    assert [bool(jnp.any(layer.kernel != 0)) for layer in first] == [False, False, True]
    second = gradient(jax.tree.map(lambda p, g: p + 0.1 * g, params, first))
    for leaf in jax.tree.leaves(second):
        assert jnp.isfinite(leaf).all()
        assert jnp.any(leaf != 0)


def test_residual_starts_differ_by_key_in_the_hidden_layers():
    one, other = (RESIDUAL.init(key=jax.random.key(seed)) for seed in (0, 1))
    assert all((a.kernel != b.kernel).all() for a, b in zip(one[:-1], other[:-1], strict=True))


def test_samples_of_a_residual_follow_its_base():
    drawn = np.bincount(RESIDUAL.sample(RESIDUAL.init(key=KEY), KEY, CONTEXTS[1], 20_000))
    expected = 20_000 * np.exp(base(CONTEXTS[1]))[:4]
    assert stats.chisquare(drawn, expected).pvalue > 1e-3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"log_probs": LOG_PROBS, "key": KEY}, "starts at its base"), ({}, "give a key")],
)
def test_residual_starts_neither_at_another_law_nor_without_a_key(arguments, message):
    with pytest.raises(InvalidInput, match=message):
        RESIDUAL.init(**arguments)
