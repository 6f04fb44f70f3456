"""A stored sweep has the bits of one in memory, however it is cut, shared, stopped or killed."""

import errno
import importlib.metadata as metadata
import json
import math
import os
import pathlib
import random
import shutil
import signal
import subprocess
import time
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rich.progress
import xarray as xr

from bandits.sweeps import programs, progress, static, store, sweep
from bandits.sweeps.programs import BLOCK_RUNS, BLOCKS_AHEAD
from bandits.sweeps.stored import stored_sweep
from theory.checks import InvalidInput

IMPORT = "from rounding import *\n"
TIDY = IMPORT + "store.LEFT_BEHIND = 0\n"


def write(path, run, axes, **options):
    return stored_sweep(run, axes, path, **{"identity": {"name": "test"}, **options}).run()


def times(x, y):
    return {"product": x * y, "powers": x ** jnp.arange(3.0)}


AXES = {"x": np.linspace(0.5, 2.0, 7), "y": np.arange(6.0)}


@pytest.mark.parametrize(("shown", "lines"), [(None, True), (False, False)])
def test_off_a_terminal_it_logs_how_far_it_is(tmp_path, monkeypatch, capfd, shown, lines):
    monkeypatch.setattr(progress, "LINES_EVERY", 0.0)
    stored_sweep(times, AXES, tmp_path / "s.zarr", identity={}, chunk_runs=21).run(progress=shown)
    assert ("42 of 42 runs, 0:00:00 left" in capfd.readouterr().err) == lines


def test_lanes_devices_and_chunks_change_no_bit_and_no_file(do, tmp_path, tree, count_chunks):
    code = IMPORT + (
        "jax.config.update('jax_enable_compilation_cache', False)\n"
        "jax.config.update('jax_num_cpu_devices', {0})\n"
        "assert jax.local_device_count() == {0}\n"
        "assert into('{0}.zarr').run().done == 500\n"
        "print(digests('{0}.zarr'))\n"
    )
    lanes = "for n in (3,): print(digests(sweep(descents, DESCENTS, **dim_names,"
    lanes += " devices=jax.local_devices() * n)))\n"
    cuts = "for n in (3,):\n"
    cuts += "    into(f'{n}.cut', chunk_runs=n).run(); print(digests(f'{n}.cut'))\n"
    cuts += "print(digests(sweep(descents, DESCENTS, **dim_names)))\n"
    found = []
    for devices, more in ((1, lanes + cuts), (2, ""), (8, "")):
        status, out, problems = do(code.format(devices) + more)
        assert (status, problems) == (0, "")
        found += out.splitlines()
        assert tree(tmp_path / "1.zarr") == tree(tmp_path / f"{devices}.zarr")
    assert len(set(found)) == 1
    assert len(found) == (1 + 1 + 2) + 1 + 1
    assert count_chunks(tmp_path / "3.cut", "entropy") == 25 * 7


def test_a_store_killed_ten_times_at_random_ends_as_if_it_never_was(
    do, start, wait, count_chunks, tmp_path, tree
):
    code = IMPORT + "slow(0.004)\nstored('{}', chunk_runs=25).run()"
    begin = time.monotonic()
    assert do(code.format("whole.zarr")) == [0, "", ""]
    duration = time.monotonic() - begin
    expected = tree(tmp_path / "whole.zarr")
    done = count_chunks(tmp_path / "whole.zarr", "probs")
    assert done == 2 * 40
    delays = random.Random(0)
    kills, kept, path = 0, [], tmp_path / "killed.zarr"
    while kills < 10:
        child = start(code.format("killed.zarr"))
        time.sleep(delays.uniform(0, 0.8 * duration))
        os.kill(child, signal.SIGKILL)
        status, _, problems = wait(child)
        assert (status, problems) in [(-signal.SIGKILL, ""), (0, "")]
        kills += status != 0
        if path.exists():
            kept.append(count_chunks(path, "probs"))
            held = tree(path)
            assert {name: held[name] for name in held if name in expected}.items() <= (
                expected.items()
            )
        if status == 0:
            assert expected.items() <= tree(path).items()
            shutil.rmtree(path)
    assert any(0 < count < done for count in kept)  # some were killed between
    assert do(TIDY + code.format("killed.zarr")) == [0, "", ""]
    assert tree(path) == expected
    assert not list(tmp_path.glob("killed.zarr.*"))


KILL = """
import os, pathlib
replace, count = pathlib.Path.replace, 0
def dying(self, target):
    global count
    count += 1
    if count == {at} and {before}:
        os.kill(os.getpid(), signal.SIGKILL)
    moved = replace(self, target)
    if count == {at}:
        os.kill(os.getpid(), signal.SIGKILL)
    return moved
pathlib.Path.replace = dying
"""


def test_killed_before_and_after_files_get_their_names(do, tmp_path, tree):
    code = IMPORT + "print(stored('{}', chunk_runs=100).run().kept)\n"
    status, out, _ = do(
        KILL.format(at=-1, before=True) + code.format("whole.zarr") + "print(count)"
    )
    assert status == 0
    labels = int(out.split()[1]) - 2 * 20  # two results of each of twenty chunks come last
    expected = tree(tmp_path / "whole.zarr")
    for after, before, kept in [
        (-1, True, 0),  # still being made
        (1, True, 0),
        (2, True, 0),  # one of two results
        (20, True, 900),
        (20, False, 1000),
        (21, False, 1000),
        (40, True, 1900),
    ]:
        name = f"{after}{before}.zarr"
        died = KILL.format(at=labels + after, before=before) + code.format(name)
        assert do(died)[::2] == [-signal.SIGKILL, ""]
        assert bool(list(tmp_path.rglob("*.partial"))) == before
        assert do(TIDY + code.format(name)) == [0, f"{kept}\n", ""]
        assert tree(tmp_path / name) == expected
        assert not list(tmp_path.glob("*.new"))


def test_two_drivers_of_one_store_at_once_leave_it_right_though_one_is_killed(
    do, start, wait, wait_for, count_chunks, tmp_path, tree
):
    code = IMPORT + "slow({})\nprint(stored('{}', chunk_runs=25).run())"
    first = start(code.format(0.05, "a.zarr"))
    wait_for(lambda: count_chunks(tmp_path / "a.zarr", "probs") >= 10)
    second = start(code.format(0.04, "a.zarr"))
    wait_for(lambda: count_chunks(tmp_path / "a.zarr", "probs") >= 40)
    os.kill(first, signal.SIGKILL)
    assert wait(first)[0] == -signal.SIGKILL
    status, out, problems = wait(second)
    assert (status, problems) == (0, "")
    assert "missing=0" in out
    assert do(code.format(0.0, "b.zarr"))[0] == 0
    assert do(TIDY + code.format(0.0, "a.zarr"))[::2] == [0, ""]
    assert tree(tmp_path / "a.zarr") == tree(tmp_path / "b.zarr")


@pytest.mark.parametrize("parts", [[(i, 4) for i in range(1, 5)], [(1, 1)] * 4])
def test_drivers_that_begin_one_store_at_once_all_end_with_it(
    do, start, wait, tmp_path, tree, parts
):
    code = IMPORT + "print(stored('{}', chunk_runs=100).run(part={}))"
    children = [start(code.format("a.zarr", part)) for part in parts]
    ends = [wait(child) for child in children]
    assert [(status, problems) for status, _, problems in ends] == [(0, "")] * 4, ends
    if parts[-1] == (4, 4):
        assert all("kept=0, done=500" in out for _, out, _ in ends)
    assert do(code.format("b.zarr", (1, 1)))[0] == 0
    assert tree(tmp_path / "a.zarr") == tree(tmp_path / "b.zarr")
    assert not list(tmp_path.glob("*.new"))


def test_a_part_says_what_is_kept_done_and_missing(tmp_path):
    sweeping = stored_sweep(times, AXES, tmp_path / "a.zarr", chunk_runs=6)
    assert sweeping.run(part=(2, 3)) == (42, 0, 12, 30, 0)
    assert sweeping.remaining() == 30
    assert sweeping.run(part=(2, 3)) == (42, 12, 0, 30, 0)
    assert sweeping.run(part=(3, 3)) == (42, 0, 18, 12, 0)
    assert sweeping.run() == (42, 30, 12, 0, 0)


@pytest.mark.parametrize("part", [(0, 2), (3, 2), (-1, 2), (1, 0)])
def test_a_part_out_of_range_is_refused_and_nothing_is_written(tmp_path, part):
    with pytest.raises(
        InvalidInput, match=f"part is '{part[0]}/{part[1]}'; give I/N, with I from 1"
    ):
        stored_sweep(times, AXES, tmp_path / "a.zarr").run(part=part)
    assert not list(tmp_path.iterdir())


def test_equals_the_sweep_in_memory_with_all_that_is_said_of_it(tmp_path):
    def run(rate, size, seed, vector, shared):
        noise = jax.random.normal(jax.random.key(seed), (2, 3))
        return {"kl": rate * noise * size + shared, "time": vector.sum() / (rate - 0.3)}

    axes = {
        "rate": [0.1, 0.2, 0.3],
        "size": static([1, 2]),
        "seed": range(4),
        "vector": np.ones((5, 2)),
    }
    options = {
        "fixed": {"shared": np.float32(0.25)},
        "dims": {"kl": ["step", "arm"], "time": []},
        "coords": {"step": [1, 10], "arm": ["a", "b", "c"]},
        "attributes": {"kl": {"units": "nats"}, "rate": {"long_name": "step size"}},
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = sweep(run, axes, **options)
    summary = write(tmp_path / "a.zarr", run, axes, chunk_runs=6, **options)
    assert summary == (120, 0, 120, 0, 0)
    with xr.open_zarr(tmp_path / "a.zarr") as found:
        found.load()
    found.attrs.clear()
    xr.testing.assert_identical(found, expected)
    for name in expected.data_vars:
        assert found[name].values.tobytes() == expected[name].values.tobytes(), name


def test_whole_numbers_and_truths_are_stored_as_floats(tmp_path):
    write(tmp_path / "a.zarr", lambda x: {"n": x + 1, "b": x > 1}, {"x": [1, 2]})
    with xr.open_zarr(tmp_path / "a.zarr") as found:
        np.testing.assert_array_equal(found["n"], [2.0, 3.0])
        np.testing.assert_array_equal(found["b"], [0.0, 1.0])
        assert found["n"].dtype == found["b"].dtype == np.float64


@pytest.mark.parametrize("order", [[False, True], [True, False]])
def test_programs_that_return_different_number_types_are_refused(tmp_path, order):
    def run(x, exact):
        return {"y": 16_777_217 + jnp.int32(x) if exact else x + 0.5}

    axes = {"exact": static(order), "x": [0.0, 2.0]}
    with pytest.raises(
        InvalidInput, match=r"(?=.*float32\[\])(?=.*int32\[\]).*must return the same"
    ):
        write(tmp_path / "a.zarr", run, axes)


@pytest.mark.parametrize("chunk_runs", [None, 1, 6, 10])
def test_a_second_call_keeps_everything_and_changes_no_file(tmp_path, tree, chunk_runs):
    first = write(tmp_path / "a.zarr", times, AXES, chunk_runs=chunk_runs)
    assert first == (42, 0, 42, 0, 0)
    before = tree(tmp_path)
    modified = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    assert write(tmp_path / "a.zarr", times, AXES) == (42, 42, 0, 0, 0)
    assert tree(tmp_path) == before
    assert {path: path.stat().st_mtime_ns for path in modified} == modified


def test_a_resumed_store_keeps_the_chunks_it_was_begun_with(tmp_path, tree):
    path = tmp_path / "a.zarr"
    write(path, times, AXES, chunk_runs=6)
    expected = tree(path)
    for name in ("product/c/3/0", "powers/c/5/0/0"):
        (path / name).unlink()
    assert write(path, times, AXES, chunk_runs=1) == (42, 30, 12, 0, 0)
    assert tree(path) == expected


def test_runs_that_give_nan_are_counted_and_done(tmp_path):
    def run(x):
        return {"y": jnp.where(x > 2, jnp.nan, x) * jnp.ones(3), "z": x}

    path, axes = tmp_path / "a.zarr", {"x": np.arange(8.0)}
    assert write(path, run, axes, chunk_runs=2) == (8, 0, 8, 0, 5)
    assert write(path, run, axes) == (8, 8, 0, 0, 0)


def test_chunks_of_nothing_but_nan_are_done_and_keep_its_sign(tmp_path):
    def run(x):
        return {"y": jnp.copysign(jnp.nan, x - 4.5)}

    path, axes = tmp_path / "a.zarr", {"x": np.arange(8.0)}
    write(path, run, axes, chunk_runs=2)
    assert write(path, run, axes) == (8, 8, 0, 0, 0)
    with xr.open_zarr(path) as found:
        np.testing.assert_array_equal(np.signbit(found["y"]), np.arange(8) < 4.5)


def test_results_do_not_pile_up_in_memory(tmp_path, monkeypatch):
    begun, seen, call = [], [], programs._call
    monkeypatch.setattr(programs, "_call", lambda *held: (begun.append(0), call(*held))[1])

    def advance(self, task, runs):
        time.sleep(0.01)  # so that lanes get ahead
        seen.append(len(begun) - len(seen))

    monkeypatch.setattr(rich.progress.Progress, "advance", advance)
    options = {"chunk_runs": BLOCK_RUNS, "devices": jax.local_devices() * 2}
    axes = {"x": np.ones(24 * BLOCK_RUNS)}
    write(tmp_path / "a.zarr", lambda x: {"y": x * jnp.ones(1000)}, axes, **options)
    assert len(begun) == len(seen) == 24
    assert max(seen) <= 2 * BLOCKS_AHEAD


def test_only_the_programs_of_unfinished_chunks_are_compiled(tmp_path):
    traced = []

    def run(x, size):
        traced.append(size)
        return {"y": x * size}

    path, axes = tmp_path / "a.zarr", {"size": static([2, 3, 4]), "x": np.arange(9.0)}
    write(path, run, axes, chunk_runs=3)
    (path / "y" / "c" / "1" / "2").unlink()
    traced.clear()
    assert write(path, run, axes).done == 3
    assert traced.count(3) >= 1
    assert 4 not in traced
    assert traced.count(2) <= 1  # for the shapes


def test_an_estimate_runs_a_few_blocks_and_writes_nothing(tmp_path):
    sweeping = stored_sweep(times, AXES, tmp_path / "a.zarr", identity={})
    assert sweeping.remaining() == 42
    assert sweeping.estimate(sweeping.compiler.first().block) is None  # no longer than the sample
    assert 0 < sweeping.estimate(1000) < 10
    assert sweeping.estimate(10**6) > sweeping.estimate(1000)
    assert not list(tmp_path.iterdir())
    assert sweeping.run().done == 42
    assert sweeping.remaining() == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"identity": {"name": "other"}}, 'name is "test" there and "other" here'),
        ({"identity": {}}, 'name is "test" there and missing here'),
        ({"identity": {"name": "test", "a": {"b": 1}}}, "a.b is missing there and 1 here"),
        ({"block_runs": 7}, "block_runs is 256 there and 7 here"),
    ],
)
def test_a_store_of_another_sweep_is_refused_with_the_difference(tmp_path, tree, change, message):
    path = tmp_path / "a.zarr"
    write(path, times, AXES)
    before = tree(path)
    with pytest.raises(InvalidInput, match=f"a.zarr holds another sweep: {message}; choose"):
        write(path, times, AXES, **change)
    assert tree(path) == before


@pytest.mark.parametrize("of", ["modeseek", "jax", "jaxlib", "format"])
def test_a_store_of_another_version_is_refused_with_the_difference(tmp_path, monkeypatch, of):
    path = tmp_path / "a.zarr"
    write(path, times, AXES)
    there = "2" if of == "format" else json.dumps(metadata.version(of))
    if of == "format":
        monkeypatch.setattr(store, "FORMAT", 9.9)
    else:
        versions = {name: metadata.version(name) for name in ("modeseek", "jax", "jaxlib")}
        monkeypatch.setattr("importlib.metadata.version", (versions | {of: "9.9"}).get)
    with pytest.raises(InvalidInput, match=rf"{of} is {there} there and \"?9.9\"? here"):
        write(path, times, AXES)


def test_several_differences_are_named_shortly(tmp_path):
    path = tmp_path / "a.zarr"
    write(path, times, AXES, identity={"rates": list(range(100)), "b": 1})
    with pytest.raises(InvalidInput) as refused:
        write(path, times, AXES, identity={"rates": list(range(101)), "b": 2}, block_runs=3)
    message = str(refused.value)
    assert message.count(" there and ") == 3
    assert len(message) < 500
    assert "\n" not in message


def test_an_identity_may_hold_tuples(tmp_path):
    path = tmp_path / "a.zarr"
    write(path, times, AXES, identity={"rates": (1, 2)})
    assert write(path, times, AXES, identity={"rates": (1, 2)}).done == 0


@pytest.mark.parametrize("option", ["block_runs", "chunk_runs"])
@pytest.mark.parametrize("value", [0, -1, 1.5])
def test_bad_sizes_are_refused_and_nothing_is_written(tmp_path, option, value):
    with pytest.raises(InvalidInput, match=f"{option} is .*; it must be a whole number"):
        write(tmp_path / "a.zarr", times, AXES, **{option: value})
    assert not list(tmp_path.iterdir())


def test_programs_that_return_different_shapes_are_refused_and_what_is_done_stays(tmp_path):
    def run(x, size):
        return {"y": x * jnp.ones(size)}

    path, axes = tmp_path / "a.zarr", {"x": [1.0, 2.0], "size": static([2, 3])}
    with pytest.raises(InvalidInput, match="every program must return the same"):
        write(path, run, axes)
    with xr.open_zarr(path) as found:
        np.testing.assert_array_equal(found["y"][:, 0], [[1, 1], [2, 2]])


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 600 kB; ``mount`` changes it."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(options):
        return subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True
        )

    if not shutil.which("mount") or mount("size=600k").returncode:
        pytest.skip("only root may mount a small tmpfs")
    try:
        yield folder, lambda options: mount(f"remount,{options}").check_returncode()
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_ends_in_a_sentence_and_with_space_the_sweep_goes_on(
    small_disk, tmp_path, tree
):
    folder, remount = small_disk
    axes = {"x": np.linspace(1, 2, 100), "y": np.arange(4.0)}  # 200 small files, a page each
    write(tmp_path / "whole.zarr", times, axes, chunk_runs=4)
    for _ in range(2):  # again without space: the same sentence
        with pytest.raises(InvalidInput) as refused:
            write(folder / "a.zarr", times, axes, chunk_runs=4)
        assert str(refused.value) == (
            f"cannot write {folder / 'a.zarr'}: No space left on device; what is done stays "
            "valid; free some space and run the same command again"
        )
    held, expected = tree(folder / "a.zarr"), tree(tmp_path / "whole.zarr")
    assert held.items() < expected.items()
    assert sum(name.startswith("powers/c/") for name in held) > 10
    with xr.open_zarr(folder / "a.zarr") as found:
        assert 0 < int(found["product"].notnull().sum()) < 400
    remount("size=8m")
    summary = write(folder / "a.zarr", times, axes, chunk_runs=4)
    assert summary.kept + summary.done == 400
    assert summary.kept > 40
    assert tree(folder / "a.zarr") == expected


def test_a_disk_too_full_for_the_store_itself_leaves_nothing(small_disk):
    folder, _ = small_disk
    (folder / "other").write_bytes(bytes(590_000))
    with pytest.raises(InvalidInput, match="No space left on device"):
        write(folder / "a.zarr", times, {"x": [1.0], "y": [1.0]})
    assert [path.name for path in folder.iterdir()] == ["other"]


def test_a_disk_that_turns_read_only_ends_in_a_sentence(small_disk):
    folder, remount = small_disk
    path = folder / "a.zarr"
    write(path, times, AXES, chunk_runs=6)
    (path / "product" / "c" / "3" / "0").unlink()
    remount("ro")
    with pytest.raises(InvalidInput, match=r"a.zarr: Read-only file system.* mend that and run"):
        write(path, times, AXES)
    with pytest.raises(InvalidInput, match=r"b.zarr: Read-only file system"):
        write(folder / "b.zarr", times, AXES)
    remount("rw")
    assert write(path, times, AXES).done == 6


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EACCES])
@pytest.mark.parametrize("fails_at", [1, 9, -14, -13, -3, -2, -1])
def test_whatever_write_fails_the_store_stays_right(tmp_path, tree, monkeypatch, code, fails_at):
    count, last, replace = 0, math.inf, pathlib.Path.replace

    def failing(self, target):
        nonlocal count
        count += 1
        if count >= last:
            raise OSError(code, os.strerror(code))
        return replace(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(pathlib.Path, "replace", failing)
        write(tmp_path / "whole.zarr", times, AXES, chunk_runs=6)
        last = fails_at if fails_at > 0 else count + 1 + fails_at
        count = 0
        with pytest.raises(InvalidInput, match=r"cannot write .*a.zarr: .*; what is done stays"):
            write(tmp_path / "a.zarr", times, AXES, chunk_runs=6)
    # Seven chunks of two arrays are written last.
    assert (tmp_path / "a.zarr").exists() == (fails_at < 0)
    assert not list(tmp_path.glob("*.new"))
    summary = write(tmp_path / "a.zarr", times, AXES, chunk_runs=6)
    assert summary.kept == (6 * ((14 + fails_at) // 2) if fails_at < 0 else 0)
    assert tree(tmp_path / "a.zarr") == tree(tmp_path / "whole.zarr")
