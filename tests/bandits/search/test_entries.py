"""Numbers, axes, names and tables: what is read, and what is refused in one sentence."""

import datetime
from functools import partial

import pytest

from bandits.search.entries import (
    FINITE,
    NONNEGATIVE,
    POSITIVE,
    read_choice,
    read_names,
    read_seeds,
    read_table,
    show,
    whole,
)
from theory.checks import InvalidInput

COUNT = whole(1, 100)
HUGE = 16**9999  # more digits than Python prints
NAMES = partial(read_names, what="optimizer", allowed=["adam", "sgd"])
CHOICE = partial(read_choice, allowed=["adam", "sgd"])
TABLE = partial(read_table, required=["a"], optional=["width"])


@pytest.mark.parametrize(
    ("read", "value", "found"),
    [
        (POSITIVE.number, 3, 3.0),
        (COUNT.number, 3, 3),
        (NONNEGATIVE.number, 0, 0.0),
        (POSITIVE.axis, 0.1, 0.1),
        (POSITIVE.axis, [0.1], (0.1,)),
        (POSITIVE.axis, [3, 1], (3.0, 1.0)),
        (FINITE.axis, {"linear": [0, 1, 5]}, (0.0, 0.25, 0.5, 0.75, 1.0)),
        (FINITE.axis, {"linear": [1, 0, 2]}, (1.0, 0.0)),
        # Spaced values are short, and the same on every machine.
        (
            POSITIVE.axis,
            {"log": [1e-3, 1e-1, 5]},
            (0.001, 0.00316227766017, 0.01, 0.0316227766017, 0.1),
        ),
        (NONNEGATIVE.axis, {"log": [0.1, 0.001, 3]}, (0.1, 0.01, 0.001)),
        (COUNT.axis, {"log": [1, 100, 7]}, (1, 2, 5, 10, 22, 46, 100)),
        (COUNT.axis, {"log": [1, 3, 50]}, (1, 2, 3)),
        (COUNT.axis, {"linear": [10, 1, 4]}, (10, 7, 4, 1)),
        (read_seeds, 3, (0, 1, 2)),
        (read_seeds, [2**32 - 1, 0], (2**32 - 1, 0)),
        (NAMES, "sgd", "sgd"),
        (NAMES, ["sgd", "adam"], ("sgd", "adam")),
        (CHOICE, "sgd", "sgd"),
        (TABLE, {"a": 1, "width": 2}, {"a": 1, "width": 2}),
        (partial(read_table, required=["a"]), {"a": 1, "any": 2}, {"a": 1, "any": 2}),
    ],
)
def test_what_is_allowed_is_read_as_its_type(read, value, found):
    assert repr(read("k", value)) == repr(found)


SPACED = r"k is .*; it must be a number, a list, {log = \[first, last, count\]} or {linear"


@pytest.mark.parametrize(
    ("read", "value", "says"),
    [
        (COUNT.number, True, "k is True; it must be a whole number from 1 to 100$"),
        (COUNT.number, 2.0, "k is 2.0; it must be a whole number"),
        (COUNT.number, 101, "k is 101; it must be a whole number"),
        (COUNT.number, 0, "k is 0; it must be a whole number"),
        (POSITIVE.number, "1", "k is '1'; it must be a finite number > 0"),
        (POSITIVE.number, 0.0, "k is 0.0; it must be a finite number > 0"),
        (POSITIVE.number, 1e-45, "k is 1e-45; it must be a finite number > 0"),
        (NONNEGATIVE.number, -1e-9, "k is -1e-09; it must be a finite number >= 0"),
        (FINITE.number, float("nan"), "k is nan; it must be a finite number"),
        (FINITE.number, float("-inf"), "k is -inf; it must be a finite number"),
        (FINITE.number, 1e39, r"k is 1e\+39; it must be a finite number"),
        (FINITE.number, 16**3000, r"k is \d+\.\.\.\d+; it must be a finite number"),
        (FINITE.number, datetime.date(2024, 4, 14), "k is datetime.*; it must be a finite number"),
        (FINITE.number, None, "k is None; it must be a finite number"),
        (POSITIVE.axis, [], "k has 0 values; give from 1 to 10000000"),
        (POSITIVE.axis, [0.1, "x"], r"k\[1\] is 'x'; it must be a finite number > 0"),
        (POSITIVE.axis, [0.1, [0.2]], r"k\[1\] is \[0\.2\]; it must be"),
        (POSITIVE.axis, [0.1, 0.2, 0.1], r"k holds 0\.1\d* more than once, as a number of 32 bits"),
        (POSITIVE.axis, [1.0, 1.00000001], "k holds 1 more than once, as a number of 32 bits"),
        (POSITIVE.axis, {}, SPACED),
        (POSITIVE.axis, {"lob": [1, 2, 3]}, SPACED),
        (POSITIVE.axis, {"log": [1, 2, 3], "linear": [1, 2, 3]}, SPACED),
        (POSITIVE.axis, {"log": [1, 2]}, SPACED),
        (POSITIVE.axis, {"log": 3}, SPACED),
        (POSITIVE.axis, {"log": [0, 2, 3]}, r"k\.log\[0\] is 0; it must be a finite number > 0"),
        (POSITIVE.axis, {"linear": [1, 2, 1]}, r"k\.linear\[2\] is 1; it must be a whole number"),
        (POSITIVE.axis, {"linear": [1, 2, 10**7 + 1]}, r"k\.linear\[2\] is 10000001"),
        (POSITIVE.axis, {"linear": [1, 1, 3]}, "k holds 1 more than once"),
        (whole(0, 9).axis, {"log": [0, 9, 3]}, r"k\.log\[0\] is 0; it must be a whole number from"),
        (read_seeds, -1, "k is -1; it must be a whole number from 1"),
        (read_seeds, True, "k is True; it must be a whole number"),
        (read_seeds, 10**7 + 1, "k is 10000001; it must be a whole number"),
        (read_seeds, [2**32], r"k\[0\] is 4294967296; it must be a whole number from 0"),
        (NAMES, "adm", "k: unknown optimizer 'adm'; did you mean 'adam'"),
        (NAMES, [], "k is empty; give at least one optimizer"),
        (NAMES, ["sgd", "sgd"], "k holds 'sgd' more than once"),
        (NAMES, ["sgd", 3], r"k is \[.*; it must be a name, or a list of names"),
        (NAMES, 3, "k is 3; it must be a name"),
        (CHOICE, ["sgd"], r"k is \['sgd'\]; it must be 'adam' or 'sgd'"),
        (TABLE, {"widht": 1}, "k: unknown key 'widht'; did you mean 'width'"),
        (TABLE, {}, "k has no 'a'; add it"),
        (TABLE, 3, "k is 3; it must be a table"),
    ],
)
def test_what_is_not_allowed_is_refused_with_its_key(read, value, says):
    with pytest.raises(InvalidInput, match=f"^{says}"):
        read("k", value)


def test_whatever_is_shown_is_short_and_on_one_line():
    for value in ("line\nbreak", list(range(999)), HUGE, {"a": {"b": [1] * 9}}):
        assert len(show(value)) < 120
        assert "\n" not in show(value)
