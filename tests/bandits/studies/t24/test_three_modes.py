"""The problem of the numerical example: a target of three modes, and starts far from it."""

import jax
import numpy as np
import pytest

from bandits.studies.t24.three_modes import ThreeModes


def gaussian(arms, centre, width):
    weights = np.exp(-0.5 * ((np.arange(arms) - centre) / width) ** 2)
    return weights / weights.sum()


def test_the_target_is_the_equal_mixture_of_its_modes():
    problem = ThreeModes(num_arms=40, modes=(5.0, 20.0, 33.0), mode_width=2.0)
    expected = np.mean([gaussian(40, mode, 2.0) for mode in problem.modes], axis=0)
    target = np.exp(jax.jit(problem.target_log_probs)())
    np.testing.assert_allclose(target, expected, rtol=1e-4, atol=1e-8)
    peaks = (target[1:-1] > target[:-2]) & (target[1:-1] > target[2:])
    assert (1 + np.flatnonzero(peaks)).tolist() == [5, 20, 33]


def test_a_start_is_a_gaussian_mixed_with_the_uniform_distribution():
    start = (5.0, 12.0, 0.01)
    expected = 0.99 * gaussian(100, 5.0, 12.0) + 0.01 / 100
    found = np.exp(jax.jit(ThreeModes().start_log_probs)(np.array(start)))
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert found.sum() == pytest.approx(1, abs=1e-5)


def test_a_tiny_floor_is_the_least_probability_of_a_start():
    problem = ThreeModes()
    log_probs = jax.jit(problem.start_log_probs)(np.array([0.0, 8.0, 1e-6]))
    assert float(log_probs.min()) == pytest.approx(np.log(1e-8), abs=1e-3)


def test_random_starts_lie_in_their_ranges_and_fill_them():
    problem = ThreeModes(centre_range=(1, 3), width_range=(8, 9), floor_range=(1e-4, 1e-2))
    starts = problem.random_starts(2000)
    assert starts.shape == (2000, 3)
    low, high = np.array([problem.centre_range, problem.width_range, problem.floor_range]).T
    assert (starts >= low).all()
    assert (starts <= high).all()
    # Uniform, the floor on a log scale.
    middle = np.array([2, 8.5, 1e-3])
    np.testing.assert_allclose((starts < middle).mean(axis=0), 0.5, atol=0.05)


def test_the_seed_decides_the_starts_and_their_number_does_not():
    np.testing.assert_array_equal(ThreeModes().random_starts(4), ThreeModes().random_starts(9)[:4])
    assert (ThreeModes(seed=1).random_starts(4) != ThreeModes().random_starts(4)).all()
