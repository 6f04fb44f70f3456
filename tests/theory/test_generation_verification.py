import itertools

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy import special

from theory import equivalence
from theory.checks import InvalidInput
from theory.generation_verification import (
    best_additive_reward,
    class_sizes,
    expected_additive_reward,
    optimal_tokens,
    seen_share,
    token_features,
)
from theory.gibbs import gibbs_log_probs

pytestmark = pytest.mark.usefixtures("float64")

LENGTH, VALUES = 3, 4
SEQUENCES = np.array(list(itertools.product(range(VALUES), repeat=LENGTH)))
SEEDS = st.integers(0, 10**6)
HALVES = np.log(np.full((2, 2), 0.5))


def over_sequences(table):
    """The sum of a token table's entries, a number a sequence."""
    return np.asarray(table)[np.arange(LENGTH), SEQUENCES].sum(axis=1)


def random_rewards(rng):
    return 2 * rng.normal(size=(LENGTH, VALUES))


def random_tokens(rng):
    """Log-probabilities a token, some of them of zero."""
    weights = rng.dirichlet(np.ones(VALUES), LENGTH) * (rng.random((LENGTH, VALUES)) < 0.7)
    weights[:, 0] += 0.1
    return np.log(weights / weights.sum(axis=1, keepdims=True))


@pytest.mark.parametrize("values", [2, 3, 4])
@pytest.mark.parametrize("length", [1, 2, 3])
def test_class_sizes_are_the_ranks_of_the_classes(values, length):
    sequences = list(itertools.product(range(values), repeat=length))
    additive = token_features(sequences, values).astype(float)
    sizes = class_sizes(values, length)
    assert sizes.responses == len(sequences)
    assert sizes.policies == sizes.random_rewards == len(sequences) - 1
    assert sizes.additive_rewards == sizes.optimal_policies == length * (values - 1)
    assert np.linalg.matrix_rank(additive) == sizes.additive_rewards + 1
    centred = additive - additive.mean(axis=0)
    assert np.linalg.matrix_rank(centred) == sizes.additive_rewards


def test_class_sizes_of_long_sequences_and_of_numpy_integers_are_exact():
    sizes = class_sizes(50_000, 1000)
    assert sizes.responses == 50_000**1000
    assert sizes.additive_rewards == 49_999_000
    assert class_sizes(np.int32(50), 20).responses == 50**20


def test_features_have_a_column_for_each_value_at_each_place():
    assert_array_equal(
        token_features([[0, 2], [1, 1]], 3), [[1, 0, 0, 0, 0, 1], [0, 1, 0, 0, 1, 0]]
    )


@given(SEEDS)
def test_features_times_token_rewards_are_the_rewards_of_sequences(seed):
    rewards = random_rewards(np.random.default_rng(seed))
    found = token_features(SEQUENCES, VALUES) @ rewards.ravel()
    assert_allclose(found, over_sequences(rewards), atol=1e-12)


@given(SEEDS, st.floats(0.05, 10))
def test_the_product_of_optimal_tokens_is_the_gibbs_policy_over_sequences(seed, beta):
    rng = np.random.default_rng(seed)
    rewards, reference = random_rewards(rng), random_tokens(rng)
    tokens = np.asarray(optimal_tokens(rewards, reference, beta))
    expected = gibbs_log_probs(over_sequences(rewards), over_sequences(reference), beta)
    assert_allclose(over_sequences(tokens), expected, rtol=1e-11, atol=1e-11)
    assert (tokens[np.isneginf(reference)] == -np.inf).all()


@given(SEEDS)
def test_expected_and_best_rewards_are_those_of_an_enumeration(seed):
    rng = np.random.default_rng(seed)
    rewards, tokens = random_rewards(rng), random_tokens(rng)
    by_sequence = over_sequences(rewards)
    assert_allclose(
        expected_additive_reward(tokens, rewards),
        np.exp(over_sequences(tokens)) @ by_sequence,
        atol=1e-12,
    )
    assert_allclose(best_additive_reward(rewards), by_sequence.max(), rtol=1e-12)


def test_a_small_beta_earns_the_best_reward():
    rewards = random_rewards(np.random.default_rng(0))
    uniform = np.full((LENGTH, VALUES), -np.log(VALUES))
    earned = [
        float(expected_additive_reward(optimal_tokens(rewards, uniform, beta), rewards))
        for beta in (1e-3, 0.1, 1.0, 10.0, 1e9)
    ]
    assert earned == sorted(earned, reverse=True)
    assert_allclose(earned[0], best_additive_reward(rewards), rtol=1e-12)
    assert_allclose(earned[-1], rewards.mean(axis=1).sum(), atol=1e-6)


def test_dpo_on_product_policies_is_rlhf_with_additive_rewards():
    rng = np.random.default_rng(1)
    sequences = list(itertools.product(range(2), repeat=2))
    features = token_features(sequences, 2)
    counts = rng.integers(1, 6, (4, 4)) * (1 - np.eye(4))
    first, second = np.log(rng.dirichlet(np.ones(2), 2))
    reference = (first[:, None] + second).ravel()
    dpo = equivalence.fit_dpo(features, counts, reference, 0.5)
    rlhf = equivalence.fit_rlhf(np.eye(4), features, counts, reference, 0.5)
    assert_allclose(dpo.log_probs, rlhf.log_probs, atol=1e-10)
    joint = np.exp(dpo.log_probs).reshape(2, 2)
    assert_allclose(joint, np.outer(joint.sum(axis=1), joint.sum(axis=0)), atol=1e-12)
    rewards = np.asarray(dpo.reward).reshape(2, 2)
    tokens = np.stack([rewards.mean(axis=1), rewards.mean(axis=0)])
    product = np.asarray(optimal_tokens(tokens, np.stack([first, second]), 0.5))
    assert_allclose(np.exp(product[0]), joint.sum(axis=1), rtol=1e-9)
    assert_allclose(np.exp(product[1]), joint.sum(axis=0), rtol=1e-9)


@pytest.mark.parametrize(("responses", "pairs"), [(2, 1), (2, 3), (3, 2), (5, 2), (4, 0)])
def test_seen_share_is_the_mean_over_all_draws(responses, pairs):
    draws = itertools.product(range(responses), repeat=2 * pairs)
    expected = np.mean([len(set(draw)) / responses for draw in draws])
    assert_allclose(seen_share(responses, pairs), expected, rtol=1e-12)


def test_seen_share_grows_from_nothing_to_everything():
    shares = np.asarray(seen_share(1000, np.array([0, 1, 500, 10**4, 10**6])))
    assert shares[0] == 0
    assert (np.diff(shares) > 0).all()
    assert_allclose(shares[1:3], [1 - 0.999**2, 1 - np.exp(-1)], rtol=1e-3)
    assert_allclose(shares[-1], 1, rtol=1e-15)


def test_seen_share_of_many_responses_keeps_its_digits():
    assert_allclose(seen_share(10**15, 3), 6e-15, rtol=1e-12)


@pytest.mark.parametrize("responses", [2**40, 2**70])
def test_seen_share_takes_as_many_responses_as_class_sizes_names(responses):
    with jax.enable_x64(False):
        found = seen_share(responses, 1e6)
    assert_allclose(found, 2e6 / responses, rtol=1e-5)


def test_product_policies_can_be_swept():
    rng = np.random.default_rng(2)
    rows = [(random_rewards(rng), random_tokens(rng), beta) for beta in (0.1, 1.0, 5.0)]

    def earned(reward, reference, beta):
        return expected_additive_reward(optimal_tokens(reward, reference, beta), reward)

    swept = jax.jit(jax.vmap(earned))(*map(np.stack, zip(*rows, strict=True)))
    assert_allclose(swept, [earned(*row) for row in rows], rtol=1e-12)


def test_the_slope_of_the_reward_in_each_token_reward_is_its_probability():
    rng = np.random.default_rng(3)
    rewards, tokens = random_rewards(rng), random_tokens(rng)
    gradient = jax.grad(expected_additive_reward, 1)(tokens, rewards)
    assert_allclose(gradient, np.exp(tokens), rtol=1e-12)
    assert_allclose(
        special.softmax(rewards / 0.5 + tokens, axis=1),
        np.exp(optimal_tokens(rewards, tokens, 0.5)),
        rtol=1e-12,
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: token_features([0, 1], 2), r"sequences has shape \(2,\); it must be \[K, L\]"),
        (lambda: token_features([[0, 2]], 2), "sequences is 2"),
        (lambda: token_features([[0, -1]], 2), "sequences is -1"),
        (lambda: token_features([[0.0, 1.0]], 2), "integer from 0 to 1"),
        (lambda: token_features(np.zeros((3, 0), int), 2), "length is 0"),
        (lambda: optimal_tokens(np.ones((3, 2)), HALVES, 1.0), r"\(2, 2\) but .*\(3, 2\)"),
        (lambda: expected_additive_reward(HALVES, np.ones((1, 2))), "they must match"),
        (lambda: expected_additive_reward(HALVES, np.ones((2, 3))), "they must match"),
    ],
)
def test_what_is_no_table_of_tokens_is_refused(call, message):
    with pytest.raises(InvalidInput, match=message):
        call()
