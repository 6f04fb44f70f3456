"""Responses of different lengths, held to the enumeration of a tiny space."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.testing import assert_allclose, assert_array_equal
from scipy import special, stats

from theory import variable_length
from theory.checks import InvalidInput
from theory.variable_length import STOP

pytestmark = pytest.mark.usefixtures("float64")

T, V = 3, 2
SPACE = [
    tokens
    for length in range(T + 1)
    for tokens in itertools.product(range(1, V + 1), repeat=length)
]
LENGTHS = np.array([len(tokens) for tokens in SPACE])

# Compiled once for all tests.
length_log_probs = jax.jit(variable_length.length_log_probs)
table_of_lengths = jax.jit(variable_length.table_of_lengths)
sequence_entropy = jax.jit(variable_length.sequence_entropy)
sequence_kl = jax.jit(variable_length.sequence_kl)
skewed_lengths = jax.jit(variable_length.skewed_lengths, static_argnums=0)


def enumerated(table):
    """The probability of every response: tokens one by one, then the stop, forced after T."""
    return np.array(
        [
            np.prod([table[t, token] for t, token in enumerate(tokens)])
            * (table[len(tokens), STOP] if len(tokens) < T else 1.0)
            for tokens in SPACE
        ]
    )


def distributions(*shape):
    weights = arrays(float, shape, elements=st.just(0.0) | st.floats(1e-3, 1))
    kept = weights.filter(lambda w: w.any(axis=-1).all())
    return kept.map(lambda w: w / w.sum(axis=-1, keepdims=True))


TABLES = distributions(T, 1 + V)
LAWS = distributions(T + 1)
RANDOM = np.random.default_rng(0)
POSITIVE = RANDOM.dirichlet(np.ones(1 + V), (4, T))
OTHERS = RANDOM.dirichlet(np.ones(1 + V), (4, T))
LENGTH_LAWS = RANDOM.dirichlet(np.ones(T + 1), 4)


# Against enumeration


@given(TABLES)
def test_the_law_of_the_length_is_that_of_enumeration_and_zeros_are_exact(table):
    assert_allclose(enumerated(table).sum(), 1, rtol=1e-12)  # nothing is left out
    expected = np.bincount(LENGTHS, enumerated(table), T + 1)
    found = length_log_probs(np.log(table))
    assert_allclose(np.exp(found), expected, rtol=1e-12, atol=0)
    assert_array_equal(np.isneginf(found), expected == 0)


@given(TABLES)
def test_entropy_is_that_of_enumeration(table):
    expected = special.entr(enumerated(table)).sum()
    assert_allclose(sequence_entropy(np.log(table)), expected, rtol=1e-11, atol=1e-14)


@given(TABLES, TABLES)
def test_kl_is_that_of_enumeration_and_infinite_where_it_is(table, other):
    expected = special.rel_entr(enumerated(table), enumerated(other)).sum()
    assert_allclose(sequence_kl(np.log(table), np.log(other)), expected, rtol=1e-11, atol=1e-13)


def test_a_place_that_is_never_reached_does_not_count():
    stops = np.array([[0.2, 0.8, 0], [1, 0, 0], [0.5, 0.5, 0]])
    other = np.array([[0.2, 0.8, 0], [1, 0, 0], [0, 0, 1]])
    assert sequence_kl(np.log(stops), np.log(other)) == 0
    assert_allclose(sequence_entropy(np.log(stops)), stats.entropy([0.2, 0.8]), rtol=1e-14)
    assert_array_equal(length_log_probs(np.log(stops)), np.log([0.2, 0.8, 0, 0]))
    assert sequence_kl(np.log(other[::-1]), np.log(stops[::-1])) == np.inf


def test_a_policy_that_stops_at_once_is_certain():
    table = np.tile([1.0, 0, 0], (T, 1))
    assert_array_equal(length_log_probs(np.log(table)), [0, -np.inf, -np.inf, -np.inf])
    assert sequence_entropy(np.log(table)) == 0


def test_a_policy_that_never_stops_is_as_long_as_can_be():
    table = np.tile([0.0, 0.25, 0.75], (T, 1))
    assert_allclose(np.exp(length_log_probs(np.log(table))), [0, 0, 0, 1], rtol=1e-14)
    assert_allclose(sequence_entropy(np.log(table)), T * stats.entropy([0.25, 0.75]), rtol=1e-14)


def test_probabilities_below_the_smallest_number_keep_their_logarithms():
    table = np.tile(np.log1p(-np.exp(-0.5)) * np.array([0.0, 1.0]), (2000, 1))
    table[:, STOP] = -0.5
    found = length_log_probs(table)
    assert_allclose(found[-1], table[:, 1].sum(), rtol=1e-10)
    assert np.exp(found[-1]) == 0
    assert_allclose(special.logsumexp(found), 0, atol=1e-12)


# A table of given lengths


@given(LAWS, distributions(V))
def test_a_table_of_lengths_has_those_lengths(law, content):
    table = table_of_lengths(np.log(law), np.log(content))
    assert_allclose(special.logsumexp(table, axis=-1), 0, atol=1e-12)
    found = length_log_probs(table)
    assert_allclose(np.exp(found), law, rtol=1e-11, atol=0)
    assert_array_equal(np.isneginf(found), law == 0)


@given(LAWS, distributions(V))
def test_the_hazard_is_the_share_of_those_that_get_there_and_content_is_alike(law, content):
    table = np.exp(table_of_lengths(np.log(law), np.log(content)))
    survives = law[::-1].cumsum()[::-1]
    for place in range(T):
        if survives[place] == 0:
            assert_array_equal(table[place], [1, 0, 0])
            continue
        hazard = law[place] / survives[place]
        assert_allclose(table[place, STOP], hazard, rtol=1e-11, atol=0)
        assert_allclose(
            table[place, 1:], survives[place + 1] / survives[place] * content, rtol=1e-11, atol=0
        )


@given(TABLES)
def test_with_one_kind_of_content_table_and_law_are_inverses(table):
    hazards = np.stack([table[:, STOP], 1 - table[:, STOP]], axis=1)
    law = length_log_probs(np.log(hazards))
    again = table_of_lengths(law, np.zeros(1))
    reached = np.cumprod(np.append(1, hazards[:-1, 1])) > 0
    assert_allclose(np.exp(again)[reached], hazards[reached], rtol=1e-9, atol=1e-12)


def test_content_need_not_be_normalised_and_may_be_a_number():
    law = np.log(LENGTH_LAWS[0])
    assert_allclose(
        table_of_lengths(law, np.array([1.0, 1.0])),
        table_of_lengths(law, np.log([0.5, 0.5])),
        rtol=1e-13,
    )
    assert_array_equal(
        variable_length.table_of_lengths(law, 0.0), table_of_lengths(law, np.zeros(1))
    )


# The skewed law


@given(st.sampled_from([2, 7, 40]), st.data(), st.floats(0.1, 1.5))
def test_the_mode_is_where_it_was_asked_and_nothing_is_empty(max_length, data, spread):
    mode = data.draw(st.integers(1, max_length))
    law = np.exp(skewed_lengths(max_length, mode, spread))
    assert law.shape == (max_length + 1,)
    assert np.argmax(law) == mode
    assert law[0] == 0
    assert_allclose(law.sum(), 1, rtol=1e-12)


@pytest.mark.parametrize(("mode", "spread"), [(12.0, 0.6), (5.5, 0.3), (2.0, 1.0)])
def test_the_law_is_scipys_log_normal_on_whole_lengths(mode, spread):
    weights = stats.lognorm.pdf(np.arange(41), spread, scale=mode * np.exp(spread**2))
    assert_allclose(
        np.exp(skewed_lengths(40, mode, spread)), weights / weights.sum(), rtol=1e-10, atol=0
    )


@given(st.floats(4, 15), st.floats(0.1, 0.6))
def test_the_law_is_right_skewed(mode, spread):
    lengths, law = np.arange(201), np.exp(skewed_lengths(200, mode, spread))
    mean = law @ lengths
    assert law @ (lengths - mean) ** 3 > 0
    assert mean > lengths[np.searchsorted(law.cumsum(), 0.5)] - 0.5 > mode - 1.5


def test_more_spread_is_broader_at_the_same_mode():
    deviations = []
    for spread in (0.2, 0.4, 0.6):
        law = np.exp(skewed_lengths(40, 12.0, spread))
        assert np.argmax(law) == 12
        deviations.append(np.sqrt(law @ np.arange(41) ** 2 - (law @ np.arange(41)) ** 2))
    assert np.all(np.diff(deviations) > 0.5)


# Transformations


def test_modes_and_spreads_are_sweep_axes():
    modes, spreads = np.array([3.0, 12.0]), np.array([0.4, 0.6])
    swept = jax.jit(jax.vmap(lambda m, s: variable_length.skewed_lengths(40, m, s)))(modes, spreads)
    for row, mode, spread in zip(swept, modes, spreads, strict=True):
        assert_allclose(row, skewed_lengths(40, mode, spread), rtol=1e-12)
    slope = jax.jit(jax.jacfwd(lambda m: variable_length.skewed_lengths(40, m)))(12.0)
    assert np.isfinite(slope).all()
    assert_allclose(
        slope[1:],
        (skewed_lengths(40, 12.0 + 1e-6)[1:] - skewed_lengths(40, 12.0 - 1e-6)[1:]) / 2e-6,
        rtol=1e-6,
        atol=1e-8,
    )


@pytest.mark.parametrize(
    "function",
    [
        lambda table: jnp.exp(variable_length.length_log_probs(table)) @ jnp.arange(T + 1.0),
        variable_length.sequence_entropy,
        lambda table: variable_length.sequence_kl(table, jnp.log(POSITIVE[0])),
    ],
    ids=["mean length", "entropy", "kl"],
)
def test_gradients_are_finite_where_a_place_must_stop(function):
    table = np.array(table_of_lengths(np.log([0.3, 0.7, 0, 0]), np.log([0.4, 0.6])))
    gradient = jax.jit(jax.grad(function))(table)
    assert np.isfinite(gradient).all()


# Bad input


@pytest.mark.parametrize("mode", [0.9, 4.1])
def test_a_most_probable_length_out_of_range_is_refused(mode):
    with pytest.raises(InvalidInput, match=f"mode is {mode}; lengths go from 1 up to 4"):
        variable_length.skewed_lengths(4, mode)


@pytest.mark.parametrize("other", [OTHERS[0, :1], OTHERS[0, :2], OTHERS[0, :, :2] + 0.5])
def test_tables_of_different_places_or_symbols_are_refused(other):
    with pytest.raises(InvalidInput, match="places and symbols must match"):
        variable_length.sequence_kl(
            np.log(POSITIVE[0]), np.log(other / other.sum(axis=-1, keepdims=True))
        )


@pytest.mark.parametrize("content", [[np.nan, 0.0], [-np.inf, -np.inf], [np.inf, 0.0]])
def test_content_that_is_no_distribution_is_refused(content):
    with pytest.raises(InvalidInput, match="content_log_probs"):
        variable_length.table_of_lengths(np.log(LENGTH_LAWS[0]), np.array(content))
