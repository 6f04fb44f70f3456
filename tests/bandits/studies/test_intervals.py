"""Intervals against SciPy's."""

import numpy as np
import pytest
import xarray as xr
from scipy import stats

from bandits.studies.intervals import (
    exact,
    mean_interval,
    proportion_interval,
    share_interval,
)
from theory.checks import InvalidInput


@pytest.mark.parametrize("count", [2, 3, 10, 64])
def test_the_interval_of_a_mean_is_students(count):
    samples = np.random.default_rng(count).normal(3, 2, count)
    expected = stats.ttest_1samp(samples, 0).confidence_interval(0.95)
    found = mean_interval(samples)
    assert found.effect == pytest.approx(samples.mean(), rel=1e-12)
    np.testing.assert_allclose([found.low, found.high], expected, rtol=1e-9)


def test_float32_samples_are_averaged_in_float64():
    samples = np.float32(16777216) + np.zeros(1001, np.float32)
    samples[0] += 2
    assert mean_interval(samples).effect == pytest.approx(16777216 + 2 / 1001, rel=1e-12)


@pytest.mark.parametrize(
    ("successes", "trials"), [(0, 1), (1, 1), (0, 64), (64, 64), (1, 64), (33, 64), (99_999, 10**5)]
)
def test_the_interval_of_a_proportion_is_the_exact_one(successes, trials):
    expected = stats.binomtest(successes, trials).proportion_ci(0.95, method="exact")
    found = proportion_interval(successes, trials)
    assert found.effect == successes / trials
    np.testing.assert_allclose([found.low, found.high], expected, rtol=1e-9, atol=1e-15)
    assert share_interval(np.arange(trials) < successes) == found


@pytest.mark.parametrize("samples", [[], [1.0]])
def test_the_mean_of_less_than_two_samples_is_unknown(samples):
    assert np.isnan(mean_interval(samples)).all()


@pytest.mark.parametrize("samples", [[1.0, np.nan, 2.0], [1.0, np.inf], [np.nan]])
def test_a_sample_that_is_not_finite_is_refused_and_not_averaged_in(samples):
    with pytest.raises(InvalidInput, match="needs finite samples"):
        mean_interval(samples)


@pytest.mark.parametrize(("successes", "trials"), [(0, 0), (-1, 3), (4, 3), (0, -1)])
def test_a_proportion_needs_a_trial_and_no_more_successes(successes, trials):
    with pytest.raises(InvalidInput, match=f"successes is {successes} of {trials} trials"):
        proportion_interval(successes, trials)


@pytest.mark.parametrize("value", [0.25, np.float32(0.25), np.array(0.25), xr.DataArray(0.25)])
def test_what_is_computed_without_chance_is_its_own_interval(value):
    assert exact(value) == (0.25, 0.25, 0.25)
    assert all(type(number) is float for number in exact(value))


def test_what_was_computed_need_not_be_finite():
    assert exact(np.inf) == (np.inf,) * 3
    assert np.isnan(exact(np.nan)).all()


def test_several_numbers_are_no_single_effect():
    with pytest.raises(TypeError):
        exact([0.25, 0.5])
