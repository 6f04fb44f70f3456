"""Tables: what is read exactly, what is said, and what is refused with its line."""

import contextlib
import csv
import gzip
import io
import json
import os
import pickle
import subprocess
import sys
import threading
import warnings

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bandits.tables import THOUSANDS, FileWarning, Vector, align, read_vector
from theory.checks import InvalidInput


@pytest.fixture
def write(tmp_path):
    """Write bytes or text to a file of the given name and return its path."""

    def put(content, name="data.csv"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return put


def npy(array, **options):
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


def read_quietly(path):
    """Read and fail on any warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return read_vector(path)


@pytest.mark.parametrize(
    ("text", "values", "labels"),
    [
        ("0.25\n0.75\n", [0.25, 0.75], None),
        ("0.25\n0.75", [0.25, 0.75], None),
        ("value\n0.25\n0.75\n", [0.25, 0.75], None),
        ("a,0.25\nb,0.75\n", [0.25, 0.75], ("a", "b")),
        ("arm,value\na,0.25\nb,0.75\n", [0.25, 0.75], ("a", "b")),
        ("count,letter\n3,x\n4,y\n", [3, 4], ("x", "y")),
        ("Log-Prob,Token\n-3,x\n-4,y\n", [-3, -4], ("x", "y")),
        (",count\nx,3\ny,4\n", [3, 4], ("x", "y")),
        ("\ufeffa,0.25\nb,0.75\n", [0.25, 0.75], ("a", "b")),
        ("a,0.25\r\n\r\nb,0.75\r\n", [0.25, 0.75], ("a", "b")),
        ("a,0.25\rb,0.75\r", [0.25, 0.75], ("a", "b")),
        ('"a, ""b""",0.25\n"c",0.75\n', [0.25, 0.75], ('a, "b"', "c")),
        ('"two\nlines",0.25\nb,0.75\n', [0.25, 0.75], ("two\nlines", "b")),
        ('"x\n#y",0.25\nb,0.75\n', [0.25, 0.75], ("x\n#y", "b")),
        (" a b , 0.25\n b,\t0.75 \n", [0.25, 0.75], ("a b", "b")),
        ("a,\t0.25\nb,\t0.75\n", [0.25, 0.75], ("a", "b")),
        ("1,0.25\n2,0.75\n", [0.25, 0.75], ("1", "2")),
        ("ä,-1e-3\n日,+2E2\n", [-1e-3, 200.0], ("ä", "日")),
        ("x,.5\ny,5.\n", [0.5, 5.0], ("x", "y")),
        ("NA,1\nnan,2\n", [1, 2], ("NA", "nan")),
        ("x,2020\ny,2021\n", [2020, 2021], ("x", "y")),
    ],
)
def test_a_csv_file_is_read_exactly(write, text, values, labels):
    found = read_quietly(write(text))
    np.testing.assert_array_equal(found.values, values)
    assert found.values.dtype == np.float64
    assert found.labels == labels


@pytest.mark.parametrize(
    ("text", "values", "labels"),
    [
        ("x;0,2\ny;0,8\n", [0.2, 0.8], ("x", "y")),
        ("label;count\nx, y;2\nz;8\n", [2, 8], ("x, y", "z")),
        ("x\t1,5\ny\t2\n", [1.5, 2], ("x", "y")),
        ("x|1.5\ny|2\n", [1.5, 2], ("x", "y")),
        ("x;1,250\ny;0,5\n", [1.25, 0.5], ("x", "y")),
        ("x;0,125\ny;0,875\n", [0.125, 0.875], ("x", "y")),
        ("x;y,2\nz;w,8\n", [2, 8], ("x;y", "z;w")),
        ("x|y,2\nz,8\n", [2, 8], ("x|y", "z")),
        ('"x;y";2\n"z";8\n', [2, 8], ("x;y", "z")),
        ('"0,25"\n"0,75"\n', [0.25, 0.75], None),
    ],
)
def test_a_dialect_is_decided_for_the_whole_file(write, text, values, labels):
    found = read_quietly(write(text))
    np.testing.assert_array_equal(found.values, values)
    assert found.labels == labels


@pytest.mark.parametrize(
    ("text", "values", "labels"),
    [
        ("[0.25, 0.75]", [0.25, 0.75], None),
        ('{"x": 1, "y": 2e0}', [1, 2], ("x", "y")),
        ('[\n {"label": "x", "value": 1},\n {"label": " y", "value": 2}\n]', [1, 2], ("x", "y")),
        ('{"prob": 0.1, "id": 7}\n\n{"prob": 0.9, "id": 8}\n', [0.1, 0.9], ("7", "8")),
        ('{"value": 1}\n{"value": 2}\n', [1, 2], None),
        ('[["x", 1], ["y", 2]]', [1, 2], ("x", "y")),
        ('["x\u2028z", 1]\n["y", 2]\n', [1, 2], ("x\u2028z", "y")),
        ("[UNK],1\n[PAD],2\n", [1, 2], ("[UNK]", "[PAD]")),
        ("{x},1\n{y},2\n", [1, 2], ("{x}", "{y}")),
    ],
)
def test_json_and_json_lines_are_read(write, text, values, labels):
    found = read_quietly(write(text))
    np.testing.assert_array_equal(found.values, values)
    assert found.labels == labels


@pytest.mark.parametrize("name", ["data", "DATA.CSV", "data.tsv", "data.npy", "data.json"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_the_content_decides_the_format(write, name, encoding):
    found = read_quietly(write("é,1\nb,2\n".encode(encoding), name))
    assert found.labels == ("é", "b")


def test_a_pipe_and_standard_input_are_read(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_text, args=("a,1\nb,2\n",))
    writer.start()
    assert read_vector(path).labels == ("a", "b")
    writer.join()
    code = (
        "from pathlib import Path; from bandits.tables import read_vector; "
        "print(read_vector(Path('/dev/stdin')).values.tolist())"
    )
    run = subprocess.run([sys.executable, "-c", code], input=b"[1, 2]", capture_output=True)
    assert run.stdout == b"[1.0, 2.0]\n"


@pytest.mark.parametrize(
    ("text", "labels", "said"),
    [
        ("#x,1\n#y,2\nz,3\n", ("#x", "#y", "z"), None),
        ("#x,1\n#y,2\n", ("#x", "#y"), None),
        ("tag;count\n#x;1,5\n z;3\n", ("#x", "z"), None),
        ('"#x",1\n"# y",2\n', ("#x", "# y"), None),
        ("# by hand\nx,1\ny,2\n", ("x", "y"), "skipped 1 comment line (1)"),
        ("# label,count\nx,1\n\n # half-way\ny,2\n", ("x", "y"), "skipped 2 comment lines (1, 4)"),
        ("#label,count\n#x,1\n#y,2\n", ("#x", "#y"), "skipped 1 comment line (1)"),
        ("# May 3, 2020\nlabel,count\n#x,1\ny,2\n", ("#x", "y"), "skipped 1 comment line (1)"),
        ('# "x" to y\nx,1\n# one, "two\ny,2\n', ("x", "y"), "skipped 2 comment lines (1, 3)"),
        ("# total, 3\nx,1\ny,2\n", ("# total", "x", "y"), "read 1 line (1) as arms"),
    ],
)
def test_a_line_with_a_hash_is_an_arm_or_is_said(write, text, labels, said):
    path = write(text)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert read_vector(path).labels == labels
    assert len(caught) == (said is not None)
    for warning in caught:
        assert issubclass(warning.category, FileWarning)
        assert str(warning.message).startswith(f"{path}: {said}")


def test_columns_that_are_not_used_are_said(write):
    path = write("id,group,count\nx,g,1\ny,g,2\n")
    with pytest.warns(FileWarning, match="took the columns id, count; dropped group"):
        found = read_vector(path)
    assert found.labels == ("x", "y")


def test_a_header_of_unknown_words_is_said(write):
    with pytest.warns(FileWarning, match=r"took line 1, 'land,area', for the header"):
        assert read_vector(write("land,area\nx,1\ny,2\n")).labels == ("x", "y")


MISSING = ["NA", "N/A", "nan", "NaN", "null", "None", "-", "?", "", "inf", "-inf", "#N/A", "TBD"]


@pytest.mark.parametrize("cell", MISSING)
@pytest.mark.parametrize("line", [1, 2])
def test_a_missing_value_is_refused_on_any_line(write, cell, line):
    rows = ["x,0.5", "y,0.5"]
    rows.insert(line - 1, f"z,{cell}")
    with pytest.raises(InvalidInput, match=f"line {line}: .* is not a number"):
        read_vector(write("\n".join(rows)))
    if cell:
        column = "\n".join(row.partition(",")[2] for row in rows)
        with pytest.raises(InvalidInput, match=f"line {line}: .* is not a number"):
            read_vector(write(column))


@pytest.mark.parametrize(
    "cell", ["1_000", "1 000", "0x10", "１２", "½", "5€", "1.2.3", "--5", "1e"]
)
@pytest.mark.parametrize("line", [1, 2])
def test_what_only_resembles_a_number_is_refused(write, cell, line):
    rows = ["x,0.5", "y,0.5"]
    rows.insert(line - 1, f"z,{cell}")
    with pytest.raises(InvalidInput, match=f"line {line}: .* is not a number"):
        read_vector(write("\n".join(rows)))


@pytest.mark.parametrize(
    ("text", "line", "why"),
    [
        ("0.25\nx\n", 2, "'x' is not a number"),
        ("0.25\n0,75\n", 2, "2 columns, but line 1 has 1"),
        ("a,0.25\nb,50%\n", 2, "'50%' is a percentage"),
        ("a,5%\nb,95%\n", 1, "'5%' is a percentage"),
        ("arm,value\r\na,0.25\r\nb;0.75\r\n", 3, "1 columns, but line 1 has 2"),
        ("a,0.25\nb,0.5,0.25\n", 2, "3 columns"),
        ("a,0.25\n0.75\n", 2, "1 columns"),
        ("label,value\na,0.25,\nb,0.75\n", 2, "3 columns and ends in ','"),
        ("a,0.25,\nb,0.75,\n", 1, "3 columns (a, 0.25, ), the last of them empty"),
        ("label,value,\na,1,\nb,2,\n", 2, "the last of them empty"),
        ("0.25,\n0.75,\n", 1, "'' is not a number"),
        ("x,y,0.25\n", 1, "3 columns (x, y, 0.25)"),
        ("id,name,count\nx,y,1\n", 1, "3 columns (id, name, count)"),
        ("prob,reward\n0.2,1\n0.8,0\n", 2, "2 columns (prob, reward)"),
        ("a,0.25\nb,0.5\na,0.25\n", 3, "the arm 'a' stands there twice, also in line 1"),
        ("0,25\n0,75\n", 2, "write decimals with a point"),
        (",1\nb,2\n", 1, "the label is ''"),
        (",0\na,1\nb,2\n", 1, "the label is ''"),
        ('"two\nlines",0.25\nb,x\n', 3, "'x' is not a number"),
        ("first\nsecond\n0.5\n", 2, "'second' is not a number"),
        ('a,0.25\n"b"c,0.75\nd,0\n', 2, "not plain CSV text"),
        ('a,0.25\nb,0.75\n"c,0.5\n', 3, "not plain CSV text"),
        (b"".join(b"arm %d,1\n" % i for i in range(5)) + b"\xe9,1\n", 6, "not text in UTF-8"),
        ("a,1\nb,2\n".encode("utf-16-le"), 1, "not text in UTF-8"),
        ("a,1e999\nb,1\n", 1, "'1e999' is not a finite number"),
        ("land,2020\nx,5\ny,6\n", 1, "2020 may be a value or the year of a header"),
        ("2020\n5\n6\n", 1, "add a header line above it, such as label,value"),
        ("x;0.5\ny;0,5\n", 2, "another decimal sign than '0.5' in line 1"),
        ("x;0,5\ny;1\nz;0.5\n", 3, "another decimal sign than '0,5' in line 1"),
        ("x;1.234,5\ny;1\n", 1, "'1.234,5' is not a number"),
        ("x;12\ny;1,234\n", 2, "may be decimals or thousands"),
        ("x;12\ny;1.234\n", 2, "may be decimals or thousands"),
        ('x,"1,234"\ny,5\n', 1, "has a comma; write decimals with a point"),
        ("x;0,25\ny;O,3\nz;0,45\n", 2, "'O,3' is not a number"),
        ("label,value\nx;0,25\ny;0,75\n", 2, "after another delimiter"),
        ('{"value": 1, "label": "x"}\n{"value": 2}\n', 2, "the label is None"),
        ('{"value": 1}\n{"value": }\n', 2, "it is not JSON"),
        ("[\n1,\n2,,\n3]", 3, "it is not JSON"),
        ('{"value": 1}\n[2]\n', 2, "it is no object, as others are"),
    ],
)
@pytest.mark.filterwarnings("ignore::bandits.tables.FileWarning")
def test_a_malformed_line_is_refused_with_its_number(write, text, line, why):
    path = write(text)
    with pytest.raises(InvalidInput) as refused:
        read_vector(path)
    assert str(refused.value).startswith(f"{path}, line {line}: ")
    assert why in str(refused.value)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[1, null]", "record 2: None is not a number"),
        ("[1, NaN]", "record 2: 'NaN' is not a number"),
        ("[1, true]", "record 2: True is not a number"),
        ('{"x": 1, "y": null}', "record 2: None is not a number"),
        ('{"x": 1, "x": 2}', "the key 'x' stands there twice"),
        ('[{"label": null, "value": 1}]', "record 1: the label is None"),
        ('[{"label": "\\ud800", "value": 1}]', "record 1: the label is None"),
        ('[["x", 1], ["y"]]', "record 2: 1 columns"),
        ('[[1, "x"], [2, "y"]]', "record 1: 'x' is not a number"),
        ("[" * 10**5, "data.json"),
    ],
)
def test_malformed_json_is_refused_with_its_record(write, text, why):
    with pytest.raises(InvalidInput) as refused:
        read_vector(write(text, "data.json"))
    assert why in str(refused.value)


@pytest.mark.parametrize(
    "first", ["a,", "a,0.25%", "a,0.2.5", "a,ca. 5", "a,O.5", "0x10", "0.25 0.5"]
)
def test_a_malformed_first_arm_is_not_taken_for_a_header(write, first):
    rest = "b,0.5\nc,0.5\n" if "," in first else "0.5\n0.5\n"
    with pytest.raises(InvalidInput, match="line 1: "):
        read_vector(write(f"{first}\n{rest}"))


@pytest.mark.parametrize("text", ["", "\n\n", "arm,value\n", "\ufeff", ",\n", "[]", "{}", "[{}]"])
def test_a_file_without_arms_is_refused(write, text):
    with pytest.raises(InvalidInput, match="holds no arms"):
        read_vector(write(text))


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", ">f8", "i4", "u1", np.longdouble])
def test_any_real_npy_vector_is_read_as_float64(write, dtype):
    found = read_vector(write(npy(np.array([1, 2, 3], dtype)), "data.txt"))
    assert found.values.dtype == np.float64
    assert found.values.tolist() == [1, 2, 3]
    assert found.labels is None


@pytest.mark.parametrize(
    "array",
    [
        np.ones((2, 2)),
        np.float64(1),
        np.array(["a", "b"]),
        np.array([1j, 2]),
        np.array([True, False]),
        np.array([(1, 2.0)], "i4,f8"),
        np.array(["2020", "2021"], "M8[Y]"),
    ],
)
def test_an_npy_array_of_another_kind_is_refused(write, array):
    with pytest.raises(InvalidInput, match=r"must hold .*numbers"):
        read_vector(write(npy(array), "data.npy"))


def test_an_npy_entry_that_is_not_finite_is_refused(write):
    with pytest.raises(InvalidInput, match="entry 1: nan is not a finite number"):
        read_vector(write(npy(np.array([1, np.nan])), "data.npy"))


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


SIX = npy(np.arange(6.0))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n",
        SIX[:40],
        SIX[:-1],
        b"PK\x03\x04" + bytes(50),
        pickle.dumps(Bomb()),
        npy(np.array([Bomb()]), allow_pickle=True),
        SIX.replace(b"(6,)", b"(-6,)"),
        SIX.replace(b"{'descr", b" 'descr"),
        SIX.replace(b"(6,), }" + 11 * b" ", b"(6" + 11 * b"0" + b",), }"),
    ],
)
def test_a_damaged_file_is_refused_and_never_unpickled(write, content, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write(content, "data.npy")
    with pytest.raises(InvalidInput, match=r"data\.npy"):
        read_vector(path)
    assert os.listdir(tmp_path) == ["data.npy"]


def test_a_zip_of_arrays_is_refused(write):
    buffer = io.BytesIO()
    np.savez(buffer, a=np.ones(2))
    with pytest.raises(InvalidInput, match=r"data\.npy is a zip archive, .*; unpack it"):
        read_vector(write(buffer.getvalue(), "data.npy"))


def test_a_compressed_file_is_refused_with_the_remedy(write):
    with pytest.raises(InvalidInput, match="is compressed by gzip; unpack it"):
        read_vector(write(gzip.compress(b"a,1\nb,2\n"), "data.csv"))


def test_a_label_may_be_a_whole_text(write):
    (label,) = read_vector(write("label,value\n" + 200_000 * "x" + ",1\n")).labels
    assert len(label) == 200_000


def test_parquet_is_read_where_pyarrow_is_installed(tmp_path):
    pytest.importorskip("pyarrow")
    import pandas as pd

    path = tmp_path / "data"
    pd.Series([1, 2], index=["x", "y"], name="count").rename_axis("word").to_frame().to_parquet(
        path
    )
    assert read_quietly(path).labels == ("x", "y")
    pd.DataFrame({"label": ["x", None], "value": [1.0, 2.0]}).to_parquet(path)
    with pytest.raises(InvalidInput, match="row 2: the label is None"):
        read_vector(path)


def test_parquet_without_pyarrow_is_refused_with_the_remedy(write, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InvalidInput, match="needs pyarrow; install it"):
        read_vector(write(b"PAR1...PAR1"))


def test_a_missing_file_a_folder_and_a_path_below_a_file_are_refused(tmp_path):
    (tmp_path / "file").touch()
    reasons = {
        tmp_path / "missing": "No such file",
        tmp_path: "Is a directory",
        tmp_path / "file" / "data": "Not a directory",
    }
    for path, reason in reasons.items():
        with pytest.raises(InvalidInput, match=f"cannot read .*{reason}"):
            read_vector(path)


def is_vector(found):
    rows = len(found.values)
    assert found.values.shape == (rows,)
    assert found.values.dtype == np.float64
    assert np.isfinite(found.values).all()
    return found.labels is None or len(set(found.labels)) == rows == len(found.labels)


@settings(max_examples=200)
@given(st.text(st.sampled_from('ab01.,;-"#\n\r \t\0\ufeffeé日[]{}|')) | st.text())
@example('"')
@example("a,1\n\x85b,2")
@pytest.mark.filterwarnings("ignore::bandits.tables.FileWarning")
def test_any_text_gives_a_vector_or_a_refusal(write, text):
    path = write(text.encode("utf-8", "surrogatepass"))
    try:
        found = read_vector(path)
    except InvalidInput:
        return
    assert is_vector(found)
    assert len(found.values) >= 1


@given(st.binary())
@pytest.mark.filterwarnings("ignore::bandits.tables.FileWarning")
def test_any_bytes_give_a_vector_or_a_refusal(write, content):
    path = write(content)
    with contextlib.suppress(InvalidInput):
        assert is_vector(read_vector(path))


@given(st.lists(st.tuples(st.integers(0, len(SIX) - 1), st.binary(min_size=1, max_size=3))))
@pytest.mark.filterwarnings("ignore::bandits.tables.FileWarning")
def test_any_damaged_npy_file_gives_a_vector_or_a_refusal(write, damage):
    content = bytearray(SIX)
    for place, replacement in damage:
        content[place : place + len(replacement)] = replacement
    path = write(bytes(content), "data.npy")
    with contextlib.suppress(InvalidInput):
        assert is_vector(read_vector(path))


LABELS = st.text(
    st.sampled_from("ab #\",;|\t\n'é日[{%1.")
    | st.characters(codec="utf-8", exclude_characters="\r\0")
).map(str.strip)
NUMBERS = (st.floats(-1e6, 1e6) | st.integers(0, 50).map(float)).filter(
    lambda number: not THOUSANDS.fullmatch(str(number))  # which is ambiguous beside ;
)


@given(st.dictionaries(LABELS.filter(bool), NUMBERS, min_size=1), st.sampled_from(",;\t|"))
def test_a_table_of_any_dialect_is_read_back(write, arms, delimiter):
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter, quoting=csv.QUOTE_NONNUMERIC)
    writer.writerows([("label", "value"), *arms.items()])
    found = read_quietly(write(text.getvalue()))
    assert found.labels == tuple(arms)
    assert found.values.tolist() == list(arms.values())


@given(st.dictionaries(LABELS.filter(bool), NUMBERS, min_size=1))
def test_json_lines_are_read_back(write, arms):
    lines = [json.dumps({"label": label, "value": value}) for label, value in arms.items()]
    found = read_quietly(write("\n".join(lines)))
    assert found.labels == tuple(arms)
    assert found.values.tolist() == list(arms.values())


def vector(values, labels=None):
    return Vector(np.array(values, float), None if labels is None else tuple(labels))


def test_align_reorders_by_label():
    found = align(vector([1, 2, 3], "cab"), "reward", vector([4, 5, 6], "abc"))
    assert found.values.tolist() == [2, 3, 1]
    assert found.labels == ("a", "b", "c")


@pytest.mark.parametrize(("own", "others"), [(None, "abc"), ("abc", None), (None, None)])
def test_align_keeps_the_order_where_a_file_has_no_labels(own, others):
    found = align(vector([1, 2, 3], own), "reward", vector([4, 5, 6], others))
    assert found.values.tolist() == [1, 2, 3]
    assert found.labels == (None if own is others is None else ("a", "b", "c"))


def test_align_refuses_different_labels_and_different_lengths():
    with pytest.raises(InvalidInput, match="reward has no arm 'c', which reference has"):
        align(vector([1, 2, 3], "abd"), "reward", vector([1, 2, 3], "abc"))
    with pytest.raises(InvalidInput, match="reward has 2 arms but reference has 3"):
        align(vector([1, 2], "ab"), "reward", vector([1, 2, 3], "abc"))
