"""Preferences as a table: pairs are counted, by the arms' names or by their numbers."""

import numpy as np
import pytest

from bandits.files import Vector, read_preferences
from theory.checks import InvalidInput


@pytest.mark.parametrize(
    ("text", "arms", "table"),
    [
        ("a,b\nb,a\na,b\n", ("a", "b"), [[0, 2], [1, 0]]),
        ("a,b,2.5\na,b,1e2\n", ("b", "a"), [[0, 0], [102.5, 0]]),
        ("winner,loser\n1,0\n", None, [[0, 0], [1, 0]]),
        ("10,20\n", ("20", "10"), [[0, 0], [1, 0]]),
    ],
)
def test_pairs_are_counted(tmp_path, text, arms, table):
    path = tmp_path / "pairs.csv"
    path.write_text(text)
    found = read_preferences(path, Vector(np.ones(2), arms))
    np.testing.assert_array_equal(found, table)
    assert found.dtype == np.float64


@pytest.mark.parametrize("arm", ["2", "-1", "01", "1.0", "+1"])
def test_a_number_that_no_arm_has_is_refused(tmp_path, arm):
    path = tmp_path / "pairs.csv"
    path.write_text(f"0,1\n0,{arm}\n")
    with pytest.raises(InvalidInput, match="line 2: unknown arm"):
        read_preferences(path, Vector(np.ones(2), None))
