"""Files: what is read exactly, what is refused with its line, and that results appear whole."""

import contextlib
import csv
import io
import os
import pickle

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bandits.files import Vector, align, make_folder, read_vector, whole_file
from theory.checks import InvalidInput


@pytest.fixture
def write(tmp_path):
    """Write bytes or text to a file of the given ending and return its path."""

    def put(content, name="data.csv"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return put


def npy(array, **options):
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("text", "values", "labels"),
    [
        ("0.25\n0.75\n", [0.25, 0.75], None),
        ("0.25\n0.75", [0.25, 0.75], None),
        ("value\n0.25\n0.75\n", [0.25, 0.75], None),
        ("a,0.25\nb,0.75\n", [0.25, 0.75], ("a", "b")),
        ("arm,value\na,0.25\nb,0.75\n", [0.25, 0.75], ("a", "b")),
        ("# made by hand\n\narm,value\na,0.25\n\n  # half-way\nb,0.75\n", [0.25, 0.75], ("a", "b")),
        ("\ufeffa,0.25\nb,0.75\n", [0.25, 0.75], ("a", "b")),
        ("\ufeff0.25\n0.75\n", [0.25, 0.75], None),
        ("a,0.25\r\nb,0.75\r\n", [0.25, 0.75], ("a", "b")),
        ('"a, ""b""",0.25\n"c",0.75\n', [0.25, 0.75], ('a, "b"', "c")),
        ('"two\nlines",0.25\nb,0.75\n', [0.25, 0.75], ("two\nlines", "b")),
        (" a , 0.25\n b,\t0.75 \n", [0.25, 0.75], ("a", "b")),
        ("1,0.25\n2,0.75\n", [0.25, 0.75], ("1", "2")),
        ("ä,-1e-3\n日,+2E2\n", [-1e-3, 200.0], ("ä", "日")),
        ("3\nnan\n-inf\n", [3, np.nan, -np.inf], None),
    ],
)
def test_a_csv_file_is_read_exactly(write, text, values, labels):
    found = read_vector(write(text))
    np.testing.assert_array_equal(found.values, values)
    assert found.values.dtype == np.float64
    assert found.labels == labels


@pytest.mark.parametrize(
    ("text", "line", "why"),
    [
        ("0.25\nx\n", 2, "'x' is not a number"),
        ("0.25\n0,75\n", 2, "2 columns"),
        ("a,0.25\nb,50%\n", 2, "'50%' is not a number"),
        ("a,0.25\n\n# skipped\nb,\n", 4, "'' is not a number"),
        ("arm,value\r\na,0.25\r\nb;0.75\r\n", 3, "'b;0.75' is not a number"),
        ("a,0.25\nb,0.5,0.25\n", 2, "3 columns"),
        ("a,0.25\n0.75\n", 2, "1 columns"),
        ("x,y,0.25\n", 1, "3 columns"),
        ("a,0.25\nb,0.5\na,0.25\n", 3, "the arm 'a' stands there twice"),
        ('"two\nlines",0.25\nb,x\n', 3, "'x' is not a number"),
        ("first\nsecond\n0.5\n", 2, "'second' is not a number"),
        ('a,0.25\n"b"c,0.75\nd,0\n', 2, "not plain CSV text"),
        ('a,0.25\nb,0.75\n"c,0.5\n', 3, "not plain CSV text"),
        (b"".join(b"arm %d,1\n" % i for i in range(5)) + b"\xe9,1\n", 6, "not plain CSV text"),
    ],
)
def test_a_malformed_line_is_refused_with_its_number(write, text, line, why):
    path = write(text)
    with pytest.raises(InvalidInput) as refused:
        read_vector(path)
    assert str(refused.value).startswith(f"{path}, line {line}: ")
    assert why in str(refused.value)


@pytest.mark.parametrize("first", ["a,", "a,0.25%", "a,0.2.5", "0x10", "0.25 0.5"])
def test_a_malformed_first_arm_is_not_taken_for_a_header(write, first):
    rest = "b,0.5\nc,0.5\n" if "," in first else "0.5\n0.5\n"
    with pytest.raises(InvalidInput, match="line 1: "):
        read_vector(write(f"{first}\n{rest}"))


@pytest.mark.parametrize("comment", ['# from "a" to b', '# first, "second" third', '# one, "two'])
def test_a_comment_may_hold_any_quotes(write, comment):
    np.testing.assert_array_equal(read_vector(write(f"0.5\n{comment}\n0.5\n")).values, [0.5, 0.5])


def test_a_quoted_label_that_starts_with_a_hash_is_an_arm(write):
    found = read_vector(write('"#jax",0.25\n"#xla",0.75\n'))
    assert found.labels == ("#jax", "#xla")


@pytest.mark.parametrize("text", ["", "\n\n", "# nothing\n", "arm,value\n", "\ufeff", ",\n"])
def test_a_csv_file_without_arms_is_refused(write, text):
    with pytest.raises(InvalidInput, match="holds no arms"):
        read_vector(write(text))


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", ">f8", "i4", "u1", np.longdouble])
def test_any_real_npy_vector_is_read_as_float64(write, dtype):
    found = read_vector(write(npy(np.array([1, 2, 3], dtype)), "data.npy"))
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
    with pytest.raises(InvalidInput, match="must hold a one-dimensional array of numbers"):
        read_vector(write(npy(array), "data.npy"))


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


SIX = npy(np.arange(6.0))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n",
        b"not an array",
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
def test_a_file_that_is_no_npy_array_is_refused_and_never_unpickled(
    write, content, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    path = write(content, "data.npy")
    with pytest.raises(InvalidInput, match=r"data\.npy"):
        read_vector(path)
    assert os.listdir(tmp_path) == ["data.npy"]


def test_a_zip_of_arrays_under_the_name_of_one_is_refused(write):
    buffer = io.BytesIO()
    np.savez(buffer, a=np.ones(2))
    with pytest.raises(InvalidInput, match=r"data\.npy"):
        read_vector(write(buffer.getvalue(), "data.npy"))


@pytest.mark.parametrize("ending", [".csv", ".npy", ".txt"])
def test_a_missing_file_a_folder_and_a_path_below_a_file_are_refused(tmp_path, ending):
    folder = tmp_path / f"folder{ending}"
    folder.mkdir()
    (tmp_path / "file").touch()
    reasons = {
        tmp_path / f"missing{ending}": "No such file",
        folder: "Is a directory",
        tmp_path / "file" / f"data{ending}": "Not a directory",
    }
    for path, reason in reasons.items():
        with pytest.raises(InvalidInput, match=f"cannot read .*{reason}"):
            read_vector(path)


@pytest.mark.parametrize("name", ["data", "data.json", "data.npz"])
def test_another_file_ending_is_refused_with_what_is_allowed(write, name):
    with pytest.raises(InvalidInput, match=r"must end in \.csv, \.txt or \.npy"):
        read_vector(write("0.5\n0.5\n", name))


def is_vector(found):
    rows = len(found.values)
    assert found.values.shape == (rows,)
    assert found.values.dtype == np.float64
    return found.labels is None or len(set(found.labels)) == rows == len(found.labels)


@settings(max_examples=200)
@given(st.text(st.sampled_from('ab01.,;-"#\n\r \t\0\ufeffeé日')) | st.text())
@example('"')
@example("a,1\n\x85b,2")
def test_any_text_gives_a_vector_or_a_refusal(write, text):
    path = write(text.encode("utf-8", "surrogatepass"))
    try:
        found = read_vector(path)
    except InvalidInput:
        return
    assert is_vector(found)
    assert len(found.values) >= 1


@given(st.binary(), st.sampled_from(["data.csv", "data.npy"]))
def test_any_bytes_give_a_vector_or_a_refusal(write, content, name):
    path = write(content, name)
    with contextlib.suppress(InvalidInput):
        assert is_vector(read_vector(path))


@given(st.lists(st.tuples(st.integers(0, len(SIX) - 1), st.binary(min_size=1, max_size=3))))
def test_any_damaged_npy_file_gives_a_vector_or_a_refusal(write, damage):
    content = bytearray(SIX)
    for place, replacement in damage:
        content[place : place + len(replacement)] = replacement
    path = write(bytes(content), "data.npy")
    with contextlib.suppress(InvalidInput):
        assert is_vector(read_vector(path))


@given(
    st.dictionaries(
        st.text(st.characters(codec="utf-8", exclude_characters="\r\0"))
        .map(str.strip)
        .filter(lambda label: not label.startswith("#")),
        st.floats(allow_nan=False),
        min_size=1,
    ),
    st.booleans(),
)
def test_what_a_csv_writer_wrote_is_read_back(write, arms, header):
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerows([("arm", "value")] * header)
    writer.writerows(arms.items())
    found = read_vector(write(text.getvalue()))
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


def test_a_whole_file_replaces_its_target_only_when_complete(tmp_path):
    path = tmp_path / "data.txt"
    path.write_text("old")
    with whole_file(path) as part:
        part.write_text("new")
        assert part.parent == tmp_path
        assert part.suffix == ".txt"
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["data.txt"]


def test_a_reader_of_the_old_file_never_sees_a_part_of_the_new_one(tmp_path):
    path = tmp_path / "data.txt"
    path.write_text("old")
    with path.open() as reader:
        with whole_file(path) as part:
            part.write_text("new")
        assert reader.read() == "old"


def test_a_whole_file_has_the_permissions_of_an_ordinary_one(tmp_path):
    with whole_file(tmp_path / "whole"):
        pass
    (tmp_path / "ordinary").touch()
    assert (tmp_path / "whole").stat().st_mode == (tmp_path / "ordinary").stat().st_mode


@pytest.mark.parametrize("error", [RuntimeError, OSError, KeyboardInterrupt])
@pytest.mark.parametrize("exists", [True, False])
def test_a_failed_write_leaves_the_folder_as_it_was(tmp_path, error, exists):
    path = tmp_path / "data.txt"
    if exists:
        path.write_text("old")

    def fail():
        with whole_file(path) as part:
            part.write_text("half")
            raise error("no more")

    with pytest.raises(InvalidInput if error is OSError else error):
        fail()
    assert [p.read_text() for p in tmp_path.iterdir()] == ["old"] * exists


def test_a_file_that_cannot_be_written_is_refused_in_one_sentence(tmp_path):
    (tmp_path / "taken").mkdir()
    with pytest.raises(InvalidInput, match=r"cannot write .*taken"), whole_file(tmp_path / "taken"):
        pass
    assert os.listdir(tmp_path) == ["taken"]
    missing = tmp_path / "missing" / "data.txt"
    with pytest.raises(InvalidInput, match=r"cannot write .*missing"), whole_file(missing):
        pass


def test_a_folder_is_made_with_its_parents_and_left_empty(tmp_path):
    for _ in range(2):
        make_folder(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("kept")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InvalidInput, match=f"cannot write to the folder {path}: .*choose"):
            make_folder(path)
    assert (tmp_path / "file").read_text() == "kept"
