"""What users bring from Python: arrays, labelled data, tables of preferences; what is refused."""

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from bandits.files.tables import FileWarning, Vector
from bandits.simulation import join, simulate, to_distribution
from bandits.simulation.inputs import as_comparisons, as_vector
from theory.checks import InvalidInput

pytestmark = pytest.mark.filterwarnings("ignore::bandits.simulation.UndeterminedWarning")

NAMES, VALUES = ("a", "b", "c"), (0.2, 0.3, 0.5)


@pytest.mark.parametrize(
    "given",
    [
        Vector(np.array(VALUES), NAMES),
        dict(zip(NAMES, VALUES, strict=True)),
        pd.Series(VALUES, index=list(NAMES)),
        xr.DataArray(list(VALUES), coords={"arm": list(NAMES)}),
    ],
    ids=["vector", "mapping", "pandas", "xarray"],
)
def test_labelled_vectors_keep_their_names(given):
    found = as_vector("reference", given)
    assert found.labels == NAMES
    np.testing.assert_array_equal(found.values, VALUES)


@pytest.mark.parametrize("given", [list(VALUES), np.array(VALUES), pd.Series(VALUES)])
def test_unlabelled_vectors_have_none(given):
    assert as_vector("reference", given).labels is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.ones((2, 2)), r"reward has shape \(2, 2\)"),
        (["x", "y"], "reward must hold numbers"),
        (pd.Series([1.0, 2.0], index=["a", "a"]), "reward names the arm 'a' twice"),
    ],
)
def test_what_is_no_vector_is_refused(given, message):
    with pytest.raises(InvalidInput, match=message):
        as_vector("reward", given)


TABLE = np.array([[0, 3, 0], [1, 0, 2], [0, 0, 0.0]])


@pytest.mark.parametrize(
    "given",
    [
        pd.DataFrame(TABLE, index=list(NAMES), columns=list(NAMES)),
        xr.DataArray(TABLE, coords={"winner": list(NAMES), "loser": list(NAMES)}),
        [("a", "b", 3), ("b", "a"), ("b", "c", 2.0)],
        pd.DataFrame({"winner": ["a", "b", "b"], "loser": ["b", "a", "c"], "count": [3, 1, 2]}),
    ],
    ids=["table of pandas", "table of xarray", "list", "columns of pandas"],
)
def test_preferences_come_in_every_form(given):
    found = as_comparisons(given)
    assert found.labels == NAMES
    rows = zip(found.winners.tolist(), found.losers.tolist(), found.counts.tolist(), strict=True)
    assert sorted(rows) == [(0, 1, 3.0), (1, 0, 1.0), (1, 2, 2.0)]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (-TABLE, "must be >= 0"),
        (np.eye(3), "prefers arm 0 to itself"),
        (TABLE[:2], r"shape \(2, 3\)"),
        (np.zeros((3, 3)), "zero everywhere"),
        ([("a", "a")], "row 1: .*a pair needs two arms"),
        ([("a", "b", -1)], "row 1: the count is -1; it must be a number > 0"),
        ([("a", "b", 1, 2)], r"give \(winner, loser\)"),
        (pd.DataFrame(TABLE, columns=list(NAMES)), "same arms along rows and columns"),
        ([("a", "b"), (None, "a")], "preferences, row 2: None is no arm"),
        (pd.DataFrame({"winner": ["a", np.nan], "loser": ["b", "a"]}), "row 2: nan is no arm"),
        (pd.DataFrame({"best": ["a"], "worst": ["b"]}), "fit no format; name them as one of"),
    ],
    ids=str,
)
def test_what_are_no_preferences_is_refused_in_a_sentence(given, message):
    with pytest.raises(InvalidInput, match=message):
        as_comparisons(given)


@pytest.mark.parametrize(
    ("given", "labels", "counts"),
    [
        ([(0, 2), (1, 0)], ("0", "2", "1"), [1, 1]),  # tuples are pairs, of numbers too
        ([[0, 2], [1, 0]], ("0", "1"), [2, 1]),  # lists are the rows of a table
        (np.array([["0", "2"], ["1", "0"]]), ("0", "2", "1"), [1, 1]),
        (
            xr.DataArray(
                [[0, 9], [1, 0]], dims=("loser", "winner"),
                coords={"winner": ["x", "y"], "loser": ["x", "y"]},
            ),
            ("x", "y"), [1, 9],
        ),
        (xr.DataArray([[0, 9], [1, 0]]), ("u", "v"), [9, 1]),  # without names they are given
    ],
    ids=["pairs of numbers", "a table in lists", "pairs of texts", "named dimensions", "no names"],
)  # fmt: skip
def test_what_tells_pairs_from_tables_and_rows_from_columns(given, labels, counts):
    found = as_comparisons(given, ("u", "v") if "u" in labels else None)
    assert found.labels == labels
    assert found.counts.tolist() == counts


def test_a_column_is_a_count_by_its_name_alone():
    frame = pd.DataFrame(
        {"winner": ["a", "b"], "loser": ["b", "a"], "year": [2020, 1], "count": [9, 1]}
    )
    with pytest.warns(FileWarning, match="took the columns winner, loser, count; dropped year"):
        assert as_comparisons(frame).counts.tolist() == [9, 1]


def test_arms_come_from_the_pairs_and_the_reference_is_uniform():
    dataset = simulate(preferences=[("x", "y"), ("z", "y")], methods=["dpo"], steps=2)
    assert dataset["arm"].values.tolist() == ["x", "y", "z"]
    np.testing.assert_allclose(dataset["reference_log_probs"], -np.log(3), rtol=1e-6)


def test_an_arm_that_the_reference_lacks_is_named_with_its_nearest():
    with pytest.raises(InvalidInput, match=r"unknown arm 'bb'; did you mean 'b'.*--join"):
        simulate(dict(zip(NAMES, VALUES, strict=True)), preferences=[("a", "bb")], methods=["dpo"])


def test_tables_of_different_arms_are_joined_with_zeros():
    vectors = {
        "reference": Vector(np.array([2.0, 3.0]), ("a", "b")),
        "target": Vector(np.array([5.0, 1.0]), ("c", "a")),
    }
    joined = join(vectors)
    assert joined["reference"].labels == joined["target"].labels == ("a", "b", "c")
    np.testing.assert_array_equal(joined["target"].values, [1, 0, 5])
    logs = join(
        {"reference": Vector(np.log([0.9, 0.1]), ("a", "b"))} | {"target": vectors["target"]}
    )
    assert logs["reference"].values[2] == -np.inf  # excluded, as 0 is among probabilities
    with pytest.raises(InvalidInput, match="reference names no arms"):
        join({"reference": Vector(np.ones(2), None)})


def test_log_probabilities_are_taken_for_what_they_are():
    logs = Vector(np.log(np.array(VALUES)), NAMES)
    np.testing.assert_allclose(to_distribution("reference", logs, False, 0).values, VALUES)
    far = Vector(np.array([-1000.0, -1001.0]), None)
    expected = 1 / (1 + np.exp([-1.0, 1.0]))
    np.testing.assert_allclose(to_distribution("reference", far, True, 0).values, expected)
    with pytest.raises(InvalidInput, match=r"exp\(reference\).*sums to 0"):
        to_distribution("reference", far, False, 0)
    with pytest.raises(InvalidInput, match="pseudocount is for counts"):
        to_distribution("reference", far, False, 0.5)
