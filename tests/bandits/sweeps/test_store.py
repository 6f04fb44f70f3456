"""A store's chunks cover the grid once; what is broken is redone, what is foreign is refused."""

import json
import math
import os
import shutil
import time
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import given
from hypothesis import strategies as st

from bandits.sweeps import static, store
from bandits.sweeps.grid import make_grid
from bandits.sweeps.store import CHUNK_BYTES, CHUNKS, LEAST_CHUNK, LEFT_BEHIND, Layout
from bandits.sweeps.stored import stored_sweep
from theory.checks import InvalidInput

AXES = {"x": np.linspace(0.5, 2.0, 4), "size": static([1, 2]), "y": np.arange(6.0)}


def times(x, y, size):
    return {"product": x * y * size, "powers": x ** jnp.arange(3.0)}


def swept(path, **options):
    whole = {"identity": {"name": "test"}, "dims": {"product": [], "powers": ["power"]}}
    return stored_sweep(times, AXES, path, chunk_runs=6, **(whole | options))


@pytest.fixture
def path(tmp_path):
    """Of a whole store, of eight chunks of six runs."""
    assert swept(tmp_path / "a.zarr").run() == (48, 0, 48, 0, 0)
    return tmp_path / "a.zarr"


def layout_of(axes, results, chunk_runs=None):
    def run(**arguments):
        raise AssertionError

    return Layout.fit(make_grid(run, axes, {}), results, chunk_runs)


def scalar(dtype=np.float32, shape=()):
    return jax.ShapeDtypeStruct(shape, dtype)


lengths = st.lists(st.tuples(st.integers(1, 6), st.booleans()), min_size=1, max_size=4)


@given(lengths, st.none() | st.integers(1, 2000))
def test_chunks_hold_every_run_once_in_boxes_that_follow_on(lengths, chunk_runs):
    axes = {
        f"axis{i}": static(range(n)) if is_static else np.arange(float(n))
        for i, (n, is_static) in enumerate(lengths)
    }
    layout = layout_of(axes, {"y": scalar()}, chunk_runs)
    numeric = tuple(n for n, is_static in lengths if not is_static)
    seen = np.zeros(layout.grid.shape, int)
    chunks = list(layout.chunks())
    assert len(chunks) == layout.num_chunks
    ends = {}
    for chunk in chunks:
        seen[chunk.box] += 1
        assert seen[chunk.box].shape == chunk.shape
        assert chunk.first == ends.get(chunk.place, 0)
        ends[chunk.place] = chunk.last
        # The runs of the box in the order of the arrays are the runs in the order of the program.
        if numeric:
            runs = np.arange(math.prod(numeric)).reshape(numeric)
            box = tuple(part for part, at in zip(chunk.box, chunk.place, strict=True) if at is None)
            np.testing.assert_array_equal(runs[box].ravel(), np.arange(chunk.first, chunk.last))
        assert chunk.last - chunk.first <= max(chunk_runs or LEAST_CHUNK, 1)
        # A chunk is a chunk of the arrays, so that no two write one file.
        for part, length in zip(chunk.box, layout.chunk_shape, strict=True):
            assert part.start % length == 0
            assert part.stop - part.start <= length
    assert (seen == 1).all()
    assert set(ends.values()) == {math.prod(numeric)}
    assert len(ends) == layout.num_programs


@given(st.integers(1, 10**6), st.integers(1, 1000), st.integers(1, 10**7))
def test_chunks_are_of_bounded_bytes_and_neither_few_nor_tiny(first, second, numbers):
    layout = layout_of({"a": np.zeros(first), "b": np.zeros(second)}, {"y": scalar()})
    layout = Layout.fit(layout.grid, {"y": scalar(np.float32, (numbers,))})
    runs = math.prod(layout.chunk_shape)
    assert runs == 1 or runs * numbers * 4 <= CHUNK_BYTES
    total = first * second
    assert runs <= max(LEAST_CHUNK, math.ceil(total / CHUNKS))


@pytest.mark.parametrize("dtype", [np.int32, np.bool_, np.float64])
def test_chunks_of_eight_bytes_a_number_are_bounded_too(dtype):
    layout = layout_of({"a": np.zeros(1000)}, {"y": scalar(dtype, (10_000,))})
    assert math.prod(layout.chunk_shape) * 10_000 * 8 <= CHUNK_BYTES


def test_the_number_of_bytes_is_that_of_the_arrays(path):
    layout = swept(path).layout
    group = zarr.open_group(path, mode="r")
    assert layout.num_bytes == sum(group[name].nbytes for name in layout.results)
    assert layout.num_chunks == len(list(layout.chunks())) == 8


def test_a_million_runs_are_few_chunks_however_long_the_axes(tmp_path):
    layout = layout_of({"a": np.zeros(1000), "b": np.zeros(1000)}, {"y": scalar()})
    assert CHUNKS / 2 <= layout.num_chunks <= 2 * CHUNKS


def corrupt(path, how):
    held = path.read_bytes()
    if how == "deleted":
        path.unlink()
        return
    middle = bytes([held[len(held) // 2] ^ 1])
    path.write_bytes(
        {
            "cut in half": held[: len(held) // 2],
            "cut by a byte": held[:-1],
            "empty": b"",
            "longer": held + b"\0",
            "altered": held[: len(held) // 2] + middle + held[len(held) // 2 + 1 :],
            "zero": bytes(len(held)),
            "noise": np.random.default_rng(0).bytes(len(held)),
        }[how]
    )


@pytest.mark.parametrize(
    "names", [["product/c/2/1/0"], ["powers/c/2/1/0/0"], ["product/c/3/0/0", "powers/c/3/0/0/0"]]
)
@pytest.mark.parametrize(
    "how",
    ["deleted", "cut in half", "cut by a byte", "empty", "longer", "altered", "zero", "noise"],
)
def test_a_broken_file_is_done_again_and_no_other(path, tree, names, how):
    expected = tree(path)
    for name in names:
        corrupt(path / name, how)
    assert tree(path) != expected
    assert swept(path).remaining() == (6 if how == "deleted" else 0)  # it looks at names alone
    assert swept(path).run() == (48, 42, 6, 0, 0)
    assert tree(path) == expected


def test_whatever_byte_of_a_file_is_altered_it_is_found(path):
    sweeping = swept(path)
    held = store.open_store(path, sweeping.layout, sweeping.identity)
    chunks = list(sweeping.layout.chunks())
    file = path / "product" / "c" / "2" / "1" / "0"
    altered = [c for c in chunks if c.box[:2] == (slice(2, 3), slice(1, 2))]
    whole = file.read_bytes()
    for at in range(len(whole)):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        assert held.unfinished(chunks) == altered


def test_what_a_killed_process_leaves_is_removed_once_it_is_old(path, tmp_path, tree):
    expected = tree(tmp_path)
    half = path / "product" / "c" / "2" / "1" / "0.0123456789abcdef.partial"
    made, other = tmp_path / "a.zarr.01234567.new", tmp_path / "b.zarr.01234567.new"
    for folder in (made, other):
        (folder / "product").mkdir(parents=True)
        (folder / "zarr.json").write_text("{")
    half.write_bytes(b"half")
    (path / "product" / "c" / "2" / "1" / "0").unlink()
    assert swept(path).run() == (48, 42, 6, 0, 0)
    assert half.exists()  # another process may be about to give it its name
    assert made.exists()
    for left in (half, made, other):
        os.utime(left, (0, time.time() - LEFT_BEHIND - 1))
    assert swept(path).run() == (48, 48, 0, 0, 0)
    shutil.rmtree(other)  # of another store
    assert tree(tmp_path) == expected


def test_an_unfinished_store_is_one_labelled_dataset_with_nan_where_nothing_is_done(tmp_path):
    options = {
        "coords": {"power": [0.0, 1.0, 2.0]},
        "attributes": {"product": {"units": "nats"}, "x": {"long_name": "step size"}},
    }
    path = tmp_path / "a.zarr"
    sweeping = swept(path, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        held = store.create_or_open(path, sweeping.layout, sweeping.identity, sweeping.template)
        for stage in range(2):
            found = xr.open_zarr(path).load()
            assert {name: v.dims for name, v in found.data_vars.items()} == {
                "product": ("x", "size", "y"),
                "powers": ("x", "size", "y", "power"),
            }
            for name, values in {"x": AXES["x"], "size": [1, 2], "y": range(6)}.items():
                np.testing.assert_array_equal(found[name], values)
            np.testing.assert_array_equal(found["power"], [0, 1, 2])
            assert found["product"].attrs == {"units": "nats"}
            assert found["x"].attrs == {"long_name": "step size"}
            assert int(found["product"].notnull().sum()) == 6 * stage
            assert int(found["powers"].notnull().sum()) == 18 * stage
            if stage:
                np.testing.assert_array_equal(found["product"][1, 0], np.arange(6.0))
            else:
                chunk = list(held.layout.chunks())[1]
                values = {"product": np.arange(6.0), "powers": np.ones((6, 3))}
                held.write(chunk, values)
    assert json.loads(found.attrs["modeseek"])["name"] == "test"


def test_a_store_says_what_wrote_it(path):
    said = json.loads(xr.open_zarr(path).attrs["modeseek"])
    assert said["jax"] == jax.__version__
    assert {"format", "modeseek", "device", "block_runs", "name"} <= said.keys()


def make_zarr(path, zarr_format=2, attributes=None):
    dataset = xr.Dataset({"product": ("x", [1.0, 2.0])}, attrs=attributes or {})
    dataset.to_zarr(path, zarr_format=zarr_format, consolidated=False)


@pytest.mark.parametrize(
    "make",
    [
        lambda path: path.mkdir(),
        make_zarr,
        lambda path: make_zarr(path, 3),
        lambda path: make_zarr(path, attributes={"modeseek": "not JSON"}),
        lambda path: (path.mkdir(), (path / ".zgroup").write_text("{")),
        lambda path: (path.mkdir(), (path / "notes.txt").write_text("mine")),
        lambda path: path.write_text("mine"),
        *(lambda path, a=a: make_zarr(path, attributes={"modeseek": a}) for a in (5, [1], None)),
    ],
    ids=[
        *("empty folder", "zarr", "zarr 3", "attribute", "broken", "folder", "file"),
        *("a number", "a list", "nothing"),
    ],
)
def test_what_holds_no_sweep_is_refused_and_kept(tmp_path, tree, make):
    path = tmp_path / "a.zarr"
    make(path)
    before = tree(tmp_path)
    with pytest.raises(InvalidInput, match=r"a.zarr is there and holds no sweep; choose another"):
        swept(path).run()
    assert tree(tmp_path) == before


@pytest.mark.parametrize("name", ["product", "product/zarr.json", "product/c", "zarr.json"])
def test_a_store_that_lost_a_part_is_refused_or_ends_whole(path, name):
    expected = xr.open_zarr(path).load()
    gone = path / name
    shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    try:
        swept(path).run()
    except InvalidInput:
        return
    with xr.open_zarr(path) as found:
        xr.testing.assert_identical(found.load(), expected)


def test_a_store_in_a_folder_that_is_missing_is_made_with_it(tmp_path):
    assert swept(tmp_path / "b" / "c" / "a.zarr").run().done == 48


@pytest.mark.parametrize(
    ("name", "message"),
    [("file/a.zarr", "cannot write .*: Not a directory"), ("a" * 300, "File name too long")],
)
def test_where_no_folder_can_be_made_that_is_said(tmp_path, name, message):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InvalidInput, match=message):
        swept(tmp_path / name).run()


def test_a_grid_larger_than_the_disk_is_refused_and_nothing_is_written(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=700)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(InvalidInput, match=r"up to 768 bytes, and .* has 700 bytes free"):
        swept(tmp_path / "a.zarr").run()
    assert not list(tmp_path.iterdir())


def test_a_begun_store_goes_on_however_little_is_free(path, monkeypatch):
    (path / "product" / "c" / "2" / "1" / "0").unlink()
    usage = shutil.disk_usage(path)._replace(free=0)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert swept(path).run().done == 6


def test_differences_are_named_by_their_keys():
    held = {"a": 1, "b": {"c": [1, 2], "d": "x"}, "e": 0}
    given = {"a": 1, "b": {"c": [1, 3], "d": "x", "f": None}, "g": 2.5}
    assert store.differences(held, given) == [
        "b.c is [1, 2] there and [1, 3] here",
        "e is 0 there and missing here",
        "g is missing there and 2.5 here",
    ]
    assert store.differences(held, held) == []


def test_a_long_difference_is_shown_shortly():
    (phrase,) = store.differences({"a": list(range(1000))}, {"a": list(range(1001))})
    assert len(phrase) < 160
    assert "1000] " in phrase
