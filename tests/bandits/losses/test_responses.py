import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from bandits.columns import MOST_RESPONSES
from bandits.losses import make_group, normalize_preferences, preferences_by_reward

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
