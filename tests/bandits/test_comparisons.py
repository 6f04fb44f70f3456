"""Comparisons: every format gives the pairs it says, and what fits none is refused."""

import csv
import io
import json
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bandits.comparisons import read_comparisons
from bandits.tables import FileWarning
from theory.checks import InvalidInput


@pytest.fixture
def write(tmp_path):
    """Write bytes, text or a list of records to a file and return its path."""

    def put(content, name="pairs"):
        path = tmp_path / name
        if isinstance(content, list):
            content = "\n".join(map(json.dumps, content))
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return put


def pairs_of(found):
    """Return winner, loser and count of each pair."""
    assert found.winners.dtype.kind == found.losers.dtype.kind == "i"
    assert found.counts.dtype == np.float64
    names = np.array(found.labels, object)
    return list(zip(names[found.winners], names[found.losers], found.counts.tolist(), strict=True))


def read_quietly(path, arms=None):
    """Read and fail on any warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return read_comparisons(path, arms)


@pytest.mark.parametrize(
    ("text", "pairs"),
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
        ('{"winner": "x", "loser": "y"}\n{"winner": "y", "loser": "x"}\n', None),
    ],
)
def test_pairs_are_read_exactly(write, text, pairs):
    found = read_quietly(write(text))
    assert pairs_of(found) == (pairs or [("x", "y", 1), ("y", "x", 1)])
    assert found.prompts is found.prompt_of is None


def test_labels_stand_in_order_of_first_appearance(write):
    found = read_quietly(write("model_a,model_b,winner\nz,y,model_b\nx,z,x\n"))
    assert found.labels == ("z", "y", "x")


def test_given_arms_become_the_labels(write):
    found = read_quietly(write("x,y\n"), ("z", "y", "x"))
    assert found.labels == ("z", "y", "x")
    assert pairs_of(found) == [("x", "y", 1)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("winner_name,loser_name,a,b\nx,y,1,2\n", "took the columns .*; dropped a, b"),
        ("# by hand\nwinner,loser\nx,y\n", r"skipped 1 comment line \(1\)"),
        ("x,y\n # note, two\n", r"skipped 1 comment line \(2\)"),
        ("#winner,loser\nx,y\n", r"skipped 1 comment line \(1\)"),
    ],
)
def test_what_is_left_out_is_said(write, text, said):
    with pytest.warns(FileWarning, match=said):
        assert pairs_of(read_comparisons(write(text))) == [("x", "y", 1)]


def test_a_first_line_whose_arms_are_in_no_other_is_said(write):
    with pytest.warns(FileWarning, match="took line 1 for a pair"):
        read_comparisons(write("good,bad\nx,y\ny,x\n"))


def messages(*contents):
    roles = ["user", "assistant"] * len(contents)
    return [{"role": role, "content": text} for role, text in zip(roles, contents, strict=False)]


def test_responses_to_prompts_are_read(write):
    records = [
        {"prompt": "q", "chosen": "x", "rejected": "y"},
        {"prompt": "r", "chosen": "y", "rejected": ""},
        {"prompt": "q", "chosen": "z", "rejected": "x"},
    ]
    found = read_quietly(write(records))
    assert pairs_of(found) == [("x", "y", 1), ("y", "", 1), ("z", "x", 1)]
    assert found.prompts == ("q", "r")
    assert found.prompt_of.tolist() == [0, 1, 0]


def test_equal_scores_are_a_tie(write):
    scores = [(5, 4.5), (3, 3)]
    records = [
        {"prompt": "q", "chosen": "x", "rejected": "y", "score_chosen": a, "score_rejected": b}
        for a, b in scores
    ]
    found = read_quietly(write(records))
    assert pairs_of(found) == [("x", "y", 1), ("x", "y", 0.5), ("y", "x", 0.5)]
    assert found.prompt_of.tolist() == [0, 0, 0]


@pytest.mark.parametrize("extra", [{}, {"prompt": "q"}])
def test_the_last_message_is_the_response(write, extra):
    record = {"chosen": messages("q", "x"), "rejected": messages("q", "y")}
    found = read_quietly(write([extra | record]))
    assert pairs_of(found) == [("x", "y", 1)]
    assert found.prompts == ("q",)


def test_earlier_messages_are_the_prompt(write):
    record = {"chosen": messages("q", "p", "r", "x"), "rejected": messages("q", "p", "r", "y")}
    assert read_quietly(write([record])).prompts == ("user: q\n\nassistant: p\n\nuser: r",)


def test_a_dialogue_in_one_text_is_split_at_its_last_answer(write):
    start = "\n\nHuman: q\n\nAssistant: p\n\nHuman: r"
    ends = {"chosen": "\n\nAssistant: x", "rejected": "\n\nAssistant: y"}
    found = read_quietly(write([{key: start + end for key, end in ends.items()}]))
    assert pairs_of(found) == [("x", "y", 1)]
    assert found.prompts == (start.strip(),)


def test_pairs_that_compare_nothing_are_dropped_and_said(write):
    def record(first, second, right="q"):
        left = "\n\nHuman: q\n\nAssistant: "
        return {"chosen": left + first, "rejected": left.replace("q", right) + second}

    path = write([record("x", "y"), record("x", "x"), record("x", "y", "r")])
    with pytest.warns(FileWarning) as said:
        assert pairs_of(read_comparisons(path)) == [("x", "y", 1)]
    assert [str(warning.message).partition(": ")[2] for warning in said] == [
        "skipped 1 pair (2) of equal responses",
        "skipped 1 pair (3) of different prompts",
    ]


@pytest.mark.parametrize(
    ("text", "line", "why"),
    [
        ("x\n", 1, "the columns x fit no format"),
        ("x,y\nx,y,1\n", 2, "3 columns, but line 1 has 2"),
        ("winner,loser,count\nx,y,\n", 2, "'' is not a number"),
        ("winner,loser\nx,y,\n", 2, "3 columns and ends in ','"),
        ("x,\n", 1, "'' is no arm"),
        ("x,y\ny,y\n", 2, "'y' is preferred to itself"),
        ("left,right,winner\nx,x,tie\n", 2, "'x' is preferred to itself"),
        ("x,y,0\n", 1, "the count is '0'; it must be a number > 0"),
        ("x,y,-1\n", 1, "the count is '-1'"),
        ("x,y,1\nx,y,nan\n", 2, "'nan' is not a number"),
        ("x,y,1\nx,y,two\n", 2, "'two' is not a number"),
        ("x,y,1_0\nx,y,1\n", 1, "'1_0' is not a number"),
        ("x,0.2\ny,0.8\n", 1, "the columns x, 0.2 fit no format"),
        ("label,value\nx,1\ny,2\n", 1, "the columns label, value fit no format"),
        ("better,worse\nx,y\n", 1, "the columns better, worse fit no format"),
        ("who,whom,how\nx,y,1\n", 1, "name them as one of: winner,loser; chosen,rejected"),
        ("a,b,c,d\n1,2,3,4\n", 1, "the columns a, b, c, d fit no format"),
        ("model_a,model_b,winner\nx1,y1,x\n", 2, "unknown winner 'x'; did you mean 'x1'?"),
        ("model_a,model_b,winner\nx,y,\n", 2, "unknown winner ''"),
        ("home_team,away_team,home_score,away_score\nx,y,NA,1\n", 2, "'NA' is not a number"),
        ("winner,loser,count,weight\nx,y,1,2\n", 2, "'count' and 'weight' say the same"),
        ("x;y,z\ny;x,z\n", 1, "';' and ',' split all lines"),
        ('x,y\n"x"z,y\n', 2, "not plain CSV text"),
        (b"x,y\nx,\xe9\n", 2, "not text in UTF-8"),
        ('{"chosen": "x", "rejected": "y"}\n{"chosen": "x"}\n', 2, "None is no arm"),
        ('{"chosen": "x", "rejected": "y"}\n{"chosen": "x",}\n', 2, "it is not JSON"),
        ('{"chosen": "x", "rejected": "y"}\n{"chosen": [], "rejected": "y"}\n', 2, "[] is no arm"),
    ],
)
def test_a_malformed_line_is_refused_with_its_number(write, text, line, why):
    path = write(text)
    with pytest.raises(InvalidInput) as refused:
        read_quietly(path)
    assert str(refused.value).startswith(f"{path}, line {line}: ")
    assert why in str(refused.value)


@pytest.mark.parametrize(
    ("record", "why"),
    [
        ({"prompt": None, "chosen": "x", "rejected": "y"}, "the prompt is neither text nor a list"),
        ({"prompt": "q", "chosen": "x", "rejected": None}, "None is no arm"),
        ({"prompt": "q", "chosen": 1.5, "rejected": "y"}, "1.5 is no arm"),
        (
            {"chosen": "x", "rejected": "y", "score_chosen": 1, "score_rejected": 2},
            "the chosen one's must not be less",
        ),
    ],
)
def test_a_malformed_record_is_refused_with_its_number(write, record, why):
    with pytest.raises(InvalidInput, match=f"record 1: .*{why}"):
        read_comparisons(write([record]))


def test_an_unknown_arm_is_refused_with_the_nearest(write):
    with pytest.raises(InvalidInput, match="line 2: unknown arm 'xx'; did you mean 'x'"):
        read_comparisons(write("x,y\nxx,y\n"), ("x", "y"))


@pytest.mark.parametrize("text", ["", "\n\n", "winner,loser\n", "\ufeff", ",\n", "[]"])
def test_a_file_without_pairs_is_refused(write, text):
    with pytest.raises(InvalidInput, match="holds no preferences; give one pair a line"):
        read_comparisons(write(text))


HEAD = "# FILE NAME: 1.toi\n# NUMBER ALTERNATIVES: 4\n" + "".join(
    f"# ALTERNATIVE NAME {i}: {name}\n" for i, name in enumerate(["w", "x, jr", "#y", "z"], 1)
)


def test_a_ranking_gives_all_pairs_that_it_orders(write):
    found = read_quietly(write(HEAD + "3: 2,{1,4}\n1: 1, 2\n2: 3\n"))
    assert found.labels == ("w", "x, jr", "#y", "z")
    assert pairs_of(found) == [
        ("w", "x, jr", 1),
        ("w", "z", 1.5),
        ("x, jr", "w", 3),
        ("x, jr", "z", 3),
        ("z", "w", 1.5),
    ]


def test_the_edges_of_a_weighted_graph_are_pairs(write):
    found = read_quietly(write("# DATA TYPE: wmd\n" + HEAD + "1,2,3.0\n4, 1, 0.5\n"))
    assert pairs_of(found) == [("w", "x, jr", 3), ("z", "w", 0.5)]


@pytest.mark.parametrize(
    ("text", "line", "why"),
    [
        (HEAD + "1: 1,5\n", 7, "unknown alternative '5'"),
        (HEAD + "1: 1,{2,1}\n", 7, "an alternative stands there twice"),
        (HEAD + "2,2,1\n", 7, "an alternative stands there twice"),
        (HEAD + "1,2,3,4\n", 7, "is no ranking such as 5: 1,{2,3},4"),
        (HEAD + "1: 1,{2\n", 7, "is no ranking"),
        (HEAD + "0: 1,2\n", 7, "the count is '0'"),
        (HEAD + "# ALTERNATIVE NAME 5: w\n", 7, "'w' must be the name of one alternative"),
        ("# DATA TYPE: cat\n" + HEAD, 1, "unknown data type 'cat'"),
        ("# DATA TYPE: soc\n" + HEAD + "1: 1,2,3\n", 8, "3 of 4 alternatives, but soc is for"),
        ("# DATA TYPE: toc\n" + HEAD + "1: 1,{2,3}\n", 8, "say DATA TYPE: toi"),
        ("# DATA TYPE: soi\n" + HEAD + "1: 1,{2,3}\n", 8, "say DATA TYPE: toi"),
        (HEAD.replace(": 4", ": 5") + "1: 1,2\n", 2, "says 5 alternatives, but 4 are named"),
    ],
)
def test_a_malformed_ranking_is_refused_with_its_line(write, text, line, why):
    path = write(text)
    with pytest.raises(InvalidInput) as refused:
        read_comparisons(path)
    assert str(refused.value).startswith(f"{path}, line {line}: ")
    assert why in str(refused.value)


def test_preflibs_old_format_is_refused_with_the_remedy(write):
    with pytest.raises(InvalidInput, match=r"format of before 2022, .*; download the file again"):
        read_comparisons(write("3\n1,A\n2,B\n3,C\n5,5,2\n3,1,2,3\n2,2,3,1\n"))


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def test_an_array_of_counts_is_read(write):
    path = write(npy(np.array([[0, 2, 0], [1, 0, 0], [0, 0.5, 0]])))
    assert pairs_of(read_quietly(path)) == [("0", "1", 2), ("1", "0", 1), ("2", "1", 0.5)]
    assert read_quietly(path, "xyz").labels == ("x", "y", "z")


@pytest.mark.parametrize(
    ("array", "why"),
    [
        ([1, 2], "counts must be .K, K."),
        ([[0, 1, 2], [1, 0, 2]], "counts must be .K, K."),
        ([[0, -1], [1, 0]], "entry 0, 1: it is -1; counts must be >= 0"),
        ([[0, 1], [1, 2]], "entry 1, 1: it is 2; counts of an arm and itself must be 0"),
        ([[0, np.inf], [1, 0]], "entry 0, 1: inf is not a finite number"),
        ([[0, 0], [0, 0]], "holds no preferences"),
    ],
)
def test_an_array_that_is_no_table_of_counts_is_refused(write, array, why):
    with pytest.raises(InvalidInput, match=why):
        read_comparisons(write(npy(np.array(array))))


def test_parquet_is_read_where_pyarrow_is_installed(tmp_path):
    pd = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    path = tmp_path / "pairs.csv"
    answers = {"chosen": [messages("q", "x")], "rejected": [messages("q", "y")]}
    pd.DataFrame(answers).to_parquet(path)
    found = read_quietly(path)
    assert pairs_of(found) == [("x", "y", 1)]
    assert found.prompts == ("q",)


ARMS = st.text(
    st.sampled_from("ab #\",;|\t\n'é日[{%1.")
    | st.characters(codec="utf-8", exclude_characters="\r\0")
)
NAMES = ARMS.map(str.strip).filter(bool)


@given(
    st.lists(
        st.tuples(NAMES, NAMES, st.integers(1, 9)).filter(lambda row: row[0] != row[1]), min_size=1
    ),
    st.sampled_from(",;\t|"),
)
def test_a_table_of_any_dialect_is_read_back(write, rows, delimiter):
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter, quoting=csv.QUOTE_NONNUMERIC)
    writer.writerows([("winner", "loser", "count"), *rows])
    assert pairs_of(read_quietly(write(text.getvalue()))) == rows


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
    pairs = read_comparisons(path, arms or ("0", "1"))
    found = np.zeros((2, 2))
    np.add.at(found, (pairs.winners, pairs.losers), pairs.counts)
    np.testing.assert_array_equal(found, table)
    assert pairs.counts.dtype == np.float64


@pytest.mark.parametrize("arm", ["2", "-1", "01", "1.0", "+1"])
def test_a_number_that_no_arm_has_is_refused(tmp_path, arm):
    path = tmp_path / "pairs.csv"
    path.write_text(f"0,1\n0,{arm}\n")
    with pytest.raises(InvalidInput, match="line 2: unknown arm"):
        read_comparisons(path, ("0", "1"))
