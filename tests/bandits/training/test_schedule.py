"""The numbers of Algorithm 1: which fit together, and what a program may leave open."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bandits.training import Schedule
from theory.checks import InvalidInput

SCHEDULE = Schedule(steps=10, group=2, minibatch=4, batch=8, passes=2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"group": 16, "minibatch": 16}, "batch is 8; a group alone has 16 responses"),
        ({"group": 3}, "minibatch is 4; it must be a multiple of group, 3"),
        ({"batch": 6}, "batch is 6; it must be a multiple of minibatch, 4"),
        ({"passes": 0}, "passes is 0; .* at least 1"),
        ({"passes": 1.5}, "passes is 1.5; it must be a whole number"),
        ({"passes": -2}, "passes is -2"),
        ({"batch": 8.0}, "batch is 8.0; it must be a whole number"),
        ({"batch": 0}, "batch is 0"),
        ({"steps": 0}, "steps is 0"),
        ({"steps": 2.5}, "steps is 2.5"),
        ({"group": 0}, "group is 0"),
        ({"minibatch": 0}, "minibatch is 0"),
        ({"most_batch": 4}, "batch is 8; most_batch allows 4"),
        ({"most_batch": 10}, "most_batch is 10; it must be a multiple of minibatch"),
        ({"most_batch": 8.0}, "most_batch is 8.0; it must be a whole number"),
        ({"batch": np.array([4, 6])}, "batch is 6"),
    ],
)
def test_numbers_that_do_not_fit_together_are_refused(changes, message):
    with pytest.raises(InvalidInput, match=message):
        dataclasses.replace(SCHEDULE, **changes).check()


def test_a_schedule_is_a_tree_of_its_traceable_numbers():
    assert jax.tree.leaves(SCHEDULE) == [8, 2]
    assert SCHEDULE.slots == 2
    assert dataclasses.replace(SCHEDULE, most_batch=16).slots == 4


@pytest.mark.parametrize(
    ("batch", "passes", "once"),
    [
        (4, 1, True),
        (np.int32(4), np.int64(1), True),
        (jnp.array(4), jnp.array(1), True),
        (np.array([4, 4]), np.array([1, 1]), True),
        (4, 2, False),
        (8, 1, False),
        (np.array([4, 8]), 1, False),
        (4, np.array([1, 2]), False),
    ],
)
def test_minibatches_are_used_once_where_each_is_a_batch_and_there_is_one_pass(batch, passes, once):
    assert Schedule(10, 2, 4, batch, passes).uses_once() is once
    assert Schedule(10, 2, 4, batch, passes, most_batch=12).uses_once() is once


@pytest.mark.parametrize("traced", ["batch", "passes"])
def test_what_is_traced_may_be_used_more_than_once(traced):
    seen = []

    @jax.jit
    def run(number):
        changes = {"batch": 4, "passes": 1, traced: number}
        seen.append(dataclasses.replace(SCHEDULE, most_batch=8, **changes).uses_once())

    run(4 if traced == "batch" else 1)
    assert seen == [False]


@jax.jit
def fit_when_traced(batch, passes):
    schedule = dataclasses.replace(SCHEDULE, batch=batch, passes=passes, most_batch=16)
    schedule.check()  # what is traced passes
    return schedule.fits()


@given(st.integers(-4, 24), st.integers(-1, 3))
def test_traced_numbers_fit_where_known_ones_are_accepted(batch, passes):
    schedule = dataclasses.replace(SCHEDULE, batch=batch, passes=passes, most_batch=16)
    try:
        schedule.check()
    except InvalidInput:
        accepted = False
    else:
        accepted = True
    assert fit_when_traced(batch, passes) == accepted
    assert accepted == (batch in (4, 8, 12, 16) and passes >= 1)


@pytest.mark.parametrize("passes", [1, 7])
def test_the_whole_space_is_one_group_one_minibatch_and_one_batch(passes):
    schedule = Schedule.whole_space(30, 5, passes)
    schedule.check()
    assert schedule == Schedule(steps=30, group=5, minibatch=5, batch=5, passes=passes, exact=True)
    assert schedule.slots == 1


def test_the_whole_space_is_collected_anew_at_every_step_unless_told_otherwise():
    assert Schedule.whole_space(30, 5).passes == 1


def test_passes_over_the_whole_space_may_be_traced():
    def fits(passes):
        schedule = Schedule.whole_space(30, 5, passes)
        schedule.check()
        return schedule.fits()

    np.testing.assert_array_equal(jax.jit(jax.vmap(fits))(np.array([0, 1, 7])), [False, True, True])


def test_a_space_of_no_responses_is_refused():
    with pytest.raises(InvalidInput, match="group is 0"):
        Schedule.whole_space(30, 0).check()
