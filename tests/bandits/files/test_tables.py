"""Tables: what is read exactly, what is said, and what is refused with its line."""

import csv
import gzip
import io
import json
import os
import pickle
import subprocess
import sys
import threading

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bandits.files.tables import THOUSANDS, FileWarning, Vector, align, read_vector
from theory.checks import InvalidInput


@pytest.fixture
def read(tmp_path):
    """Write text or bytes to a file and read it; a warning is an error where no test expects it."""

    def do(content, name="data"):
        bare = content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass")
        (tmp_path / name).write_bytes(bare)
        return read_vector(tmp_path / name)

    return do


@pytest.fixture
def refusal(read):
    """Read what must be refused; return the refusal from the file's name on."""

    def do(content):
        with pytest.raises(InvalidInput) as refused:
            read(content)
        return str(refused.value).partition("data")[2]

    return do


def npy(array, **options):
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


def as_given(vector):
    """Return a dictionary of labels and values, or a list of values."""
    assert vector.values.dtype == np.float64
    values = vector.values.tolist()
    if vector.labels is None:
        return values
    assert len(set(vector.labels)) == len(vector.labels)
    return dict(zip(vector.labels, values, strict=True))


AB = {"a": 0.25, "b": 0.75}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0.25\n0.75\n", [0.25, 0.75]),
        ("value\n0.25\n0.75", [0.25, 0.75]),
        ("a,0.25\nb,0.75\n", AB),
        ("arm,value\na,0.25\nb,0.75\n", AB),
        ("count,letter\n3,x\n4,y\n", {"x": 3, "y": 4}),
        ("Log-Prob,Token\n-3,x\n-4,y\n", {"x": -3, "y": -4}),
        (",count\nx,3\ny,4\n", {"x": 3, "y": 4}),
        ("\ufeffa,0.25\nb,0.75\n", AB),
        ("a,0.25\r\n\r\nb,0.75\r\n", AB),
        ("a,0.25\rb,0.75\r", AB),
        ('"a, ""b""",0.25\n"c",0.75\n', {'a, "b"': 0.25, "c": 0.75}),
        ('"two\nlines",0.25\n"x\n#y",0.75\n', {"two\nlines": 0.25, "x\n#y": 0.75}),
        (" a b , 0.25\n b,\t0.75 \n", {"a b": 0.25, "b": 0.75}),
        ("a,\t0.25\nb,\t0.75\n", AB),
        ("1,-1e-3\n日,+2E2\nx,.5\ny,5.\n", {"1": -1e-3, "日": 200.0, "x": 0.5, "y": 5.0}),
        ("NA,1\nnan,2\n", {"NA": 1, "nan": 2}),
        ("x,2020\ny,2021\n", {"x": 2020, "y": 2021}),
        # A dialect is decided for the whole file.
        ("x;0,2\ny;0,8\n", {"x": 0.2, "y": 0.8}),
        ("label;count\nx, y;2\nz;8\n", {"x, y": 2, "z": 8}),
        ("x\t1,5\ny\t2\n", {"x": 1.5, "y": 2}),
        ("x|1.5\ny|2\n", {"x": 1.5, "y": 2}),
        ("x;1,250\ny;0,5\n", {"x": 1.25, "y": 0.5}),
        ("x;0,125\ny;0,875\n", {"x": 0.125, "y": 0.875}),
        ("x;y,2\nz;w,8\n", {"x;y": 2, "z;w": 8}),
        ("x|y,2\nz,8\n", {"x|y": 2, "z": 8}),
        ('"x;y";2\n"z";8\n', {"x;y": 2, "z": 8}),
        ('"0,25"\n"0,75"\n', [0.25, 0.75]),
        # JSON, JSON lines, and what only begins so.
        ("[0.25, 0.75]", [0.25, 0.75]),
        ('{"x": 1, "y": 2e0}', {"x": 1, "y": 2}),
        ('[\n {"label": "x", "value": 1},\n {"label": " y", "value": 2}\n]', {"x": 1, "y": 2}),
        ('{"prob": 0.1, "id": 7}\n\n{"prob": 0.9, "id": 8}\n', {"7": 0.1, "8": 0.9}),
        ('{"value": 1}\n{"value": 2}\n', [1, 2]),
        ('[["x", 1], ["y", 2]]', {"x": 1, "y": 2}),
        ('["x\u2028z", 1]\n["y", 2]\n', {"x\u2028z": 1, "y": 2}),
        ("[UNK],1\n{x},2\n", {"[UNK]": 1, "{x}": 2}),
        # A hash may begin an arm.
        ("#x,1\n#y,2\nz,3\n", {"#x": 1, "#y": 2, "z": 3}),
        ("#x,1\n#y,2\n", {"#x": 1, "#y": 2}),
        ("tag;count\n#x;1,5\n z;3\n", {"#x": 1.5, "z": 3}),
        ('"#x",1\n"# y",2\n', {"#x": 1, "# y": 2}),
        ("label,value\n" + 200_000 * "x" + ",1\n", {200_000 * "x": 1}),
        *((npy(np.array([1, 2], x)), [1, 2]) for x in ("f2", ">f8", "i4", "u1", np.longdouble)),
    ],
)
def test_a_file_is_read_exactly(read, text, expected):
    assert as_given(read(text)) == expected


@pytest.mark.parametrize("name", ["data", "DATA.CSV", "data.tsv", "data.npy", "data.json"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_the_content_decides_the_format(read, name, encoding):
    assert read("é,1\nb,2\n".encode(encoding), name).labels == ("é", "b")


def test_a_pipe_and_standard_input_are_read(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_text, args=("a,1\nb,2\n",))
    writer.start()
    assert read_vector(path).labels == ("a", "b")
    writer.join()
    code = (
        "from pathlib import Path; from bandits.files.tables import read_vector; "
        "print(read_vector(Path('/dev/stdin')).values.tolist())"
    )
    run = subprocess.run([sys.executable, "-c", code], input=b"[1, 2]", capture_output=True)
    assert run.stdout == b"[1.0, 2.0]\n"


@pytest.mark.parametrize(
    ("text", "labels", "said"),
    [
        ("# by hand\nx,1\ny,2\n", ("x", "y"), "skipped 1 comment line (1)"),
        ("# label,count\nx,1\n\n # half-way\ny,2\n", ("x", "y"), "skipped 2 comment lines (1, 4)"),
        ("#label,count\n#x,1\n#y,2\n", ("#x", "#y"), "skipped 1 comment line (1)"),
        ("# May 3, 2020\nlabel,count\n#x,1\ny,2\n", ("#x", "y"), "skipped 1 comment line (1)"),
        ('# "x" to y\nx,1\n# one, "two\ny,2\n', ("x", "y"), "skipped 2 comment lines (1, 3)"),
        ("# total, 3\nx,1\ny,2\n", ("# total", "x", "y"), "read 1 line (1) as arms"),
        ("id,group,count\nx,g,1\n", ("x",), "took the columns id, count; dropped group"),
        ("land,area\nx,1\ny,2\n", ("x", "y"), "took line 1, 'land,area', for the header"),
    ],
)
def test_what_is_left_out_or_guessed_is_said(read, tmp_path, text, labels, said):
    with pytest.warns(FileWarning) as caught:
        assert read(text).labels == labels
    (warning,) = caught
    assert str(warning.message).startswith(f"{tmp_path / 'data'}: {said}")


MISSING = ["NA", "N/A", "nan", "NaN", "null", "None", "-", "?", "", "inf", "-inf", "#N/A", "TBD"]
ALMOST = ["1_000", "1 000", "0x10", "１２", "½", "5€", "1.2.3", "--5", "1e", "ca. 5", "O.5", "1 2"]


@pytest.mark.parametrize("cell", MISSING + ALMOST)
@pytest.mark.parametrize("line", [1, 2])
@pytest.mark.parametrize("label", ["z,", ""])
def test_what_is_no_number_is_refused_on_any_line(refusal, cell, line, label):
    rows = ["x,0.5", "y,0.5"] if label else ["0.5", "0.5"]
    rows.insert(line - 1, label + (cell or '""'))
    if cell or label:  # a blank line does not count
        said = refusal("\n".join(rows))
        assert said.startswith(f", line {line}: ")
        assert "is not a number" in said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("0.25\n0,75\n", "line 2: 2 columns, but line 1 has 1"),
        ("a,0.25\nb,50%\n", "line 2: '50%' is a percentage"),
        ("arm,value\r\na,0.25\r\nb;0.75\r\n", "line 3: 1 columns, but line 1 has 2"),
        ("a,0.25\nb,0.5,0.25\n", "line 2: 3 columns"),
        ("label,value\na,0.25,\nb,0.75\n", "line 2: 3 columns and ends in ','"),
        ("a,0.25,\nb,0.75,\n", "line 1: 3 columns (a, 0.25, ), the last of them empty"),
        ("label,value,\na,1,\nb,2,\n", "line 2: 3 columns (label, value, ), the last of them"),
        ("0.25,\n0.75,\n", "line 1: '' is not a number"),
        ("x,y,0.25\n", "line 1: 3 columns (x, y, 0.25)"),
        ("id,name,count\nx,y,1\n", "line 1: 3 columns (id, name, count)"),
        ("prob,reward\n0.2,1\n0.8,0\n", "line 2: 2 columns (prob, reward)"),
        ("a,0.25\nb,0.5\na,0.25\n", "line 3: the arm 'a' stands there twice, also in line 1"),
        ("0,25\n0,75\n", "line 2: the arm '0' … also in line 1; write decimals with a point"),
        (",1\nb,2\n", "line 1: the label is ''"),
        (",0\na,1\nb,2\n", "line 1: the label is ''"),
        ('"two\nlines",0.25\nb,x\n', "line 3: 'x' is not a number"),
        ("first\nsecond\n0.5\n", "line 2: 'second' is not a number"),
        ('a,0.25\n"b"c,0.75\nd,0\n', "line 2: it is not plain CSV text"),
        ('a,0.25\nb,0.75\n"c,0.5\n', "line 3: it is not plain CSV text"),
        (b"arm,1\n" * 5 + b"\xe9,1\n", "line 6: it is not text in UTF-8"),
        ("a,1\nb,2\n".encode("utf-16-le"), "line 1: it is not text in UTF-8"),
        ("a,1e999\nb,1\n", "line 1: '1e999' is not a finite number"),
        ("land,2020\nx,5\ny,6\n", "line 1: 2020 may be a value or the year of a header"),
        ("2020\n5\n6\n", "line 1: … add a header line above it, such as label,value"),
        ("x;0.5\ny;0,5\n", "line 2: '0,5' has another decimal sign than '0.5' in line 1"),
        ("x;0,5\ny;1\nz;0.5\n", "line 3: '0.5' has another decimal sign than '0,5' in line 1"),
        ("x;1.234,5\ny;1\n", "line 1: '1.234,5' is not a number"),
        ("x;12\ny;1,234\n", "line 2: the comma in '1,234' may be decimals or thousands"),
        ("x;12\ny;1.234\n", "line 2: the point in '1.234' may be decimals or thousands"),
        ('x,"1,234"\ny,5\n', "line 1: '1,234' has a comma; write decimals with a point"),
        ("x;0,25\ny;O,3\nz;0,45\n", "line 2: 'O,3' is not a number"),
        ("label,value\nx;0,25\ny;0,75\n", "line 2: 'x;0' ends in a number after another delimiter"),
        ('{"value": 1, "label": "x"}\n{"value": 2}\n', "line 2: the label is None"),
        ('{"value": 1}\n{"value": }\n', "line 2: it is not JSON"),
        ("[\n1,\n2,,\n3]", "line 3: it is not JSON"),
        ('{"value": 1}\n[2]\n', "line 2: it is no object, as others are"),
        ("[1, NaN]", "record 2: 'NaN' is not a number"),
        ("[1, true]", "record 2: True is not a number"),
        ('{"x": 1, "y": null}', "record 2: None is not a number"),
        ('{"x": 1, "x": 2}', "the key 'x' stands there twice"),
        ('[{"label": null, "value": 1}]', "record 1: the label is None"),
        ('[{"label": "\\ud800", "value": 1}]', "record 1: the label is None"),
        ('[["x", 1], ["y"]]', "record 2: 1 columns, but the first row has 2"),
        ('[[1, "x"], [2, "y"]]', "record 1: 'x' is not a number"),
        ("[" * 10**5, ": maximum recursion"),
        *((text, " holds no arms") for text in ["", "\n\n", "arm,value\n", "\ufeff", ",\n"]),
        *((text, " holds no arms") for text in ["[]", "{}", "[{}]"]),
        (npy(np.array([1, np.nan])), "entry 1: nan is not a finite number"),
        (npy(np.ones((2, 2))), " must hold a one-dimensional array of numbers"),
        (npy(np.float64(1)), " must hold a one-dimensional array of numbers"),
        (npy(np.array(["a", "b"])), " holds <U1; it must hold numbers"),
        (npy(np.array([1j, 2])), " holds complex128; it must hold numbers"),
        (npy(np.array([True, False])), " holds bool; it must hold numbers"),
        (npy(np.array([(1, 2.0)], "i4,f8")), "; it must hold numbers"),
        (npy(np.array(["2020", "2021"], "M8[Y]")), "; it must hold numbers"),
        (b"PK\x03\x04" + bytes(50), " is a zip archive, as .npz and .xlsx are; unpack it"),
        (gzip.compress(b"a,1\nb,2\n"), " is compressed by gzip; unpack it"),
    ],
)
@pytest.mark.filterwarnings("ignore::bandits.files.tables.FileWarning")
def test_what_is_malformed_or_ambiguous_is_refused_with_its_place(refusal, text, said):
    found = refusal(text)
    assert all(part in found for part in said.split(" … "))


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


SIX = npy(np.arange(6.0))


@pytest.mark.parametrize(
    "content",
    [
        SIX[:40],
        SIX[:-1],
        pickle.dumps(Bomb()),
        npy(np.array([Bomb()]), allow_pickle=True),
        SIX.replace(b"(6,)", b"(-6,)"),
        SIX.replace(b"{'descr", b" 'descr"),
        SIX.replace(b"(6,), }" + 11 * b" ", b"(6" + 11 * b"0" + b",), }"),
    ],
)
def test_a_damaged_file_is_refused_and_never_unpickled(refusal, content, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert refusal(content)
    assert os.listdir(tmp_path) == ["data"]


def test_parquet_is_read_where_pyarrow_is_installed(tmp_path):
    pytest.importorskip("pyarrow")
    import pandas as pd

    path = tmp_path / "data"
    pd.DataFrame({"word": ["x", "y"], "count": [1, 2]}).set_index("word").to_parquet(path)
    assert as_given(read_vector(path)) == {"x": 1, "y": 2}
    pd.DataFrame({"label": ["x", None], "value": [1.0, 2.0]}).to_parquet(path)
    with pytest.raises(InvalidInput, match="row 2: the label is None"):
        read_vector(path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InvalidInput, match="it is a damaged Parquet file"):
        read_vector(path)


def test_parquet_without_pyarrow_is_refused_with_the_remedy(refusal, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert "needs pyarrow; install it" in refusal(b"PAR1...PAR1")


def test_a_missing_file_a_folder_and_a_path_below_a_file_are_refused(tmp_path):
    (tmp_path / "file").touch()
    reasons = {"missing": "No such file", ".": "Is a directory", "file/data": "Not a directory"}
    for path, reason in reasons.items():
        with pytest.raises(InvalidInput, match=f"cannot read .*{reason}"):
            read_vector(tmp_path / path)


def require_vector_or_refusal(read, content):
    try:
        found = as_given(read(content))
    except InvalidInput:
        return
    assert found or isinstance(content, bytes)
    assert np.isfinite(list(found.values() if isinstance(found, dict) else found)).all()


@settings(max_examples=200)
@given(st.text(st.sampled_from('ab01.,;-"#\n\r \t\0\ufeffeé日[]{}|')) | st.text() | st.binary())
@example('"')
@example("a,1\n\x85b,2")
@pytest.mark.filterwarnings("ignore::bandits.files.tables.FileWarning")
def test_any_text_or_bytes_give_a_vector_or_a_refusal(read, content):
    require_vector_or_refusal(read, content)


@given(st.lists(st.tuples(st.integers(0, len(SIX) - 1), st.binary(min_size=1, max_size=3))))
@pytest.mark.filterwarnings("ignore::bandits.files.tables.FileWarning")
def test_any_damaged_npy_file_gives_a_vector_or_a_refusal(read, damage):
    content = bytearray(SIX)
    for place, replacement in damage:
        content[place : place + len(replacement)] = replacement
    require_vector_or_refusal(read, bytes(content))


LABELS = st.text(
    st.sampled_from("ab #\",;|\t\n'é日[{%1.")
    | st.characters(codec="utf-8", exclude_characters="\r\0")
).map(str.strip)
NUMBERS = (st.floats(-1e6, 1e6) | st.integers(0, 50).map(float)).filter(
    lambda number: not THOUSANDS.fullmatch(str(number))  # which is ambiguous beside ;
)
ARMS = st.dictionaries(LABELS.filter(bool), NUMBERS, min_size=1)


@given(ARMS, st.sampled_from(",;\t|"))
def test_a_table_of_any_dialect_is_read_back(read, arms, delimiter):
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter, quoting=csv.QUOTE_NONNUMERIC)
    writer.writerows([("label", "value"), *arms.items()])
    assert as_given(read(text.getvalue())) == arms


@given(ARMS)
def test_json_lines_are_read_back(read, arms):
    lines = [json.dumps({"label": label, "value": value}) for label, value in arms.items()]
    assert as_given(read("\n".join(lines))) == arms


def vector(values, labels=None):
    return Vector(np.array(values, float), None if labels is None else tuple(labels))


@pytest.mark.parametrize(
    ("own", "others", "values", "labels"),
    [
        ("cab", "abc", [2, 3, 1], tuple("abc")),
        (None, "abc", [1, 2, 3], tuple("abc")),
        ("abc", None, [1, 2, 3], tuple("abc")),
        (None, None, [1, 2, 3], None),
    ],
)
def test_align_reorders_by_label_where_both_files_have_them(own, others, values, labels):
    found = align(vector([1, 2, 3], own), "reward", vector([4, 5, 6], others))
    assert (found.values.tolist(), found.labels) == (values, labels)


@pytest.mark.parametrize(
    ("own", "said"),
    [("abd", "reward has no arm 'c', which reference has"), ("ab", "reward has 2 arms but")],
)
def test_align_refuses_different_labels_and_different_lengths(own, said):
    with pytest.raises(InvalidInput, match=said):
        align(vector(range(len(own)), own), "reward", vector([1, 2, 3], "abc"))
