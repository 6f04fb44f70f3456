import functools
import itertools

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special, stats

from bandits.problems.preferences import (
    SCHEMES,
    covered_mass,
    covering_fraction,
    label_pairs,
    preference_probabilities,
    shifted,
    tempered,
    truncated,
)
from theory.checks import InvalidInput

pytestmark = pytest.mark.usefixtures("float64")

KEY = jax.random.key(20240414)
REWARDS = np.array([0.2, 1.0, 0.5, 0.9])
PAIRS = list(itertools.combinations(range(4), 2))
MANY = 20_000
LAW = np.log([0.1, 0.2, 0.3, 0.4])
HOLED = np.append(LAW, -np.inf)

few_rewards = st.lists(st.sampled_from([-1.5, 0.0, 0.25, 1.0]), min_size=4, max_size=4)


@functools.partial(jax.jit, static_argnames=("scheme", "num_pairs"))
def label(key, rewards, scheme="all", num_pairs=1, temperature=0.0, noise=0.0, least_gap=0.0):
    return label_pairs(
        key,
        rewards,
        scheme,
        num_pairs=num_pairs,
        temperature=temperature,
        label_noise=noise,
        least_gap=least_gap,
    )


@functools.partial(jax.jit, static_argnames=("scheme", "num_pairs"))
def label_often(scheme="all", num_pairs=1, temperature=0.0, noise=0.0):
    keys = jax.random.split(KEY, MANY)
    one = functools.partial(label, scheme=scheme, num_pairs=num_pairs)
    return jax.vmap(lambda key: one(key, REWARDS, temperature=temperature, noise=noise))(keys)


# Probabilities


def test_probabilities_are_those_computed_by_hand():
    found = preference_probabilities(np.array([0.0, np.log(3.0)]), temperature=1.0)
    np.testing.assert_allclose(found, [[0.5, 0.25], [0.75, 0.5]], rtol=1e-14)
    found = preference_probabilities(np.array([0.0, 2 * np.log(3.0)]), 2.0, label_noise=0.2)
    np.testing.assert_allclose(found, [[0.5, 0.35], [0.65, 0.5]], rtol=1e-14)


def test_temperature_zero_is_deterministic_and_the_limit_of_low_ones():
    found = preference_probabilities(np.array([0.0, 1.0, 1.0]))
    expected = [[0.5, 0, 0], [1, 0.5, 0.5], [1, 0.5, 0.5]]
    np.testing.assert_array_equal(found, expected)
    low = preference_probabilities(np.array([0.0, 1.0, 1.0]), temperature=1e-300)
    np.testing.assert_array_equal(low, expected)


@given(few_rewards, st.sampled_from([0.0, 1e-3, 0.5, 1e3]), st.floats(0, 1))
def test_a_pair_goes_one_way_or_the_other(rewards, temperature, noise):
    found = np.asarray(preference_probabilities(np.array(rewards), temperature, noise))
    np.testing.assert_allclose(found + found.T, 1, rtol=1e-14)
    assert (found >= 0).all()
    assert (found <= 1).all()


def test_noise_of_one_half_tells_nothing_and_of_one_turns_every_label():
    clean = preference_probabilities(REWARDS, 0.3)
    np.testing.assert_allclose(preference_probabilities(REWARDS, 0.3, 0.5), 0.5, rtol=1e-14)
    np.testing.assert_allclose(preference_probabilities(REWARDS, 0.3, 1.0), clean.T, rtol=1e-13)


# Labels


def test_all_pairs_share_the_weight_and_the_better_response_wins():
    expected = (REWARDS[:, None] > REWARDS) / 6
    np.testing.assert_allclose(label(KEY, REWARDS), expected, rtol=1e-15)


def test_best_against_worst_is_one_pair():
    expected = np.zeros((4, 4))
    expected[1, 0] = 1
    np.testing.assert_array_equal(label(KEY, REWARDS, "best_worst"), expected)
    np.testing.assert_array_equal(label(KEY, -REWARDS, "best_worst"), expected.T)


@pytest.mark.parametrize("num_pairs", [1, 2, 6])
def test_random_pairs_are_as_many_as_asked_for_and_each_as_likely(num_pairs):
    labelled = np.asarray(label_often("random", num_pairs)) > 0
    np.testing.assert_array_equal(labelled.sum((1, 2)), num_pairs)
    assert not (labelled & (REWARDS[:, None] <= REWARDS)).any()
    counts = np.array([labelled[:, i, j] | labelled[:, j, i] for i, j in PAIRS]).sum(axis=1)
    share = num_pairs / 6
    assert np.abs(counts - MANY * share).max() <= 4 * np.sqrt(MANY * share * (1 - share))


@pytest.mark.parametrize(("temperature", "noise"), [(0.5, 0.0), (0.0, 0.1), (1.0, 0.2)])
def test_labels_come_as_often_as_their_probability_and_independently(temperature, noise):
    wins = np.asarray(label_often(temperature=temperature, noise=noise)) > 0
    probs = preference_probabilities(REWARDS, temperature, noise)
    outcome = sum(wins[:, i, j] * 2**n for n, (i, j) in enumerate(PAIRS))
    expected = [
        np.prod([probs[i, j] if k >> n & 1 else probs[j, i] for n, (i, j) in enumerate(PAIRS)])
        for k in range(64)
    ]
    observed, expected = np.bincount(outcome, minlength=64), MANY * np.array(expected)
    rare = expected < 5
    merged = [np.append(x[~rare], x[rare].sum() + 1e-9) for x in (observed, expected)]
    assert stats.chisquare(*merged).pvalue > 1e-3


@pytest.mark.parametrize(("least_gap", "kept"), [(0.0, 6), (0.3, 5), (0.5, 3), (0.75, 1), (2, 0)])
def test_pairs_closer_than_the_gap_are_left_out(least_gap, kept):
    found = np.asarray(label(KEY, REWARDS, least_gap=least_gap))
    gaps = REWARDS[:, None] - REWARDS
    assert np.count_nonzero(found) == kept
    np.testing.assert_array_equal(found > 0, (gaps > 0) & (gaps >= least_gap))


@given(
    few_rewards,
    st.sampled_from(SCHEMES),
    st.sampled_from([0.0, 0.5]),
    st.sampled_from([0.0, 0.3]),
    st.sampled_from([0.0, 1.0]),
    st.integers(0, 100),
)
def test_weights_are_a_distribution_over_pairs_with_a_gap_or_nothing(
    rewards, scheme, temperature, noise, least_gap, seed
):
    key, rewards = jax.random.key(seed), np.array(rewards)
    found = np.asarray(label(key, rewards, scheme, 3, temperature, noise, least_gap))
    assert (found >= 0).all()
    assert np.isclose(found.sum(), 1, rtol=1e-14) or not found.any()
    assert not np.diag(found).any()
    assert not ((found > 0) & (found.T > 0)).any()
    assert not found[rewards[:, None] == rewards].any()
    if scheme == "all":
        gaps = np.abs(rewards[:, None] - rewards)
        assert found.any() == ((gaps > 0) & (gaps >= least_gap)).any()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_nothing_is_labelled_where_all_rewards_are_equal(scheme):
    assert not label(KEY, np.ones(4), scheme, 3, 1.0, 0.5).any()


def test_traced_parameters_sweep_as_a_loop_does():
    keys, grid = jax.random.split(KEY, 3), np.array([0.0, 0.3, 0.6])
    swept = jax.vmap(lambda key, x: label(key, REWARDS, temperature=x, noise=x / 2, least_gap=x))(
        keys, grid
    )
    looped = [
        label(key, REWARDS, temperature=x, noise=x / 2, least_gap=x)
        for key, x in zip(keys, grid, strict=True)
    ]
    np.testing.assert_allclose(swept, looped, rtol=1e-15)


@pytest.mark.parametrize(
    ("rewards", "options", "message"),
    [
        ([1.0], {}, "holds 1 response; a pair needs at least 2"),
        (REWARDS, {"scheme": "best"}, "unknown scheme 'best'.*best_worst"),
        (REWARDS, {"scheme": "random", "num_pairs": 0}, "num_pairs is 0; 4 responses make 1 to 6"),
        (REWARDS, {"scheme": "random", "num_pairs": 7}, "num_pairs is 7"),
    ],
)
def test_bad_labelling_is_refused(rewards, options, message):
    with pytest.raises(InvalidInput, match=message):
        label_pairs(KEY, np.array(rewards), **options)


# Coverage (C2)

COVERAGES = {
    "tempered": lambda law, x: tempered(law, 0.1 + 3 * x),
    "truncated": lambda law, x: truncated(law, np.floor(3.5 * x)),
    "shifted": lambda law, x: shifted(law, np.int64(np.floor(3.5 * x))),
    "covering_fraction": lambda law, x: covering_fraction(KEY, law, 0.01 + 0.99 * x),
}


@pytest.mark.parametrize("name", COVERAGES)
@given(weights=st.lists(st.floats(1e-3, 1), min_size=4, max_size=4), x=st.floats(0, 1))
def test_every_coverage_is_a_distribution(name, weights, x):
    law = np.append(np.log(weights / np.sum(weights)), -np.inf)
    found = np.exp(COVERAGES[name](law, x))
    np.testing.assert_allclose(found.sum(), 1, rtol=1e-12)
    if name != "shifted":
        assert found[-1] == 0


@pytest.mark.parametrize(
    ("found", "weights"),
    [
        (tempered(LAW, 1.0), [0.1, 0.2, 0.3, 0.4]),
        (tempered(HOLED, 0.5), [1, 4, 9, 16, 0]),
        (tempered(LAW, 2.0), np.sqrt([1, 2, 3, 4])),
        (tempered(LAW, 1e9), [1, 1, 1, 1]),
        (truncated(LAW), [1, 2, 3, 4]),
        (truncated(LAW, 2), [0, 0, 3, 4]),
        (truncated(LAW, 1, 2), [0, 2, 3, 0]),
        (truncated(LAW, last=0), [1, 0, 0, 0]),
        (truncated(HOLED, 3, 4), [0, 0, 0, 4, 0]),
        (shifted(LAW, 0), [1, 2, 3, 4]),
        (shifted(LAW, 1), [0, 1, 2, 3]),
        (shifted(LAW, -1), [2, 3, 4, 0]),
        (shifted(HOLED, 1), [0, 1, 2, 3, 4]),
        (shifted(LAW, -3), [4, 0, 0, 0]),
    ],
)
def test_coverage_by_hand(found, weights):
    expected = np.array(weights) / np.sum(weights)
    np.testing.assert_allclose(np.exp(found), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("fraction", "arms"), [(1e-2, 1), (0.25, 1), (0.26, 2), (0.5, 2), (0.75, 3), (1.0, 4)]
)
def test_a_fraction_of_the_arms_with_mass_is_kept_in_proportion(fraction, arms):
    found = np.exp(covering_fraction(KEY, HOLED, fraction))
    kept = found > 0
    assert kept.sum() == arms
    assert not kept[-1]
    ratios = found[kept] / np.exp(HOLED[kept])
    np.testing.assert_allclose(ratios, ratios[0], rtol=1e-12)


@pytest.mark.parametrize("fraction", np.arange(1, 11) / 10)
def test_tenths_of_ten_arms_are_counted_exactly(fraction):
    uniform = np.full(10, -np.log(10), np.float32)
    assert np.isfinite(covering_fraction(KEY, uniform, fraction)).sum() == round(10 * fraction)


@pytest.mark.parametrize("fraction", [1e-5, 1e-9])
def test_the_smallest_fraction_keeps_one_arm(fraction):
    found = np.exp(covering_fraction(KEY, LAW, fraction))
    np.testing.assert_array_equal(np.sort(found), [0, 0, 0, 1])


def test_each_arm_is_as_likely_to_be_covered():
    keys = jax.random.split(KEY, MANY)
    covered = jax.jit(jax.vmap(lambda key: covering_fraction(key, HOLED, 0.5)))(keys) > -np.inf
    deviation = np.asarray(covered.sum(axis=0)) - MANY / 2
    assert np.abs(deviation[:4]).max() <= 4 * np.sqrt(MANY / 4)


@pytest.mark.parametrize(
    ("cover", "value", "message"),
    [
        (truncated, 4, "keeping arms 4 to 3 leaves no data"),
        (lambda law, last: truncated(law, 3, last), 2, "keeping arms 3 to 2 leaves no data"),
        (lambda law, arm: truncated(np.append(law, -np.inf), arm), 4, "leaves no data"),
        (shifted, 4, "a shift by 4 arms leaves no data"),
        (shifted, -4, "leaves no data"),
    ],
)
def test_coverage_that_leaves_no_data_or_makes_no_sense_is_refused(cover, value, message):
    with pytest.raises(InvalidInput, match=message):
        cover(LAW, value)


@pytest.mark.parametrize(
    ("cover", "values"),
    [
        (tempered, [0.5, 1.0, 2.0]),
        (truncated, [0, 1, 3]),
        (lambda law, last: truncated(law, 0, last), [0, 1, 3]),
        (shifted, [-2, 0, 1]),
        (functools.partial(covering_fraction, KEY), [0.2, 0.5, 1.0]),
    ],
)
def test_traced_coverage_sweeps_as_a_loop_does(cover, values):
    swept = jax.jit(jax.vmap(cover, (None, 0)))(LAW, np.array(values))
    np.testing.assert_allclose(swept, [cover(LAW, v) for v in values], rtol=1e-13, atol=1e-14)


def test_covered_mass_is_the_reference_where_the_data_can_be():
    assert covered_mass(LAW, truncated(LAW, 2)) == pytest.approx(0.7, rel=1e-14)
    rows = np.stack([LAW, shifted(LAW, -1), truncated(LAW, 0, 0)])
    np.testing.assert_allclose(covered_mass(LAW, rows), [1, 0.6, 0.1], rtol=1e-14)
    np.testing.assert_allclose(special.logsumexp(rows, axis=1), 0, atol=1e-14)
