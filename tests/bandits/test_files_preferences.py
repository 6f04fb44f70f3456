"""Preferences from a file: counted exactly, and refused with the line at fault."""

import numpy as np
import pytest

from bandits.files import Vector, read_preferences
from theory.checks import InvalidInput

NAMED = Vector(np.ones(3), ("a", "b", "c, d"))
NUMBERED = Vector(np.ones(3), None)


@pytest.fixture
def write(tmp_path):
    def put(content):
        path = tmp_path / "pairs.csv"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return put


@pytest.mark.parametrize(
    ("text", "pairs"),
    [
        ("a,b\n", {(0, 1): 1}),
        ("a,b\nb,a\na,b", {(0, 1): 2, (1, 0): 1}),
        ("winner,loser\na,b\n", {(0, 1): 1}),
        ("Winner, LOSER ,count\na,b,3\n", {(0, 1): 3}),
        ("# by hand\n\nwinner,loser\n\n  # half-way\nb,a\n", {(1, 0): 1}),
        ("a,b,2.5\na,b\na,b,1e2\n", {(0, 1): 103.5}),
        ('"c, d",a,4\nb,"c, d"\n', {(2, 0): 4, (1, 2): 1}),
        (" a ,\tb , 2 \r\nb,a\r\n", {(0, 1): 2, (1, 0): 1}),
        ("\ufeffwinner,loser\na,b\n", {(0, 1): 1}),
        ("\ufeffa,b\n", {(0, 1): 1}),
    ],
)
def test_pairs_of_named_arms_are_counted(write, text, pairs):
    found = read_preferences(write(text), NAMED)
    expected = np.zeros((3, 3))
    for place, count in pairs.items():
        expected[place] = count
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == np.float64


def test_arms_without_names_are_numbered_from_0(write):
    found = read_preferences(write("winner,loser,count\n2,0,5\n0,1\n"), NUMBERED)
    np.testing.assert_array_equal(found, [[0, 1, 0], [0, 0, 0], [5, 0, 0]])


def test_names_that_are_numbers_are_names(write):
    found = read_preferences(write("10,20\n"), Vector(np.ones(2), ("20", "10")))
    np.testing.assert_array_equal(found, [[0, 0], [1, 0]])


@pytest.mark.parametrize(
    ("text", "line", "why"),
    [
        ("a\n", 1, "1 columns; give winner,loser"),
        ("a,b\na,b,1,2\n", 2, "4 columns"),
        ("a;b\n", 1, "1 columns"),
        ("a,b\n\n# skipped\na,x\n", 4, "unknown arm 'x'"),
        ("aa,b\n", 1, "unknown arm 'aa'; did you mean 'a'"),
        ("a,\n", 1, "unknown arm ''"),
        ("0,1\n", 1, "unknown arm '0'"),
        ("A,b\n", 1, "unknown arm 'A'"),
        ("loser,winner\na,b\n", 1, "unknown arm 'loser'"),
        ("a,b\nwinner,loser\n", 2, "unknown arm 'winner'"),
        ("winner,loser\nwinner,loser\na,b\n", 2, "unknown arm 'winner'"),
        ("a,b\nb,b\n", 2, "'b' is preferred to itself"),
        ("a,a,0\n", 1, "'a' is preferred to itself"),
        ("a,b,0\n", 1, "the count is '0'; it must be a number > 0"),
        ("a,b,-1\n", 1, "the count is '-1'"),
        ("a,b,nan\n", 1, "the count is 'nan'"),
        ("a,b,inf\n", 1, "the count is 'inf'"),
        ("a,b,1e999\n", 1, "the count is '1e999'"),
        ("a,b,two\n", 1, "the count is 'two'"),
        ("a,b,\n", 1, "the count is ''"),
        ('a,b\n"a"x,b\n', 2, "not plain CSV text"),
        ('a,b\n"c, d,b\n', 2, "not plain CSV text"),
        (b"a,b\na,\xe9\n", 2, "not plain CSV text"),
    ],
)
def test_a_malformed_line_is_refused_with_its_number(write, text, line, why):
    path = write(text)
    with pytest.raises(InvalidInput) as refused:
        read_preferences(path, NAMED)
    assert str(refused.value).startswith(f"{path}, line {line}: ")
    assert why in str(refused.value)


@pytest.mark.parametrize("arm", ["3", "-1", "01", "1.0", "+1"])
def test_a_number_that_no_arm_has_is_refused(write, arm):
    with pytest.raises(InvalidInput, match="line 2: unknown arm"):
        read_preferences(write(f"0,1\n0,{arm}\n"), NUMBERED)


@pytest.mark.parametrize("text", ["", "\n\n", "# nothing\n", "winner,loser\n", "\ufeff", ",\n"])
def test_a_file_without_pairs_is_refused(write, text):
    with pytest.raises(InvalidInput, match="holds no preferences; give one pair a line"):
        read_preferences(write(text), NAMED)


def test_a_file_that_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(InvalidInput, match=r"cannot read .*missing.csv: No such file"):
        read_preferences(tmp_path / "missing.csv", NAMED)
    with pytest.raises(InvalidInput, match="cannot read"):
        read_preferences(tmp_path, NAMED)
