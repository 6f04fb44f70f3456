"""Runs that are no results: NaN, an end worse than the start, a cycle."""

import numpy as np
import pytest

from bandits.simulation.verdict import judge, last_steps

STEPS = np.array([0, 10, *last_steps(100)])
SETTLED = np.tile([0.7, 0.3], (len(STEPS), 1))


def verdict(objective, probs=SETTLED, diverged_at=-1, sampled=False, scale=1.0):
    objective = np.asarray(np.broadcast_to(objective, len(STEPS)), float)
    return judge(
        objective, np.asarray(probs), STEPS, diverged_at=diverged_at, sampled=sampled, scale=scale
    )


def test_a_run_that_settles_below_its_start_is_a_result():
    assert verdict(np.linspace(0.693, 0.5, len(STEPS))) is None
    assert verdict(0.693) is None  # a tiny step size moves nothing, and that is no fault


def test_an_end_above_the_start_is_worse():
    found = verdict(np.linspace(0.693, 4.0, len(STEPS)))
    assert found.sentence == "ended worse than it began, from 0.693 to 4"
    assert found.curable


@pytest.mark.parametrize(("end", "worse"), [(0.01, False), (0.03, True)])
def test_the_noise_of_samples_is_no_divergence(end, worse):
    objective = np.array([0.0, *np.full(len(STEPS) - 1, end)])
    assert (verdict(objective, sampled=True) is not None) == worse
    assert verdict(objective) is not None


def test_a_cycle_is_seen_where_the_objective_is_the_same_in_both_phases():
    swinging = np.where(STEPS[:, None] % 2, [0.9, 0.1], [0.1, 0.9])
    assert "does not settle" in verdict(0.693, swinging).sentence
    assert verdict(0.693, swinging, sampled=True) is None


@pytest.mark.parametrize("last", [[2.4, 1.4, 1.0, 0.7, 0.44], [0.4, 0.6, 0.4, 0.6, 0.42]])
def test_a_cycle_that_ends_low_is_seen_by_what_came_before(last):
    objective = np.full(len(STEPS), 0.44)
    objective[0], objective[-5:] = 0.693, last
    assert "does not settle: what it lowers" in verdict(objective).sentence


def test_of_samples_the_mean_of_the_last_steps_counts():
    objective = np.full(len(STEPS), 0.5)
    objective[0], objective[-1] = 0.693, 0.9
    assert verdict(objective, sampled=True) is None
    objective[-9:] = 0.9
    assert "worse" in verdict(objective, sampled=True).sentence


def test_a_policy_that_still_moves_one_way_is_on_its_way():
    place = np.linspace(0.1, 0.9, len(STEPS))
    moving = np.stack([place, 1 - place], axis=1)
    assert verdict(np.linspace(1.0, 0.5, len(STEPS)), moving) is None


def test_nan_says_when_and_at_the_start_no_step_size_can_cure_it():
    broken = SETTLED.copy()
    broken[1:] = np.nan
    assert verdict(0.5, broken, diverged_at=7).sentence == "became NaN after 7 steps"
    assert verdict(0.5, broken).sentence == "became NaN after 10 steps"
    assert not verdict(0.5, np.full_like(SETTLED, np.nan), diverged_at=0).curable
