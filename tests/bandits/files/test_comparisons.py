"""Comparisons: every format gives the pairs it says, and what fits none is refused."""

import csv
import io
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bandits.files.comparisons import read_comparisons
from bandits.files.tables import FileWarning
from theory.checks import InvalidInput


@pytest.fixture
def read(tmp_path):
    """Write bytes, text, records or an array to a file and read it."""
    path = tmp_path / "data"

    def do(content, arms=None):
        if isinstance(content, np.ndarray):
            with path.open("wb") as file:
                np.save(file, content)
        elif isinstance(content, list):
            path.write_text("\n".join(map(json.dumps, content)))
        else:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return read_comparisons(path, arms)

    return do


def pairs_of(found):
    """Return winner, loser and count of each pair."""
    assert found.winners.dtype.kind == found.losers.dtype.kind == "i"
    assert found.counts.dtype == np.float64
    names = np.array(found.labels, object)
    return list(zip(names[found.winners], names[found.losers], found.counts.tolist(), strict=True))


HEAD = "# FILE NAME: 1.toi\n# NUMBER ALTERNATIVES: 4\n" + "".join(
    f"# ALTERNATIVE NAME {i}: {name}\n" for i, name in enumerate(["w", "x, jr", "#y", "z"], 1)
)
COUNTS = np.array([[0, 2, 0], [1, 0, 0], [0, 0.5, 0]])


@pytest.mark.parametrize(
    ("content", "pairs"),
    [
        ("x,y\ny,x\nx,y", [("x", "y", 1), ("y", "x", 1), ("x", "y", 1)]),
        ("x,y,2.5\ny,x,1e2\n", [("x", "y", 2.5), ("y", "x", 100)]),
        ("winner,loser\nx,y\n", [("x", "y", 1)]),
        ("loser,winner\nx,y\n", [("y", "x", 1)]),
        ("Winner; LOSER ;weight\nx;y;0,5\n", [("x", "y", 0.5)]),
        ("x;y;0,5\ny;x;0,25\n", [("x", "y", 0.5), ("y", "x", 0.25)]),
        ("x\ty\ny\tx\n", [("x", "y", 1), ("y", "x", 1)]),
        ('"z, w",x,4\ny,"z, w",1\n', [("z, w", "x", 4), ("y", "z, w", 1)]),
        ("\ufeffwinner,loser\r\n x , y \r\n", [("x", "y", 1)]),
        ("#x,#y\ny,#x\n", [("#x", "#y", 1), ("y", "#x", 1)]),
        ("chosen,rejected,n\nx,y,3\n", [("x", "y", 3)]),
        ("winner_name,loser_name\nx,y\n", [("x", "y", 1)]),
        (
            "model_a,model_b,winner\nx,y,model_a\nx,y,model_b\nx,y,y\nx,y,tie (bothbad)\n",
            [("x", "y", 1), ("y", "x", 1), ("y", "x", 1), ("x", "y", 0.5), ("y", "x", 0.5)],
        ),
        (
            "Left,Right,Winner,count\nx,y,right,2\nx,y,Draw,3\n",
            [("y", "x", 2), ("x", "y", 1.5), ("y", "x", 1.5)],
        ),
        (
            "home_team,away_team,home_score,away_score\nx,y,2,1\nx,z,0,10\ny,z,1,1\n",
            [("x", "y", 1), ("z", "x", 1), ("y", "z", 0.5), ("z", "y", 0.5)],
        ),
        ('[{"winner": "x", "loser": 7, "n": 2}]', [("x", "7", 2)]),
        ('[["x", "y"], ["y", "x"]]', [("x", "y", 1), ("y", "x", 1)]),
        ([{"winner": a, "loser": b} for a, b in ("xy", "yx")], [("x", "y", 1), ("y", "x", 1)]),
        (COUNTS, [("0", "1", 2), ("1", "0", 1), ("2", "1", 0.5)]),
        # A ranking gives all pairs that it orders, and the edges of a weighted graph are pairs.
        (
            HEAD + "3: 2,{1,4}\n1: 1, 2\n2: 3\n",
            [
                ("w", "x, jr", 1), ("w", "z", 1.5), ("x, jr", "w", 3), ("x, jr", "z", 3),
                ("z", "w", 1.5),
            ],
        ),
        (
            "# DATA TYPE: wmd\n" + HEAD + "1,2,3.0\n4, 1, 0.5\n",
            [("w", "x, jr", 3), ("z", "w", 0.5)],
        ),
    ],
)  # fmt: skip
def test_pairs_are_read_exactly(read, content, pairs):
    found = read(content)
    assert pairs_of(found) == pairs
    assert found.prompts is found.prompt_of is None


@pytest.mark.parametrize(
    ("content", "arms", "labels", "pairs"),
    [
        ("model_a,model_b,winner\nz,y,model_b\nx,z,x\n", None, "zyx", ["yz", "xz"]),
        ("x,y\n", "zyx", "zyx", ["xy"]),
        ("10,20\n", ("20", "10"), ("20", "10"), [("10", "20")]),
        (COUNTS, "xyz", "xyz", ["xy", "yx", "zy"]),
        (HEAD + "1: 1,4\n", ("z", "w", "#y", "x, jr"), ("z", "w", "#y", "x, jr"), ["wz"]),
    ],
)
def test_labels_stand_as_given_or_in_order_of_first_appearance(read, content, arms, labels, pairs):
    found = read(content, arms)
    assert found.labels == tuple(labels)
    assert [pair[:2] for pair in pairs_of(found)] == list(map(tuple, pairs))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("winner_name,loser_name,a,b\nx,y,1,2\n", "took the columns .*; dropped a, b"),
        ("# by hand\nwinner,loser\nx,y\n", r"skipped 1 comment line \(1\)"),
        ("x,y\n # note, two\n", r"skipped 1 comment line \(2\)"),
        ("#winner,loser\nx,y\n", r"skipped 1 comment line \(1\)"),
        ("x,y\na,b\nb,a\n", "took line 1 for a pair; its arms are in no other"),
    ],
)
def test_what_is_left_out_or_guessed_is_said(read, text, said):
    with pytest.warns(FileWarning, match=said):
        assert pairs_of(read(text))[0] == ("x", "y", 1)


def messages(*contents):
    roles = ["user", "assistant"] * len(contents)
    return [{"role": role, "content": text} for role, text in zip(roles, contents, strict=False)]


def answers(first, second, **more):
    return {"chosen": first, "rejected": second} | more


TALK = "\n\nHuman: q\n\nAssistant: p\n\nHuman: r"
X, Y = "\n\nAssistant: x", "\n\nAssistant: y"


@pytest.mark.parametrize(
    ("records", "pairs", "prompts"),
    [
        (
            [answers(*"xy", prompt="q"), answers("y", "", prompt="r"), answers(*"zx", prompt="q")],
            [("x", "y", 1), ("y", "", 1), ("z", "x", 1)],
            "qrq",
        ),
        (
            [
                answers(*"xy", prompt="q", score_chosen=5, score_rejected=4.5),
                answers(*"xy", prompt="q", score_chosen=3, score_rejected=3),
            ],
            [("x", "y", 1), ("x", "y", 0.5), ("y", "x", 0.5)],
            "qqq",
        ),
        # The last message is the response, and those before it are the prompt.
        ([answers(messages("q", "x"), messages("q", "y"))], [("x", "y", 1)], "q"),
        ([answers(messages("q", "x"), messages("q", "y"), prompt="q")], [("x", "y", 1)], "q"),
        (
            [answers(messages("q", "p", "r", "x"), messages("q", "p", "r", "y"))],
            [("x", "y", 1)],
            ["user: q\n\nassistant: p\n\nuser: r"],
        ),
        ([answers(TALK + X, TALK + Y)], [("x", "y", 1)], [TALK.strip()]),
    ],
)
def test_responses_to_prompts_are_read(read, records, pairs, prompts):
    found = read(records)
    assert pairs_of(found) == pairs
    assert [found.prompts[i] for i in found.prompt_of] == list(prompts)


def test_pairs_that_compare_nothing_are_dropped_and_said(read):
    records = [answers("a" + X, "a" + Y), answers("a" + X, "a" + X), answers("a" + X, "b" + Y)]
    with pytest.warns(FileWarning) as said:
        assert pairs_of(read(records)) == [("x", "y", 1)]
    assert [str(warning.message).partition(": ")[2] for warning in said] == [
        "skipped 1 pair (2) of equal responses",
        "skipped 1 pair (3) of different prompts",
    ]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("x\n", "line 1: the columns x fit no format"),
        ("winner,loser,count\nx,y,\n", "line 2: '' is not a number"),
        ("x,\n", "line 1: '' is no arm"),
        ("x,y\ny,y\n", "line 2: 'y' is preferred to itself"),
        ("left,right,winner\nx,x,tie\n", "line 2: 'x' is preferred to itself"),
        ("x,y,0\n", "line 1: the count is '0'; it must be a number > 0"),
        ("x,y,-1\n", "line 1: the count is '-1'"),
        ("x,y,1\nx,y,two\n", "line 2: 'two' is not a number"),
        ("x,y,1_0\nx,y,1\n", "line 1: '1_0' is not a number"),
        ("x,0.2\ny,0.8\n", "line 1: the columns x, 0.2 fit no format"),
        ("label,value\nx,1\ny,2\n", "line 1: the columns label, value fit no format"),
        ("better,worse\nx,y\n", "line 1: the columns better, worse fit no format"),
        ("who,whom,how\nx,y,1\n", "line 1: … name them as one of: winner,loser; chosen,rejected"),
        ("a,b,c,d\n1,2,3,4\n", "line 1: the columns a, b, c, d fit no format"),
        ("model_a,model_b,winner\nx1,y1,x\n", "line 2: unknown winner 'x'; did you mean 'x1'?"),
        ("model_a,model_b,winner\nx,y,\n", "line 2: unknown winner ''"),
        ("home_team,away_team,home_score,away_score\nx,y,NA,1\n", "line 2: 'NA' is not a number"),
        ("winner,loser,count,weight\nx,y,1,2\n", "line 2: … 'count' and 'weight' say the same"),
        ("x;y,z\ny;x,z\n", "line 1: ';' and ',' split all lines"),
        ('{"chosen": "x", "rejected": "y"}\n{"chosen": "x"}\n', "line 2: None is no arm"),
        ([answers("x", "y"), answers([], "y")], "line 2: [] is no arm"),
        ([answers("x", "y", prompt=None)], "record 1: the prompt is neither text nor a list"),
        ([answers("x", "y", prompt=["q"])], "record 1: the prompt is neither text nor a list"),
        ([answers("x", None, prompt="q")], "record 1: None is no arm"),
        ([answers("x", "x", prompt="q")], " holds no preferences between different responses"),
        ([answers(1.5, "y", prompt="q")], "record 1: 1.5 is no arm"),
        (
            [answers("x", "y", score_chosen=1, score_rejected=2)],
            "record 1: … the chosen one's must not be less",
        ),
        *(
            (text, " holds no preferences; give one pair a line: winner,loser")
            for text in ["", "\n\n", "winner,loser\n", "\ufeff", ",\n", "[]"]
        ),
        (HEAD + "1: 1,5\n", "line 7: unknown alternative '5'"),
        (HEAD + "1: 1,{2,1}\n", "line 7: an alternative stands there twice"),
        (HEAD + "2,2,1\n", "line 7: an alternative stands there twice"),
        (HEAD + "1,2,3,4\n", "line 7: '1,2,3,4' is no ranking such as 5: 1,{2,3},4"),
        (HEAD + "1: 1,{2\n", "line 7: '1: 1,{2' is no ranking"),
        (HEAD + "0: 1,2\n", "line 7: the count is '0'"),
        (HEAD + "# ALTERNATIVE NAME 5: w\n", "line 7: 'w' must be the name of one alternative"),
        ("# DATA TYPE: cat\n" + HEAD, "line 1: unknown data type 'cat'"),
        ("# DATA TYPE: soc\n" + HEAD + "1: 1,2,3\n", "line 8: 3 of 4 alternatives, but soc is for"),
        ("# DATA TYPE: toc\n" + HEAD + "1: 1,{2,3}\n", "line 8: … say DATA TYPE: toi"),
        ("# DATA TYPE: soi\n" + HEAD + "1: 1,{2,3}\n", "line 8: … say DATA TYPE: toi"),
        (HEAD.replace(": 4", ": 5"), "line 2: it says 5 alternatives, but 4 are named"),
        ("3\n1,A\n2,B\n3,C\n5,5,2\n3,1,2,3\n", "format of before 2022, … download the file again"),
        (np.array([1, 2]), " has shape (2,); it must be [K, K]"),
        (np.array([[0, -1], [1, 0]]), "data[0, 1] is -1; it must be >= 0"),
        (np.eye(2) * 2, " prefers arm 0 to itself; a pair needs two"),
        (np.zeros((2, 2)), " is zero everywhere; there must be at least one preference"),
    ],
)
@pytest.mark.filterwarnings("ignore::bandits.files.tables.FileWarning")
def test_what_is_malformed_or_ambiguous_is_refused_with_its_place(read, content, said):
    with pytest.raises(InvalidInput) as refused:
        read(content)
    assert all(part in str(refused.value) for part in said.split(" … "))


@pytest.mark.parametrize("arm", ["00", "2", "-1", "01", "1.0", "+1"])
def test_an_unknown_arm_is_refused_with_its_line(read, arm):
    with pytest.raises(InvalidInput, match="line 2: unknown arm"):
        read(f"0,1\n0,{arm}\n", ("0", "1"))


def test_an_unknown_arm_is_refused_with_the_nearest(read):
    with pytest.raises(InvalidInput, match="line 2: unknown arm 'xx'; did you mean 'x'"):
        read("x,y\nxx,y\n", ("x", "y"))


def test_parquet_is_read_where_pyarrow_is_installed(tmp_path):
    pd = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    path = tmp_path / "pairs.csv"
    records = [answers(messages("q", "x"), messages("q", "y"))]
    pd.DataFrame(records).to_parquet(path)
    found = read_comparisons(path)
    assert pairs_of(found) == [("x", "y", 1)]
    assert found.prompts == ("q",)


NAMES = (
    st.text(
        st.sampled_from("ab #\",;|\t\n'é日[{%1.")
        | st.characters(codec="utf-8", exclude_characters="\r\0")
    )
    .map(str.strip)
    .filter(bool)
)
PAIRS = st.tuples(NAMES, NAMES, st.integers(1, 9)).filter(lambda row: row[0] != row[1])


@given(st.lists(PAIRS, min_size=1), st.sampled_from(",;\t|"))
def test_a_table_of_any_dialect_is_read_back(read, rows, delimiter):
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter, quoting=csv.QUOTE_NONNUMERIC)
    writer.writerows([("winner", "loser", "count"), *rows])
    assert pairs_of(read(text.getvalue())) == rows
