"""Numbers, axes, names and tables: what is read, and what is refused in one sentence."""

import datetime

import numpy as np
import pytest

from bandits.search.entries import (
    FINITE,
    NONNEGATIVE,
    POSITIVE,
    read_axis,
    read_choice,
    read_names,
    read_number,
    read_table,
    show,
    whole,
)
from theory.checks import InvalidInput

COUNT = whole(1, 100)
HUGE = 16**9999  # more digits than Python prints
NAMES = ["adam", "sgd"]


def test_a_number_is_of_its_kind():
    assert repr(read_number("k", 3, POSITIVE)) == "3.0"
    assert repr(read_number("k", 3, COUNT)) == "3"
    assert read_number("k", 0, NONNEGATIVE) == 0.0


@pytest.mark.parametrize(
    ("value", "kind", "allowed"),
    [
        (True, COUNT, "a whole number from 1 to 100"),
        (2.0, COUNT, "a whole number"),
        (101, COUNT, "a whole number"),
        (0, COUNT, "a whole number"),
        ("1", POSITIVE, "a finite number > 0"),
        (0.0, POSITIVE, "a finite number > 0"),
        (1e-45, POSITIVE, "a finite number > 0"),
        (-1e-9, NONNEGATIVE, "a finite number >= 0"),
        (float("nan"), FINITE, "a finite number"),
        (float("-inf"), FINITE, "a finite number"),
        (1e39, FINITE, "a finite number"),
        (16**3000, FINITE, "a finite number"),
        (datetime.date(2024, 4, 14), FINITE, "a finite number"),
        (None, FINITE, "a finite number"),
    ],
)
def test_what_is_no_such_number_is_refused(value, kind, allowed):
    with pytest.raises(InvalidInput, match=rf"^a\.key is .*; it must be {allowed}"):
        read_number("a.key", value, kind)


@pytest.mark.parametrize(
    ("value", "kind", "values"),
    [
        (0.1, POSITIVE, 0.1),
        ([0.1], POSITIVE, (0.1,)),
        ([3, 1], POSITIVE, (3.0, 1.0)),
        ({"linear": [0, 1, 5]}, FINITE, (0, 0.25, 0.5, 0.75, 1)),
        ({"linear": [1, 0, 2]}, FINITE, (1, 0)),
        ({"log": [1e-3, 0.1, 9]}, POSITIVE, tuple(10 ** np.linspace(-3, -1, 9))),
        ({"log": [0.1, 0.001, 3]}, NONNEGATIVE, (0.1, 0.01, 0.001)),
        ({"log": [1, 100, 7]}, COUNT, (1, 2, 5, 10, 22, 46, 100)),
        ({"log": [1, 3, 50]}, COUNT, (1, 2, 3)),
        ({"linear": [10, 1, 4]}, COUNT, (10, 7, 4, 1)),
    ],
)
def test_an_axis_is_a_tuple_and_a_number_is_none(value, kind, values):
    found = read_axis("k", value, kind)
    assert found == pytest.approx(values, rel=1e-11)
    assert isinstance(found, tuple) == isinstance(values, tuple)


def test_spaced_values_are_short_and_the_same_on_every_machine():
    assert read_axis("k", {"log": [1e-3, 1e-1, 5]}, POSITIVE) == (
        0.001, 0.00316227766017, 0.01, 0.0316227766017, 0.1,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ([], r"k has 0 values; give from 1 to 10000000"),
        ([0.1, "x"], r"k\[1\] is 'x'; it must be a finite number > 0"),
        ([0.1, [0.2]], r"k\[1\] is \[0\.2\]; it must be"),
        ([0.1, 0.2, 0.1], r"k holds 0\.1\d* more than once, as a number of 32 bits"),
        ([1.0, 1.00000001], "k holds 1 more than once, as a number of 32 bits"),
        ({}, "k is {}; it must be a number, a list"),
        ({"lob": [1, 2, 3]}, "it must be a number, a list, {log"),
        ({"log": [1, 2, 3], "linear": [1, 2, 3]}, "it must be a number, a list"),
        ({"log": [1, 2]}, "it must be a number, a list"),
        ({"log": 3}, "it must be a number, a list"),
        ({"log": [0, 2, 3]}, r"k\.log\[0\] is 0; it must be a finite number > 0"),
        ({"linear": [1, 2, 1]}, r"k\.linear\[2\] is 1; it must be a whole number from 2"),
        ({"linear": [1, 2, 10**7 + 1]}, r"k\.linear\[2\] is 10000001"),
        ({"linear": [1, 1, 3]}, "k holds 1 more than once"),
    ],
)
def test_what_is_no_axis_is_refused(value, says):
    with pytest.raises(InvalidInput, match=says):
        read_axis("k", value, POSITIVE)


def test_whole_axes_are_never_spaced_from_zero_by_logarithms():
    with pytest.raises(InvalidInput, match=r"k\.log\[0\] is 0; it must be a whole number from 1"):
        read_axis("k", {"log": [0, 10, 3]}, whole(0, 100))


def test_names_are_one_or_several_and_keep_their_order():
    assert read_names("k", "sgd", "optimizer", NAMES) == "sgd"
    assert read_names("k", ["sgd", "adam"], "optimizer", NAMES) == ("sgd", "adam")


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("adm", "k: unknown optimizer 'adm'; did you mean 'adam'"),
        ([], "k is empty; give at least one optimizer"),
        (["sgd", "sgd"], "k holds 'sgd' more than once"),
        (["sgd", 3], "it must be a name, or a list of names"),
        (3, "k is 3; it must be a name"),
    ],
)
def test_what_is_no_name_is_refused(value, says):
    with pytest.raises(InvalidInput, match=says):
        read_names("k", value, "optimizer", NAMES)


def test_a_choice_is_one_of_few():
    assert read_choice("k", "sgd", NAMES) == "sgd"
    with pytest.raises(InvalidInput, match=r"k is \['sgd'\]; it must be 'adam' or 'sgd'"):
        read_choice("k", ["sgd"], NAMES)


def test_a_table_has_its_keys():
    assert read_table("t", {"a": 1, "b": 2}, ["a"], ["b"]) == {"a": 1, "b": 2}
    assert read_table("t", {"a": 1, "any": 2}, ["a"]) == {"a": 1, "any": 2}
    with pytest.raises(InvalidInput, match="t: unknown key 'widht'; did you mean 'width'"):
        read_table("t", {"widht": 1}, [], ["width"])
    with pytest.raises(InvalidInput, match="t has no 'a'; add it"):
        read_table("t", {}, ["a"], [])
    with pytest.raises(InvalidInput, match="t is 3; it must be a table"):
        read_table("t", 3)


def test_whatever_is_shown_is_short_and_on_one_line():
    for value in ("line\nbreak", list(range(999)), HUGE, {"a": {"b": [1] * 9}}):
        assert len(show(value)) < 120
        assert "\n" not in show(value)
