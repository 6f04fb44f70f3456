import functools

import jax
import numpy as np
import pytest
from scipy import stats

from bandits.kernels.search import MOST_BLOCKS
from bandits.policies.sampling import find_arms, inverse_cdf, sample_categorical, sample_counts
from bandits.problems.environments import power_law_reference, tanh_cauchy_reference
from theory.checks import InvalidInput

KEY = jax.random.key(20240414)
TOP = 2**32 - 1
EXP_ERROR = 2.0**-23
"""Total variation by which float32's exp may be off: two units in the last place."""

traced_inverse_cdf = jax.jit(inverse_cdf)
traced_search = jax.jit(find_arms)


def log(probs):
    with np.errstate(divide="ignore"):
        return np.log(np.asarray(probs, np.float64)).astype(np.float32)


def point_mass(num_arms, arm):
    return np.where(np.arange(num_arms) == arm, 0.0, -np.inf).astype(np.float32)


def skewed(num_arms, concentration, seed):
    return log(np.random.default_rng(seed).dirichlet(np.full(num_arms, concentration)))


def sparse(num_arms):
    """A hundred arms with mass among many without, first and last arm among the latter."""
    rng = np.random.default_rng(num_arms)
    probs = np.zeros(num_arms)
    probs[rng.choice(np.arange(1, num_arms - 1), 100, replace=False)] = rng.dirichlet(np.ones(100))
    return log(probs)


# Few numbers of arms, for each is compiled anew. Rounding leaves the sums a little off 1.
LAWS = {
    "published reference": np.asarray(tanh_cauchy_reference()),
    "Zipf": np.asarray(power_law_reference(1000, 1.5)),
    "skewed": skewed(100, 0.1, 0),
    "very skewed": skewed(7, 0.01, 1),
    "a rare first arm": log([1e-3, 0.999]),
    "a rare last arm": log([0.999, 1e-3]),
    "two equal arms": log([0.5, 0.5]),
    "uniform": log(np.full(100, 0.01)),
}
HOLES = {
    "leading": log([0, 0, 0, 0.1, 0.2, 0.3, 0.4]),
    "trailing": log([0.1, 0.2, 0.3, 0.4, 0, 0, 0]),
    "inside": log([0.1, 0, 0.2, 0, 0, 0.3, 0.4]),
    "everywhere": log([0, 0.1, 0, 0.2, 0, 0.7, 0]),
    "first of two": log([0, 1]),
    "last of two": log([1, 0]),
    "all but the first": point_mass(100, 0),
    "all but one inside": point_mass(100, 37),
    "all but the last": point_mass(100, 99),
    "among many": sparse(100_000),
    "sum below 1": log(np.array([0, 0.3, 0, 0.2, 0, 0.5, 0]) * (1 - 9e-6)),
    "sum above 1": log(np.array([0, 0.3, 0, 0.2, 0, 0.5, 0]) * (1 + 9e-6)),
}
ALL = {**LAWS, **HOLES}

# Shapes that many tests share, for the same reason.
DRAWS = 1000
ROWS = np.stack([skewed(7, 0.5, seed) for seed in range(4)])
SMALL = ROWS[0]


def laws(table):
    return pytest.mark.parametrize("name", table)


@functools.cache
def numbers_up_to(name):
    """How many of the 2^32 random numbers stand for the arms 0 … k: bisection for every k."""
    arms = np.arange(ALL[name].size)
    low, high = np.zeros(arms.size, np.int64), np.full(arms.size, 2**32)
    for _ in range(33):
        middle = np.minimum((low + high) // 2, TOP)
        above = np.asarray(inverse_cdf(ALL[name], middle.astype(np.uint32))) > arms
        low, high = np.where((low == high) | above, low, middle + 1), np.where(above, middle, high)
    assert (low == high).all()
    return low


def awkward_bits(name, size=10_000):
    """The ends of the range, the numbers around every edge, where halves carry, and random ones."""
    edges = np.unique(numbers_up_to(name))
    around = (edges[:, None] + np.arange(-2, 3)).ravel()
    carries = [2**i + j for i in (16, 24, 31) for j in (-1, 0)]
    # The largest float32 uniforms, of 23 and of 24 bits.
    uniforms = [2**32 - 2**i + j for i in (8, 9) for j in (-1, 0)]
    chosen = np.array([0, 1, TOP, *around, *carries, *uniforms])
    chosen = chosen[(chosen >= 0) & (chosen <= TOP)]
    rest = np.random.default_rng(0).integers(0, 2**32, size - chosen.size)
    return np.sort(np.append(chosen, rest)).astype(np.uint32)


def chi_square_p_value(observed, log_probs):
    """Arms expected less than five times are taken together."""
    expected = np.exp(np.float64(log_probs))
    expected *= observed.sum() / expected.sum()
    rare = expected < 5
    merged = [np.append(x[~rare], x[rare].sum()) for x in (observed, expected)]
    kept = merged[1] > 0
    return stats.chisquare(merged[0][kept], merged[1][kept]).pvalue


# The law


@laws(LAWS)
def test_draws_follow_the_law(name):
    drawn = np.asarray(sample_counts(KEY, ALL[name], 1_000_000))
    assert drawn.sum() == 1_000_000
    assert chi_square_p_value(drawn, ALL[name]) > 1e-3


def test_the_chi_square_test_sees_one_arm_that_is_off_by_five_percent():
    law = LAWS["published reference"]
    off = np.exp(law)
    off[0] *= 1.05
    drawn = np.asarray(sample_counts(KEY, log(off / off.sum()), 1_000_000))
    assert chi_square_p_value(drawn, law) < 1e-6


@laws(ALL)
def test_the_law_is_exact_to_the_stated_bound(name):
    edges = numbers_up_to(name)
    law = np.diff(edges, prepend=0) / 2**32
    probs = np.exp(np.float64(ALL[name]))
    distance = np.abs(law - probs / probs.sum()).sum() / 2
    assert edges[-1] == 2**32
    assert distance <= 1.5 * np.isfinite(ALL[name]).sum() * 2.0**-32 + EXP_ERROR


def test_tails_that_float32_uniforms_miss_have_their_mass():
    bits = np.append(np.arange(32), np.arange(2**32 - 32, 2**32)).astype(np.uint32)
    rare = 2.0**-28  # 16 of the 2^32 numbers
    first = np.asarray(inverse_cdf(log([rare, 1 - rare]), bits)) == 0
    last = np.asarray(inverse_cdf(log([1 - rare, rare]), bits)) == 1
    assert abs(first.sum() - 16) <= 1
    assert abs(last.sum() - 16) <= 1
    assert first[0]
    assert last[-1]


def test_successive_draws_and_rows_are_independent():
    law = log([0.1, 0.2, 0.3, 0.4])
    pair_law = (law[:, None] + law).ravel()
    drawn = np.asarray(sample_categorical(KEY, np.tile(law, (2, 1)), 200_000))
    for first, second in ((drawn[0, ::2], drawn[0, 1::2]), drawn):
        pairs = np.bincount(4 * first + second, minlength=16)
        assert chi_square_p_value(pairs, pair_law) > 1e-3


# No rounding can make it miss


@laws(HOLES)
def test_an_arm_without_mass_is_never_drawn(name):
    drawn = np.asarray(sample_counts(KEY, ALL[name], 1_000_000))
    assert drawn.sum() == 1_000_000
    assert drawn[ALL[name] == -np.inf].sum() == 0
    if np.count_nonzero(drawn) > 1:
        assert chi_square_p_value(drawn, ALL[name]) > 1e-3


@laws(ALL)
def test_no_random_number_misses(name):
    arms = np.asarray(inverse_cdf(ALL[name], awkward_bits(name)))
    assert arms.min() >= 0
    assert arms.max() < ALL[name].size
    assert np.isfinite(ALL[name][arms]).all()
    assert (np.diff(arms) >= 0).all()
    held = np.flatnonzero(np.exp(np.float64(ALL[name])) > 2.0**-31)
    assert {held.min(), held.max()} <= set(arms)


@pytest.mark.parametrize("scale", [1e-3, 0.5, 1.9])
def test_traced_sums_below_two_are_normalised(scale):
    scaled = SMALL + np.log(np.float32(scale))
    bits = np.linspace(0, TOP, DRAWS).astype(np.uint32)
    np.testing.assert_array_equal(traced_inverse_cdf(scaled, bits), inverse_cdf(SMALL, bits))


@pytest.mark.parametrize("value", [np.nan, -np.inf, np.inf, 100.0])
def test_traced_nonsense_stays_in_range(value):
    nonsense = np.where(np.arange(7) % 3 == 1, SMALL, np.float32(value))
    arms = traced_inverse_cdf(nonsense, np.linspace(0, TOP, DRAWS).astype(np.uint32))
    assert arms.min() >= 0
    assert arms.max() < 7


# Keys, shapes and types


def test_the_same_key_draws_the_same_arms_and_another_key_others():
    expected = sample_categorical(KEY, SMALL, DRAWS)
    again = sample_categorical(jax.random.key(20240414), SMALL, DRAWS)
    other = sample_categorical(jax.random.key(1), SMALL, DRAWS)
    assert expected.shape == (DRAWS,)
    np.testing.assert_array_equal(again, expected)
    assert (other != expected).mean() > 0.5


@pytest.mark.parametrize("function", [sample_categorical, sample_counts])
def test_vmap_over_keys_and_over_laws_is_a_loop(function):
    keys = jax.random.split(KEY, 3)
    looped = [[function(key, row, DRAWS) for row in ROWS] for key in keys]
    over_rows = jax.vmap(lambda key, row: function(key, row, DRAWS), (None, 0))
    np.testing.assert_array_equal(jax.jit(jax.vmap(over_rows, (0, None)))(keys, ROWS), looped)


def test_every_row_of_a_batch_is_drawn_from_its_own_law():
    rows = np.stack([point_mass(7, arm) for arm in (4, 0, 6, 2)]).reshape(2, 2, 7)
    drawn = np.asarray(sample_categorical(KEY, rows, DRAWS))
    expected = np.reshape([4, 0, 6, 2], (2, 2, 1))
    np.testing.assert_array_equal(drawn, np.broadcast_to(expected, (2, 2, DRAWS)))
    assert drawn.dtype == np.int32


@pytest.mark.parametrize(
    "num_arms", [2, 3, MOST_BLOCKS, MOST_BLOCKS + 1, 2 * MOST_BLOCKS + 1, 100, 257, 1000]
)
def test_a_search_finds_what_numpy_finds_also_among_arms_without_mass(num_arms):
    random = np.random.default_rng(num_arms)
    masses = random.integers(0, 3, (20, num_arms)) * random.integers(0, 2, (20, num_arms))
    masses[:, random.integers(num_arms)] += 1
    for edges in np.cumsum(masses, axis=1).astype(np.uint32):
        t = np.arange(edges[-1], dtype=np.uint32)[:500]
        found = traced_search(edges, np.resize(t, 500))
        np.testing.assert_array_equal(found, np.searchsorted(edges, np.resize(t, 500), "right"))


def test_a_policy_that_is_nan_draws_arms_in_range():
    log_probs = np.full(100, np.nan, np.float32)
    found = np.asarray(traced_inverse_cdf(log_probs, np.linspace(0, TOP, 99).astype(np.uint32)))
    assert np.isin(found, np.arange(100)).all()


def test_the_same_numbers_serve_many_laws():
    bits = np.linspace(0, TOP, DRAWS).astype(np.uint32)
    expected = [inverse_cdf(row, bits) for row in ROWS]
    np.testing.assert_array_equal(inverse_cdf(ROWS, bits), expected)


def test_counts_are_those_of_the_draws():
    rows = ROWS.reshape(2, 2, 7)
    drawn = np.asarray(sample_categorical(KEY, rows, DRAWS))
    expected = (drawn[..., None] == np.arange(7)).sum(axis=-2)
    np.testing.assert_array_equal(sample_counts(KEY, rows, DRAWS), expected)


def test_draws_do_not_depend_on_the_global_precision():
    expected = sample_categorical(KEY, SMALL, DRAWS)
    with jax.enable_x64(True):
        found = sample_categorical(KEY, SMALL, DRAWS)
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


def test_half_precision_does_not_overflow():
    half = ROWS.astype(np.float16)
    bits = np.linspace(0, TOP, DRAWS).astype(np.uint32)
    expected = traced_inverse_cdf(half.astype(np.float32), bits)
    np.testing.assert_array_equal(traced_inverse_cdf(half, bits), expected)


def test_a_gradient_passes_through_the_values_drawn_and_not_through_the_draw():
    gradient = jax.grad(lambda row: row[sample_categorical(KEY, row, DRAWS)].sum())(SMALL)
    np.testing.assert_array_equal(gradient, sample_counts(KEY, SMALL, DRAWS))


# Bad input


@pytest.mark.parametrize("function", [sample_categorical, sample_counts])
@pytest.mark.parametrize(
    ("log_probs", "num_samples", "message"),
    [
        (log([0.5, np.nan]), 5, r"log_probs.*nan.*must be a number"),
        (log([0.5, 0.6]), 5, "sums to 1.1"),
        (np.zeros(3), 5, "sums to 3"),
        (np.full(3, -np.inf), 5, "sums to 0"),
        (np.zeros(1), 5, "1 arms; at least 2"),
        (np.float32(0.0), 5, "at least 2"),
        (log([0.5, 0.5]), 0, "num_samples is 0; .* at least 1"),
        (log([0.5, 0.5]), -3, "num_samples is -3"),
        (log([0.5, 0.5]), 2.0, "num_samples is 2.0; it must be a whole number"),
    ],
)
def test_bad_input_is_refused(function, log_probs, num_samples, message):
    with pytest.raises(InvalidInput, match=message):
        function(KEY, log_probs, num_samples)


def test_signed_random_numbers_are_refused():
    with pytest.raises(InvalidInput, match="bits are int32; they must be uint32"):
        inverse_cdf(LAWS["uniform"], np.zeros(3, np.int32))
