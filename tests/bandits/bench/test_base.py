import contextlib
import dataclasses
import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bandits.bench import base, scaling, updates
from bandits.bench.base import Measurement, Row, interleaved, prepare
from bandits.bench.peers import Sizes
from bandits.sweeps.programs import lanes
from theory.checks import InvalidInput

SECONDS = {"ours": [2.0, 4.0, 1.0, 3.0], "floor": [1.0, 2.0, 1.0, 1.0]}


@pytest.mark.parametrize(
    ("value", "target", "holds"),
    [
        (1.5, "<= 1.5", True),
        (1.6, "<= 1.5", False),
        (50.0, ">= 50", True),
        (49.0, ">= 50", False),
        (None, ">= 3", None),
        (1.0, "", None),
    ],
)
def test_a_value_is_held_to_its_target_where_there_are_both(value, target, holds):
    row = dataclasses.asdict(Measurement("speed", value, "×", target))
    assert {"name", "value", "unit", "target", "holds", "low", "high", "note"} == set(row)
    assert row["holds"] is holds


def test_an_unreadable_target_is_refused():
    with pytest.raises(InvalidInput, match="comparison in target"):
        Measurement("speed", 1.0, "×", "about 3")


def test_a_ratio_is_the_median_over_the_rounds_with_its_quartiles():
    measured = Row("update", "ours", "floor", target="<= 1.5").summarise(SECONDS)
    # Round by round 2, 2, 1 and 3; the ratio of the medians would be 2.5.
    assert (measured.low, measured.value, measured.high) == (1.75, 2.0, 2.25)
    assert measured.unit == "×"
    assert measured.holds is False


def test_a_time_is_in_the_unit_of_its_work():
    measured = Row("update", "floor", unit="ns a sample", work=1e6).summarise(SECONDS)
    assert measured.value == pytest.approx(1e3)


def test_every_round_runs_each_workload_once_in_an_order_of_its_own(monkeypatch):
    monkeypatch.setattr(base, "REST", 0.0)
    calls = []
    workloads = {name: functools.partial(calls.append, name) for name in "abc"}
    seconds = interleaved(workloads, repeats=8)
    rounds = ["".join(calls[i : i + 3]) for i in range(0, len(calls), 3)]
    assert len(rounds) == 1 + 8  # one before, that compiles
    assert {"".join(sorted(order)) for order in rounds} == {"abc"}
    assert len(set(rounds[1:])) > 2
    assert {name: len(times) for name, times in seconds.items()} == dict.fromkeys("abc", 8)


@pytest.mark.parametrize("repeats", [0, 1.5])
def test_repeats_are_whole_and_positive(repeats):
    with pytest.raises(InvalidInput, match="repeats"):
        interleaved({"a": lambda: None}, repeats)


def test_a_workload_runs_its_function_on_its_arguments():
    x = jnp.arange(4.0 * len(lanes()))
    run = prepare(lambda x, shift: x + shift, x, jnp.float32(1.0))
    np.testing.assert_array_equal(run(), x + 1.0)


def test_a_floor_is_compiled_in_the_vectors_of_jax(monkeypatch):
    asked = []
    monkeypatch.setattr(base, "compiler_options", lambda _, **options: asked.append(options))
    for as_jax_does in (False, True):
        prepare(lambda x, _: x, jnp.zeros(len(lanes())), as_jax_does=as_jax_does)
    assert asked == [{"in_wide_vectors": True}, {"in_wide_vectors": False}]


@pytest.mark.parametrize("in_lanes", [1, 2, 3])
def test_blocks_are_the_same_in_any_number_of_lanes(in_lanes):
    shapes, x = [], jnp.arange(12.0)

    def f(x, _):
        shapes.append(x.shape)
        return 2 * x

    run = prepare(f, x, devices=jax.local_devices()[:1] * in_lanes, blocks=6)
    np.testing.assert_array_equal(run(), 2 * x)
    assert set(shapes) == {(2,)}


def test_runs_that_fill_no_whole_number_of_blocks_are_refused():
    with pytest.raises(InvalidInput, match="the leading axis is 5"):
        prepare(lambda x, _: x, jnp.zeros(5), blocks=2)


@pytest.mark.parametrize(
    ("cores", "counts"), [(1, [1]), (2, [1, 2]), (12, [1, 2, 4, 12]), (63, [1, 63])]
)
def test_lanes_are_counted_in_numbers_that_share_the_blocks_evenly(cores, counts):
    assert scaling._counts(cores) == counts


def test_two_lanes_share_the_blocks_and_are_compared_with_one(monkeypatch):
    two = jax.local_devices()[:1] * 2
    for module in (base, scaling, updates):
        monkeypatch.setattr(module, "lanes", lambda: two)
    sizes = Sizes(runs=4, num_arms=10, steps=5)
    alone = updates.descent("reverse_kl", sizes, two[:1], blocks=2)()
    np.testing.assert_array_equal(updates.descent("reverse_kl", sizes)(), alone)
    *_, speed_up = scaling.against_lanes(1, sizes)
    assert speed_up.target == ">= 1.8"
    assert speed_up.holds is not None


def test_workers_are_compared_with_one_and_with_none(monkeypatch):
    monkeypatch.setattr(scaling, "connect", lambda workers: contextlib.nullcontext())
    speed_up, added = scaling.against_workers(2, runs=100, steps=5)
    assert (speed_up.target, added.target) == (">= 1.8", "<= 1.02")
    assert speed_up.value > 0
    assert added.value > 0


def test_without_dask_workers_are_not_measured_and_that_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    for row in scaling.against_workers(1):
        assert row.value is None
        assert "pip install 'modeseek[cluster]'" in row.note
