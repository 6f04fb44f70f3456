import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bandits.kernels.columns import MOST_RESPONSES
from bandits.losses import preferences_by_reward
from bandits.losses.pairs import mean_over_pairs, sum_over_pairs
from theory.pairs import Pairs

pytestmark = pytest.mark.usefixtures("float64")

SIZES = st.sampled_from([2, 3, 5])
SEEDS = st.integers(0, 2**32 - 1)


def softplus(x):
    return jnp.logaddexp(0.0, -x)


def square(x):
    return (x - 1.0) ** 2


def draw(seed, size, groups=()):
    """Scores and weights of random groups; some pairs are not labelled, some in both orders."""
    rng = np.random.default_rng(seed)
    weights = rng.uniform(size=(*groups, size, size)) * rng.integers(0, 2, (*groups, size, size))
    return rng.normal(size=(*groups, size)), np.where(np.eye(size), 0.0, weights)


def pair_by_pair(of_margin, scores, weights):
    terms = np.ndenumerate(weights)
    return sum(weight * of_margin(scores[i] - scores[j]) for (i, j), weight in terms)


def plain(of_margin):
    """The formula, differentiable and mapped as JAX does."""

    def total(scores, weights, scale=1.0, offset=0.0):
        return jnp.sum(weights * of_margin(scale * (scores[:, None] - scores[None, :]) - offset))

    return total


def by_position(of_pairs):
    """The sum or mean with its scale and offset in third and fourth place."""

    def total(scores, labels, scale=1.0, offset=0.0):
        return of_pairs(scores, labels, scale=scale, offset=offset)

    return total


@given(SEEDS, SIZES, st.floats(-2, 2))
def test_an_offset_is_taken_from_every_margin(seed, size, offset):
    scores, weights = draw(seed, size)
    total = sum_over_pairs(square, scores, weights, offset=offset)
    expected = pair_by_pair(lambda margin: square(margin - offset), scores, weights)
    np.testing.assert_allclose(total, expected, rtol=1e-12)


# As many groups as responses and more are summed in columns, fewer by the formula.
@pytest.mark.parametrize("of_margin", [softplus, square])
@pytest.mark.parametrize("count", [1, 8])
@given(SEEDS, SIZES)
def test_the_sum_is_that_of_its_terms(of_margin, count, seed, size):
    scores, weights = draw(seed, size, (count,))
    sums = jax.vmap(lambda s, w: sum_over_pairs(of_margin, s, w))(scores, weights)
    expected = [pair_by_pair(of_margin, *group) for group in zip(scores, weights, strict=True)]
    np.testing.assert_allclose(sums, expected, rtol=1e-12)


@pytest.mark.parametrize("of_margin", [softplus, square])
@pytest.mark.parametrize("groups", [(), (8,), (2, 4), (1, 1)])
def test_first_derivatives_are_those_of_the_formula(of_margin, groups):
    rng = np.random.default_rng(1)
    arguments = (*draw(0, 4, groups), rng.uniform(0.5, 2, groups), rng.normal(size=groups))
    of_pairs = by_position(functools.partial(sum_over_pairs, of_margin))
    found, expected = (jax.grad(f, argnums=(0, 1, 2, 3)) for f in (of_pairs, plain(of_margin)))
    for _ in groups:
        found, expected = jax.vmap(found), jax.vmap(expected)
    to_scores, to_weights, to_scale, to_offset = found(*arguments)
    expected_scores, expected_weights, expected_scale, expected_offset = expected(*arguments)
    np.testing.assert_allclose(to_scores, expected_scores, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(to_scale, expected_scale, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(to_offset, expected_offset, rtol=1e-12)
    # Nothing is said of what is not labelled: its derivative is not asked for.
    labelled = arguments[1] > 0
    np.testing.assert_allclose(to_weights[labelled], expected_weights[labelled], rtol=1e-12)


@pytest.mark.parametrize("second", [jax.jacfwd, jax.jacrev])
@pytest.mark.parametrize("first", [jax.jacfwd, jax.jacrev])
def test_second_derivatives_are_those_of_the_formula(first, second):
    scores, weights = draw(1, 3, (4,))
    found = jax.vmap(second(first(lambda s, w: sum_over_pairs(softplus, s, w))))(scores, weights)
    expected = jax.vmap(jax.hessian(plain(softplus)))(scores, weights)
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("mapped", [(0, None), (None, 0)])
def test_groups_may_share_their_scores_or_their_weights(mapped):
    arguments = [a if axis == 0 else a[0] for a, axis in zip(draw(2, 3, (5,)), mapped, strict=True)]
    found = jax.vmap(jax.grad(lambda s, w: sum_over_pairs(softplus, s, w)), mapped)(*arguments)
    expected = jax.vmap(jax.grad(plain(softplus)), mapped)(*arguments)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("count", [1, 6])
def test_excluded_responses_count_only_where_they_are_labelled(count):
    scores = np.array([0.5, -np.inf, 0.0, -np.inf])
    weights = np.zeros((4, 4))
    weights[0, 2], weights[2, 1] = 0.25, 0.75

    def value_and_slopes(scores):
        return jax.value_and_grad(lambda s: sum_over_pairs(softplus, s, weights))(scores)

    values, slopes = jax.vmap(value_and_slopes)(np.tile(scores, (count, 1)))
    # 2 ≻ 1 is as sure as can be; nothing compares the two excluded.
    slope = 0.25 / (1 + np.exp(0.5))
    np.testing.assert_allclose(values, 0.25 * np.log1p(np.exp(-0.5)), rtol=1e-12)
    np.testing.assert_allclose(slopes, np.tile([-slope, 0, slope, 0], (count, 1)), rtol=1e-12)


@pytest.mark.parametrize("count", [1, 3])
def test_an_excluded_winner_is_an_infinite_loss(count):
    scores = np.tile([-np.inf, 0.0], (count, 1))
    wins = np.array([[0.0, 1.0], [0.0, 0.0]])
    assert np.isinf(jax.vmap(lambda s: sum_over_pairs(softplus, s, wins))(scores)).all()


@pytest.mark.parametrize("size", [3, MOST_RESPONSES + 1])
@pytest.mark.parametrize("count", [1, MOST_RESPONSES + 1])
@pytest.mark.parametrize("bad", [np.nan, -1.0])
def test_weights_out_of_range_are_not_passed_over(size, count, bad):
    scores, weights = np.zeros((count, size)), np.full((size, size), bad)
    sums = jax.vmap(lambda s: sum_over_pairs(square, s, weights))(scores)
    np.testing.assert_array_equal(sums, np.full(count, bad * size**2))


@pytest.mark.parametrize("count", [1, 4])
def test_precisions_may_differ(count):
    scores, weights = draw(4, 3, (count,))
    found = jax.vmap(lambda s, w: sum_over_pairs(square, s, w, offset=0.5))(
        jnp.asarray(scores, jnp.bfloat16), jnp.asarray(weights, jnp.float32)
    )
    assert found.dtype == jnp.float32
    expected = [
        pair_by_pair(lambda margin: square(margin - 0.5), *group)
        for group in zip(scores, weights, strict=True)
    ]
    np.testing.assert_allclose(found, expected, rtol=0.05)


def test_small_losses_of_sure_pairs_are_kept_in_float32():
    scores = np.tile(np.float32([40.0, 0.0]), (2, 1))
    wins = np.array([[0, 1], [0, 0]], np.float32)
    found = jax.vmap(lambda s: sum_over_pairs(softplus, s, wins))(scores)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, np.exp(-40.0), rtol=1e-5)


# Labelled by rewards


def draw_rewards(seed, size, groups=()):
    """Scores and rewards, of which some are equal."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(*groups, size)), rng.integers(0, 4, (*groups, size)) / 4.0


def with_weights(of_margin):
    """The mean as the sum with the table of weights."""

    def total(scores, rewards, scale=1.0, offset=0.0):
        return plain(of_margin)(scores, preferences_by_reward(rewards), scale, offset)

    return total


@pytest.mark.parametrize("of_margin", [softplus, square])
@pytest.mark.parametrize("count", [1, 8])
@given(SEEDS, SIZES)
def test_the_mean_over_pairs_is_the_sum_with_the_weights_of_their_rewards(
    of_margin, count, seed, size
):
    scores, rewards = draw_rewards(seed, size, (count,))
    means = jax.vmap(lambda s, r: mean_over_pairs(of_margin, s, r))(scores, rewards)
    expected = [
        pair_by_pair(of_margin, s, preferences_by_reward(r))
        for s, r in zip(scores, rewards, strict=True)
    ]
    np.testing.assert_allclose(means, expected, rtol=1e-12)


@pytest.mark.parametrize("of_margin", [softplus, square])
@pytest.mark.parametrize("groups", [(), (8,), (2, 4), (1, 1)])
def test_derivatives_of_the_mean_are_those_of_the_formula(of_margin, groups):
    rng = np.random.default_rng(1)
    arguments = (*draw_rewards(0, 4, groups), rng.uniform(0.5, 2, groups), rng.normal(size=groups))
    of_pairs = by_position(functools.partial(mean_over_pairs, of_margin))
    for derivative in (jax.grad, jax.hessian):
        found, expected = (
            derivative(f, argnums=(0, 2, 3)) for f in (of_pairs, with_weights(of_margin))
        )
        for _ in groups:
            found, expected = jax.vmap(found), jax.vmap(expected)
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-12),
            found(*arguments),
            expected(*arguments),
        )


@pytest.mark.parametrize("count", [1, 6])
def test_a_mean_of_no_pair_is_zero_and_so_are_its_slopes(count):
    def value_and_slopes(scores):
        return jax.value_and_grad(lambda s: mean_over_pairs(softplus, s, np.ones(3)))(scores)

    for found in jax.vmap(value_and_slopes)(np.tile([1.0, -np.inf, 0.0], (count, 1))):
        np.testing.assert_array_equal(found, np.zeros_like(found))


@pytest.mark.parametrize("count", [1, 6])
def test_an_excluded_loser_is_not_pushed_and_an_excluded_winner_not_forgiven(count):
    scores = np.tile([0.0, -np.inf], (count, 1))

    def value_and_slopes(rewards):
        mean = functools.partial(mean_over_pairs, softplus, rewards=rewards, scale=2.0)
        return jax.vmap(jax.value_and_grad(mean))(scores)

    for found in value_and_slopes(np.array([1.0, 0.0])):
        np.testing.assert_array_equal(found, np.zeros_like(found))
    values, slopes = value_and_slopes(np.array([0.0, 1.0]))
    assert np.isinf(values).all()
    np.testing.assert_array_equal(slopes, np.tile([2.0, -2.0], (count, 1)))


@pytest.mark.parametrize("count", [1, MOST_RESPONSES + 1])
def test_a_mean_over_many_responses_is_the_same(count):
    scores, rewards = draw_rewards(3, MOST_RESPONSES + 1, (count,))
    found, expected = (
        jax.vmap(jax.value_and_grad(f))(scores, rewards)
        for f in (functools.partial(mean_over_pairs, softplus), with_weights(softplus))
    )
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-13), found, expected
    )


@pytest.mark.parametrize("mapped", [(0, None), (None, 0)])
def test_groups_may_share_their_scores_or_their_rewards(mapped):
    arguments = [
        a if axis == 0 else a[0] for a, axis in zip(draw_rewards(2, 3, (5,)), mapped, strict=True)
    ]
    found, expected = (
        jax.vmap(jax.grad(f), mapped)(*arguments)
        for f in (functools.partial(mean_over_pairs, softplus), with_weights(softplus))
    )
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def draw_list(seed, size, length=7):
    """A list of pairs, some of them twice and some with no weight, and the same as a table."""
    rng = np.random.default_rng(seed)
    winners = rng.integers(0, size, length)
    losers = (winners + rng.integers(1, size, length)) % size
    weights = rng.uniform(size=length) * rng.integers(0, 2, length)
    table = np.zeros((size, size))
    np.add.at(table, (winners, losers), weights)
    return rng.normal(size=size), Pairs(winners, losers, weights), table


@jax.jit
def of_list_and_table(scores, pairs, table, scale, offset):
    """The sum and its derivatives in the scores, the scale and the offset, in both forms."""
    of_pairs = by_position(functools.partial(sum_over_pairs, softplus))
    both = jax.value_and_grad(of_pairs, argnums=(0, 2, 3))
    return both(scores, pairs, scale, offset), both(scores, table, scale, offset)


@given(SEEDS, SIZES, st.floats(-2, 2), st.floats(-2, 2))
def test_a_list_of_pairs_sums_to_what_its_table_does(seed, size, scale, offset):
    found, expected = of_list_and_table(*draw_list(seed, size), scale, offset)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-13, atol=1e-13), found, expected
    )


def test_lists_of_pairs_are_mapped_with_their_scores_or_share_them():
    drawn = [draw_list(seed, 4) for seed in range(6)]
    scores, pairs, table = jax.tree.map(lambda *x: np.stack(x), *drawn)
    of_pairs = functools.partial(sum_over_pairs, softplus, scale=0.7)
    for axis in (0, None):
        given_scores = scores if axis == 0 else scores[0]
        found, expected = (
            jax.jit(jax.vmap(jax.grad(of_pairs), (axis, 0)))(given_scores, labels)
            for labels in (pairs, table)
        )
        np.testing.assert_allclose(found, expected, rtol=1e-13, atol=1e-14)


def test_the_weights_of_a_list_have_the_slopes_of_a_table():
    scores, pairs, table = draw_list(0, 4)

    def of_list(weights):
        return sum_over_pairs(softplus, scores, Pairs(pairs.winners, pairs.losers, weights))

    of_table = jax.grad(lambda table: sum_over_pairs(softplus, scores, table))(table)
    held = pairs.weights > 0
    expected = of_table[pairs.winners, pairs.losers]
    np.testing.assert_allclose(jax.grad(of_list)(pairs.weights)[held], expected[held], rtol=1e-13)


def test_an_excluded_response_that_is_in_no_pair_of_a_list_has_no_say():
    pairs = Pairs(np.array([0, 1]), np.array([2, 0]), np.array([1.0, 0.0]))

    def total(scores, scale):
        return sum_over_pairs(softplus, scores, pairs, scale=scale)

    slopes, to_scale = jax.grad(total, (0, 1))(np.array([1.0, -np.inf, 0.0]), 0.5)
    of_rest, expected = jax.grad(lambda s, b: softplus(b * (s[0] - s[1])), (0, 1))(
        np.array([1.0, 0.0]), 0.5
    )
    np.testing.assert_allclose(slopes, [of_rest[0], 0, of_rest[1]], rtol=1e-14)
    np.testing.assert_allclose(to_scale, expected, rtol=1e-14)


def test_an_empty_list_of_pairs_is_no_loss():
    nothing = Pairs(np.zeros(0, int), np.zeros(0, int), np.zeros(0))
    value, slopes = jax.value_and_grad(lambda s: sum_over_pairs(softplus, s, nothing))(np.ones(3))
    assert value == 0
    np.testing.assert_array_equal(slopes, np.zeros(3))
