import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from bandits.kernels.columns import MOST_RESPONSES
from bandits.losses import METHODS, make_group, normalize_preferences, preferences_by_reward
from bandits.losses.responses import sum_of_log_probs
from theory.pairs import Pairs

pytestmark = pytest.mark.usefixtures("float64")

REWARDS = arrays(float, st.integers(1, 6), elements=st.sampled_from([-1.5, 0.0, 0.25, 1.0]))


def test_group_is_on_policy_and_fully_labelled_by_default():
    group = make_group(np.log([0.5, 0.25]), [1, 3])

    assert (group.reference_log_probs == group.log_probs).all()
    assert (group.behaviour_log_probs == group.log_probs).all()
    np.testing.assert_array_equal(group.shares, [0.5, 0.5])
    np.testing.assert_array_equal(group.pair_weights, [[0, 0], [1, 0]])
    assert group.baseline == 0
    assert {leaf.dtype for leaf in jax.tree.leaves(group)} == {np.dtype(float)}


@pytest.mark.parametrize("shape", [(3,), (4, 3), (2, 4, 3)])
def test_groups_without_preferences_weigh_pairs_by_their_rewards(shape):
    rewards = np.random.default_rng(0).integers(0, 3, shape)
    found = make_group(np.zeros(shape), rewards)
    assert found.preferences is None
    np.testing.assert_array_equal(
        found.pair_weights, np.apply_along_axis(preferences_by_reward, -1, rewards)
    )


def test_default_reference_and_behaviour_are_held_fixed():
    def log_ratios(log_probs):
        group = make_group(log_probs, np.zeros(2))
        return jnp.sum(group.log_ratios + group.log_probs - group.behaviour_log_probs)

    np.testing.assert_array_equal(jax.grad(log_ratios)(np.log([0.5, 0.25])), [2, 2])


def test_group_keeps_what_it_is_given():
    given_ = {
        "reference_log_probs": np.log([0.25, 0.5]),
        "behaviour_log_probs": np.log([0.1, 0.2]),
        "preferences": np.array([[0.0, 0.75], [0.25, 0.0]]),
        "shares": np.array([0.9, 0.1]),
        "baseline": np.array(0.5),
    }
    group = make_group(np.log([0.5, 0.25]), [0.0, 1.0], **given_)
    for name, value in given_.items():
        np.testing.assert_array_equal(getattr(group, name), value, err_msg=name)
    np.testing.assert_allclose(group.log_ratios, np.log([2, 0.5]), rtol=1e-15)


def test_groups_are_made_and_mapped_inside_compiled_code():
    log_probs, rewards = np.log(np.random.default_rng(0).dirichlet(np.ones(3), (2, 5)))
    batch = jax.jit(jax.vmap(make_group))(log_probs, rewards)
    rows = [make_group(*row) for row in zip(log_probs, rewards, strict=True)]
    jax.tree.map(np.testing.assert_array_equal, batch, jax.tree.map(lambda *x: np.stack(x), *rows))


def test_preferences_weigh_equally_every_pair_whose_rewards_differ():
    expected = [[0, 0, 0.2, 0.2], [0, 0, 0.2, 0.2], [0, 0, 0, 0.2], [0, 0, 0, 0]]
    rewards = jnp.array([2.0, 2.0, 1.0, 0.0])
    np.testing.assert_array_equal(preferences_by_reward(rewards), expected)


def test_gap_that_is_just_met_is_labelled():
    rewards = jnp.array([0.75, 0.5, 0.0])
    np.testing.assert_array_equal(
        preferences_by_reward(rewards, 0.5) > 0, [[0, 0, 1], [0, 0, 1], [0, 0, 0]]
    )
    np.testing.assert_array_equal(preferences_by_reward(rewards, 0.8), np.zeros((3, 3)))


@given(REWARDS, st.sampled_from([0.0, 0.25, 1.0]))
def test_preferences_point_from_more_to_less_reward_and_sum_to_one(rewards, least_gap):
    preferences = np.asarray(preferences_by_reward(jnp.asarray(rewards), least_gap))
    gaps = np.subtract.outer(rewards, rewards)
    labelled = (gaps > 0) & (gaps >= least_gap)

    np.testing.assert_array_equal(preferences > 0, labelled)
    assert len(set(preferences[labelled])) <= 1
    np.testing.assert_allclose(preferences.sum(), labelled.any(), rtol=1e-12)


@pytest.mark.parametrize("count", [1, 80])
def test_labels_are_the_same_in_columns_and_in_a_table(count):
    rewards = np.random.default_rng(0).integers(0, 9, (count, MOST_RESPONSES + 1)) / 4
    rewards[:, -1] = -np.inf
    tables = jax.vmap(functools.partial(preferences_by_reward, least_gap=0.5))
    # The last response loses to all others, so that without it the others keep their labels.
    table, columns = tables(rewards)[:, :-1, :-1], tables(rewards[:, :-1])
    np.testing.assert_array_equal(table > 0, columns > 0)
    totals = columns.sum(axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(columns, table / table.sum((1, 2), keepdims=True), rtol=1e-12)
    np.testing.assert_allclose(totals, 1.0, rtol=1e-12)


@pytest.mark.parametrize("count", [1, 5])
def test_labels_stand_still_where_rewards_and_the_gap_are_differentiated(count):
    def labelled(rewards, least_gap):
        return preferences_by_reward(rewards, least_gap)[0, 1]

    rewards = np.tile([1.0, 0.5, 0.0], (count, 1))
    slopes = jax.vmap(jax.grad(labelled, argnums=(0, 1)), (0, None))(rewards, 0.2)
    for found in slopes:
        np.testing.assert_array_equal(found, np.zeros_like(found))


def test_equal_rewards_leave_no_preferences():
    np.testing.assert_array_equal(preferences_by_reward(jnp.ones(3)), np.zeros((3, 3)))


def test_normalized_weights_keep_their_proportions_and_zeros_stay_zeros():
    weights = jnp.array([[0.0, 3.0], [1.0, 0.0]])
    np.testing.assert_array_equal(normalize_preferences(weights), [[0, 0.75], [0.25, 0]])
    np.testing.assert_array_equal(normalize_preferences(jnp.zeros((2, 2))), np.zeros((2, 2)))


def test_a_list_of_pairs_weighs_pairs_and_winners_as_its_table():
    pairs = Pairs(np.array([0, 2, 0, 1]), np.array([1, 0, 1, 2]), np.array([0.5, 0.2, 0.3, 0.0]))
    group = make_group(np.log([0.5, 0.25, 0.125]), np.zeros(3), preferences=pairs)
    table = [[0, 0.8, 0], [0, 0, 0], [0.2, 0, 0]]
    np.testing.assert_allclose(group.pair_weights, table, rtol=1e-15)
    np.testing.assert_allclose(group.win_weights, [0.8, 0, 0.2], rtol=1e-15)
    of_table = dataclasses.replace(group, preferences=jnp.array(table))
    np.testing.assert_allclose(of_table.win_weights, [0.8, 0, 0.2], rtol=1e-15)


# Logits of seven responses; the group holds three of them, and one of those twice.
LOGITS = np.array([0.3, -1.2, 2.0, 0.7, -0.4, 1.1, 0.0])
DRAWN = np.array([5, 0, 2, 0], np.int32)
OUTSIDE = np.array([1, 3, 4, 6])


def drawn_group(logits, **given):
    """The group that was drawn, with its logits as scores."""
    logits = jnp.asarray(logits)
    log_probs = jax.nn.log_softmax(logits)[DRAWN]
    rewards = jnp.array([0.5, 0.1, 1.0, 0.1], logits.dtype)
    group = make_group(log_probs, rewards, **given)
    return dataclasses.replace(group, scores=logits[DRAWN])


@jax.jit
def by_differences_and_plainly(weights, total, logits, anchor):
    """The sum of log-probabilities and its slopes in the logits, in both ways."""

    def by_differences(logits):
        return sum_of_log_probs(weights, total, drawn_group(logits), anchor)

    def plain(logits):
        return jnp.sum(weights * jax.nn.log_softmax(logits)[DRAWN])

    return tuple(jax.value_and_grad(f)(logits) for f in (by_differences, plain))


@pytest.mark.parametrize("total", [0.0, 0.7])
@given(
    arrays(float, 4, elements=st.floats(-5, 5)),
    arrays(float, 7, elements=st.floats(-5, 5)),
    st.integers(0, 3),
)
def test_the_sum_of_log_probs_is_the_plain_sum(total, weights, logits, anchor):
    weights = weights - weights.mean() + total / 4
    found, expected = by_differences_and_plainly(weights, total, logits, anchor)
    for f, e in zip(found, expected, strict=True):
        np.testing.assert_allclose(f, e, rtol=1e-12, atol=1e-12)


def test_the_sum_of_log_probs_without_scores_is_one_of_log_probs():
    weights, log_probs = np.array([0.5, -0.2, 0.3]), np.log([0.5, 0.25, 0.125])

    def by_differences(log_probs):
        group = make_group(log_probs, np.zeros(3))
        return sum_of_log_probs(weights, 0.6, group, jnp.array(2))

    value, slopes = jax.value_and_grad(by_differences)(log_probs)
    np.testing.assert_allclose(value, weights @ log_probs, rtol=1e-14)
    np.testing.assert_allclose(slopes, weights, rtol=1e-14)


def test_an_excluded_response_without_weight_is_not_in_the_sum_of_log_probs():
    weights, log_probs = np.array([0.5, 0.0, -0.5]), np.array([-1.0, -np.inf, -2.0])

    def by_differences(log_probs):
        return sum_of_log_probs(weights, 0.0, make_group(log_probs, np.zeros(3)), jnp.array(0))

    value, slopes = jax.value_and_grad(by_differences)(log_probs)
    assert value == 0.5
    np.testing.assert_array_equal(slopes, weights)


def test_the_sum_of_log_probs_shows_a_weight_that_is_not_a_number():
    group = drawn_group(LOGITS)
    assert np.isnan(sum_of_log_probs(jnp.array([np.nan, 0.0, 0.0, 0.0]), 0.0, group, 1))


@functools.partial(jax.jit, static_argnums=0)
def slopes_in_logits(loss, logits):
    return jax.vmap(jax.grad(lambda logits: loss(drawn_group(logits))))(logits)


BALANCED = {
    "best_of_n_minus_worst": {"coefficient": 1.0},
    "best_of_n_minus_mean": {"coefficient": 1.0},
    "reinforce": {"prompt_baseline": 1.0},
    "dpo": {},
    "ipo": {},
    "hinge": {},
}
"""Methods whose weights sum to zero by their making, with what they need for that."""


@pytest.mark.parametrize("name", ["sum_of_log_probs", *BALANCED])
def test_weights_that_sum_to_zero_leave_logits_outside_the_group_exactly_alone(name):
    """In float32, where the sum would round to a little more or less than zero."""

    def by_differences(group):
        weights = jnp.array([0.1, 0.7, -1.1, 0.3], jnp.float32)
        return sum_of_log_probs(weights, 0.0, group, jnp.array(0))

    loss = by_differences
    if name in BALANCED:
        loss = functools.partial(METHODS[name].loss, **BALANCED[name])
    logits = np.random.default_rng(0).normal(0, 3, (50, 7)).astype(np.float32)
    with jax.enable_x64(False):
        slopes = slopes_in_logits(loss, jnp.asarray(logits))
    assert slopes.dtype == np.float32
    assert (slopes[:, OUTSIDE] == 0).all()
    assert (slopes[:, [0, 2]] != 0).any(axis=0).all()


BY_DIFFERENCES = ("dpo", "ipo", "hinge", "slic", "hypo", "reinforce", *(
    name for name in METHODS if name.startswith("best_of_n_minus")
))  # fmt: skip


@pytest.mark.parametrize("name", BY_DIFFERENCES)
def test_logits_as_scores_give_the_loss_and_slopes_of_log_probs(name):
    loss = METHODS[name].loss
    given = {"reference_log_probs": -np.arange(4.0), "shares": np.array([0.4, 0.3, 0.2, 0.1])}

    def by_scores(logits):
        return loss(drawn_group(logits, **given))

    def by_log_probs(logits):
        return loss(dataclasses.replace(drawn_group(logits, **given), scores=None))

    for f in (lambda f: f, jax.grad):
        np.testing.assert_allclose(
            f(by_scores)(LOGITS), f(by_log_probs)(LOGITS), rtol=1e-12, atol=1e-14
        )


def test_a_group_under_other_log_probs_has_no_old_scores():
    group = drawn_group(LOGITS)
    np.testing.assert_array_equal(group.comparable, LOGITS[DRAWN])
    moved = group.with_log_probs(group.log_probs - 1.0)
    assert moved.scores is None
    np.testing.assert_array_equal(moved.comparable, group.log_probs - 1.0)
    np.testing.assert_array_equal(moved.rewards, group.rewards)
