"""The grid: which runs there are, in what order, and which axes are refused."""

import functools
import itertools
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest

from bandits.sweeps import choices, static, sweep
from bandits.sweeps.grid import make_grid
from theory.checks import InvalidInput


def run(method, size, rate, vector, seed=0):
    raise AssertionError("making a grid runs nothing")


def a_grid(**axes):
    rest = {"method": ["m"], "size": static([1]), "rate": [0.5], "vector": [1.0]}
    return make_grid(run, axes, {name: v for name, v in rest.items() if name not in axes})


def test_numeric_runs_are_the_product_with_the_last_axis_fastest():
    grid = a_grid(rate=[1.0, 2.0], method=["a", "b"], seed=range(3))
    points = grid.arguments(np.arange(grid.runs_per_program))
    pairs = list(zip(points["rate"].tolist(), points["seed"].tolist(), strict=True))
    assert pairs == list(itertools.product([1.0, 2.0], range(3)))
    assert grid.shape == (2, 2, 3)


def test_every_static_combination_is_one_program_at_its_place_in_the_grid():
    grid = a_grid(rate=[1.0, 2.0], method=["a", "b"], seed=range(3), size=static([5, 6]))
    programs = list(grid.programs())
    assert [arguments for arguments, _ in programs] == [
        {"method": m, "size": s} for m in ("a", "b") for s in (5, 6)
    ]
    whole = np.zeros(grid.shape, int)
    for number, (_, place) in enumerate(programs):
        at = tuple(slice(None) if index is None else index for index in place)
        assert whole[at].shape == (2, 3)
        whole[at] += number + 1
    assert (whole == np.array([[1, 2], [3, 4]])[None, :, None, :]).all()


def test_arrays_are_axes_along_their_leading_dimension():
    vectors = np.arange(6.0).reshape(3, 2)
    grid = a_grid(vector=vectors)
    (axis,) = grid.axes
    assert (axis.is_static, len(axis), axis.labels.tolist()) == (False, 3, [0, 1, 2])
    np.testing.assert_array_equal(grid.arguments(np.array([2]))["vector"], [[4, 5]])


def test_labels_are_values_of_numbers_and_names_of_functions():
    grid = a_grid(method=[jnp.sin, max, "text"], size=static([3, 4]), rate=[0.25, 0.5])
    labels = [axis.labels.tolist() for axis in grid.axes]
    assert labels == [["sin", "max", "text"], [3, 4], [0.25, 0.5]]
    assert [axis.is_static for axis in grid.axes] == [True, True, False]


EMPTY = [[], (), range(0), np.zeros((0, 3)), static([])]
NO_LIST = [3, 0.5, None, np.float64(2), static(4), np.array(2.0), "adam", jnp.float32(2)]
ALL_BUT_RATE = {"method": "m", "size": 1, "vector": 1.0}
ALL_BUT_VECTOR = {"method": ["a"], "size": static([1]), "rate": [1.0]}


@pytest.mark.parametrize(
    ("axes", "fixed", "message"),
    [
        *(({"rate": values}, ALL_BUT_RATE, "axis 'rate' is empty") for values in EMPTY),
        *(({"rate": values}, ALL_BUT_RATE, "axis 'rate' is .*give a list") for values in NO_LIST),
        ({"vectr": [1.0]}, {}, r"unknown axis 'vectr'; did you mean 'vector'\?"),
        ({"rate": [1.0]}, {"sed": 1}, r"unknown fixed argument 'sed'; did you mean 'seed'\?"),
        (ALL_BUT_VECTOR, {}, "nothing sets the argument 'vector'"),
        ({"rate": [1.0]}, {"rate": 1.0}, "'rate' is both an axis and fixed"),
        ({}, {}, "axes is empty"),
    ],
)
def test_axes_that_a_run_does_not_take_are_refused(axes, fixed, message):
    with pytest.raises(InvalidInput, match=message):
        make_grid(run, axes, fixed)


def test_a_run_of_any_keywords_takes_any_axis():
    assert make_grid(lambda **_: {}, {"whatever": [1, 2]}, {}).shape == (2,)


def power(x, by):
    return x**by


class Way(NamedTuple):
    """A function with the numbers that go with it."""

    apply: object
    rate: object


WAYS = {
    "square": Way(functools.partial(power, by=2), [1.0, 0.0]),
    "cube": Way(functools.partial(power, by=3), [0.0, 2.0]),
    "square again": Way(functools.partial(power, by=2), [3.0, 3.0]),
}


def test_choices_of_values_give_a_run_the_functions_and_numbers_of_its_name():
    def run(way, x):
        return {"y": way.apply(x) * jnp.array(way.rate)}

    results = sweep(run, {"way": choices(WAYS), "x": [2.0, 3.0]}, dims=["which"])["y"]
    assert results["way"].values.tolist() == list(WAYS)
    for name, way in WAYS.items():
        for x in (2.0, 3.0):
            np.testing.assert_allclose(
                results.sel(way=name, x=x), way.apply(x) * np.array(way.rate)
            )


def test_choices_of_names_give_a_run_the_number_of_its_name():
    results = sweep(lambda way: {"n": way}, {"way": choices("b", "a", "c")})
    assert results["n"].to_series().to_dict() == {"b": 0, "a": 1, "c": 2}


def test_one_function_bound_to_the_same_arguments_is_one_alternative():
    axis = choices(WAYS)
    np.testing.assert_array_equal(axis.values["0"], [0, 1, 0])


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "give at least one name"),
        ([{}], "give at least one name"),
        ([1, 2], "give at least one name"),
        (["a", "b", "a"], "choices name 'a' twice"),
        (
            [{"a": 1.0, "b": (1.0, 2.0)}],
            "choice 'b' is .* but 'a' is .*give values of one structure",
        ),
        ([{"a": 1.0, "b": max}], "give functions only, or numbers"),
        ([{"a": [1.0], "b": np.zeros(2)}], "give values of one structure"),
        ([{"a": np.zeros(1), "b": np.zeros(2)}], "arrays of one shape"),
        ([{"a": "x", "b": "y"}], "give functions only, or numbers"),
        ([{"a": 2**40, "b": 1}], "beyond 32 bits"),
    ],
)
def test_choices_that_do_not_match_are_refused(names, message):
    with pytest.raises(InvalidInput, match=message):
        make_grid(lambda way: {}, {"way": choices(*names)}, {})
