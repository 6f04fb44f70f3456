"""`modeseek sweep` end to end: what it says, writes and refuses, stopped, killed and shared out."""

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import xarray as xr

EXAMPLE = Path(__file__).parents[2] / "examples" / "small_sweep.toml"

SPEC = """
[problem]
environment = "far"

[training]
methods = ["forward_kl", "reverse_kl"]
updates = "exact"
optimizer = "sgd"
steps = 20
learning_rate = {log = [0.01, 1.0, 40]}

[record]
steps = [0, 20]
"""
FILES = 'reference = "files/counts.csv"\nnormalize = true\nreward = "files/reward.csv"'
TIDY = "from bandits.sweeps import store\nstore.LEFT_BEHIND = 0\n"
RESULT = "expected_reward"
SLOW = "import sys\nsys.path.insert(0, {!r})\nfrom rounding import slow\nslow({})\n"
SLOW_WORKERS = SLOW + "import dask\ndask.config.set({{'distributed.worker.preload': [{!r}]}})\n"
UNESTIMATED = "from bandits.sweeps.stored import StoredSweep\ndel StoredSweep.estimate\n"
HELPERS = str(Path(__file__).parent / "sweeps")


@pytest.fixture
def spec(tmp_path):
    """A grid of 80 runs that compiles fast, in a file."""
    path = tmp_path / "spec.toml"
    path.write_text(SPEC)
    return str(path)


@pytest.fixture
def command(do):
    """`modeseek sweep` with chunks of two runs: exit code, stdout and stderr."""

    def run(spec, out, *flags, code=""):
        return do(code, ["sweep", spec, "--out", str(out), "--chunk-runs", "2", *flags])

    return run


@pytest.fixture(scope="module")
def whole(server, tmp_path_factory):
    """The store of a sweep that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "spec.toml").write_text(SPEC)
    argv = ["sweep", "spec.toml", "--out", "a.zarr", "--chunk-runs", "2"]
    child = server("start", "", argv, str(folder))
    assert server("wait", child, str(folder), 240)[0] == 0
    return folder / "a.zarr"


def test_a_sweep_is_described_done_and_kept_by_a_second_call(command, spec, tmp_path, tree):
    status, out, problems = command(spec, "a.zarr", "--devices", "2")
    assert (status, problems) == (0, "")
    described, done = out.splitlines()
    assert described.startswith("80 runs in 2 programs; 40 chunks; up to 1.3 kB; ")
    assert described.endswith(" on 2 cores, compiling left out")
    assert done == "a.zarr: 80 runs done, 0 kept from before"
    before = tree(tmp_path / "a.zarr")
    status, out, problems = command(spec, "a.zarr", "--devices", "2")
    assert (status, problems) == (0, "")
    described, done = out.splitlines()
    assert described.endswith("; 0 runs to do")
    assert done == "a.zarr: 0 runs done, 80 kept from before"
    assert tree(tmp_path / "a.zarr") == before
    with xr.open_zarr(tmp_path / "a.zarr") as found:
        assert found.sizes["learning_rate"] == 40
        assert ["forward_kl", "reverse_kl"] in [v.values.tolist() for v in found.coords.values()]
        assert all(v.notnull().all() for name, v in found.items() if name != "diverged_at")


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("spec.toml", "80 runs in 2 programs; 40 chunks; up to 1.3 kB; "),
        (str(EXAMPLE), "96 runs in 4"),
    ],
)
def test_a_dry_run_says_what_there_is_to_do_and_writes_nothing(command, spec, tmp_path, file, said):
    status, out, problems = command(file, "a.zarr", "--dry-run")
    assert (status, problems) == (0, "")
    assert out.startswith(said)
    assert len(out.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["spec.toml"]


def refused(ended, message):
    """One sentence on stderr, and exit code 2."""
    status, _, problems = ended
    assert status == 2, ended
    assert message in problems
    assert problems.startswith("modeseek: ")
    assert "Traceback" not in problems
    assert len(problems.splitlines()) == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--devices", "0"], "devices is 0; it must be a whole number"),
        (["--workers", "0"], "workers is 0; it must be a whole number"),
        (
            ["--workers", "2", "--scheduler", "tcp://a:1"],
            "the scheduler has its own workers; leave",
        ),
        *(
            (["--part", part], f"part is '{part}'; give I/N, with I from 1 to N")
            for part in ("0/3", "4/3", "2", "one/two")
        ),
        (["--chunk-runs", "0"], "chunk_runs is 0; it must be a whole number"),
    ],
)
def test_bad_flags_are_refused_in_a_sentence(command, spec, tmp_path, flags, message):
    refused(command(spec, "a.zarr", *flags), message)
    assert [path.name for path in tmp_path.iterdir()] == ["spec.toml"]


@pytest.mark.parametrize("flags", [["--devices", "two"], ["--workers", "x"], ["--bogus"]])
def test_flags_that_cannot_be_read_end_with_the_usage(command, spec, tmp_path, flags):
    status, _, problems = command(spec, "a.zarr", *flags)
    assert status == 2
    assert "Traceback" not in problems
    assert not (tmp_path / "a.zarr").exists()


def test_a_spec_that_is_missing_or_wrong_is_refused(command, spec, tmp_path):
    refused(command("none.toml", "a.zarr"), "cannot read none.toml")
    (tmp_path / "counts.csv").write_text("arm,count\na,5\nb,three\n")
    wrong, files = tmp_path / "wrong.toml", FILES.replace("files/", "")
    for old, new, message in (
        ("steps = 20\nlearning", "stps = 20\nlearning", "did you mean 'steps'"),
        ('environment = "far"', files, "modeseek: problem.reference: counts.csv, line 3: 'three'"),
    ):
        wrong.write_text(SPEC.replace(old, new))
        refused(command("wrong.toml", "a.zarr"), message)
    assert not (tmp_path / "a.zarr").exists()


def test_another_spec_is_refused_with_the_difference(command, whole, tmp_path, tree):
    shutil.copytree(whole, tmp_path / "a.zarr")
    before = tree(tmp_path / "a.zarr")
    (tmp_path / "other.toml").write_text(SPEC.replace("steps = 20", "steps = 21", 1))
    refused(
        command("other.toml", "a.zarr"),
        "a.zarr holds another sweep: search.training.steps is 20 there and 21 here",
    )
    assert tree(tmp_path / "a.zarr") == before


def test_the_same_spec_written_otherwise_goes_on(command, whole, tmp_path):
    shutil.copytree(whole, tmp_path / "a.zarr")
    text = SPEC.replace("40]}", "40]}  # forty").replace('updates = "exact"\n', "")
    text = text.replace("[training]\n", '[training]\nupdates = "exact"\n')
    (tmp_path / "other.toml").write_text(text)
    status, out, _ = command("other.toml", "a.zarr")
    assert status == 0
    assert "80 kept" in out


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("spec.toml/a.zarr", "cannot write spec.toml/a.zarr: Not a directory"),
        ("spec.toml", "spec.toml is there and holds no sweep"),
        (".", ". is there and holds no sweep"),
        ("/proc/a.zarr", "/proc"),
        ("a" * 253, "File name too long"),
        ("a" * 300, "File name too long"),
    ],
)
@pytest.mark.parametrize("flags", [[], ["--dry-run"]])
def test_where_nothing_can_be_written_is_said_before_the_work(command, spec, out, message, flags):
    refused(command(spec, out, *flags, code=UNESTIMATED), message)


def test_a_sweep_over_files_goes_on_when_they_are_moved_and_not_when_they_change(
    command, tmp_path, tree
):
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "counts.csv").write_text("arm,count\na,5\nb,3\nc,2\n")
    (folder / "reward.csv").write_text("a,0.1\nb,0.3\nc,1.0\n")
    text = SPEC.replace('environment = "far"', FILES)
    (tmp_path / "own.toml").write_text(text)
    status, out, problems = command("own.toml", "a.zarr", "--dry-run")
    assert (status, problems) == (0, "")
    assert out.startswith("80 runs in 2 programs; ")
    assert not (tmp_path / "a.zarr").exists()
    assert command("own.toml", "a.zarr")[0] == 0
    before = tree(tmp_path / "a.zarr")
    with xr.open_zarr(tmp_path / "a.zarr") as found:
        assert found["arm"].values.tolist() == ["a", "b", "c"]
        assert found["reward"].values.tolist() == [0.1, 0.3, 1.0]
        assert found["expected_reward"].dims == ("loss", "learning_rate", "step")
        assert found["expected_reward"].isel(step=0).values == pytest.approx(0.34)
    moved = text.replace("files/", "moved/")
    folder.rename(tmp_path / "moved")
    (tmp_path / "own.toml").write_text(moved)
    status, out, problems = command("own.toml", "a.zarr")
    assert (status, problems) == (0, "")
    assert "0 runs done, 80 kept" in out
    (tmp_path / "moved" / "reward.csv").write_text("a,0.1\nb,0.4\nc,1.0\n")
    refused(
        command("own.toml", "a.zarr"),
        "a.zarr holds another sweep: search.problem.reward is [0.1, 0.3, 1.0] there and "
        "[0.1, 0.4, 1.0] here",
    )
    assert tree(tmp_path / "a.zarr") == before


@pytest.mark.parametrize(
    ("number", "word", "flags"),
    [
        (signal.SIGINT, "interrupted", []),
        (signal.SIGTERM, "terminated", []),
        (signal.SIGTERM, "terminated", ["--workers", "2"]),
    ],
)
def test_an_interrupted_sweep_says_what_to_do_and_goes_on_to_the_same_bits(
    start, wait, command, spec, whole, tmp_path, tree, wait_for, count_chunks, number, word, flags
):
    slow = SLOW.format(HELPERS, 0.1)
    argv = ["sweep", spec, "--out", "a.zarr", "--chunk-runs", "2", *flags]
    child = start(SLOW_WORKERS.format(HELPERS, 0.1, slow), argv)
    wait_for(lambda: count_chunks(tmp_path / "a.zarr", RESULT) >= 3)
    os.kill(child, number)
    status, _, problems = wait(child)
    assert (status, problems) == (
        128 + number,
        f"modeseek: {word}; what is done is kept, the same command goes on with it\n",
    )
    assert 3 <= count_chunks(tmp_path / "a.zarr", RESULT) <= 40
    status, out, problems = command(spec, "a.zarr", code=TIDY)
    assert (status, problems) == (0, "")
    assert " 0 kept" not in out
    assert tree(tmp_path / "a.zarr") == tree(whole)


def test_parts_share_a_sweep_at_once_and_one_is_killed(
    start, wait, command, spec, whole, tmp_path, tree, wait_for, count_chunks
):
    flags = ["sweep", spec, "--out", "a.zarr", "--chunk-runs", "2", "--devices", "1", "--part"]
    children = [start(SLOW.format(HELPERS, 0.05), [*flags, f"{i}/3"]) for i in (1, 2, 3)]
    wait_for((tmp_path / "a.zarr" / RESULT / "c" / "0" / "14" / "0").exists)  # part 2 has begun
    os.kill(children[1], signal.SIGKILL)
    ends = [wait(child) for child in children]
    assert [status for status, _, _ in ends] == [0, -signal.SIGKILL, 0], ends
    assert [out.count("80 runs in 2 programs") for _, out, _ in ends] == [1, 0, 0]
    assert "on 1 cores for each of 3 parts, compiling left out" in ends[0][1]
    last = [ends[i][1].splitlines()[-1] for i in (0, 2)]
    assert any(line.endswith("runs of other parts are not done yet") for line in last)
    status, out, _ = command(spec, "a.zarr", "--part", "2/3", code=TIDY)
    assert status == 0
    assert " 0 kept" not in out
    assert "not done yet" not in out
    assert tree(tmp_path / "a.zarr") == tree(whole)


def test_workers_of_this_machine_share_a_sweep(command, spec, whole, tmp_path, tree):
    status, out, problems = command(spec, "a.zarr", "--workers", "2")
    assert (status, problems) == (0, "")
    described, done = out.splitlines()
    assert described.endswith(" on 2 cores, compiling left out")
    assert done == "a.zarr: 80 runs done, 0 kept from before"
    assert tree(tmp_path / "a.zarr") == tree(whole)


def test_a_scheduler_that_is_not_there_is_refused_in_a_sentence(command, spec):
    code = "from bandits.sweeps import cluster\ncluster.PATIENCE = '1 s'"
    refused(
        command(spec, "a.zarr", "--scheduler", "tcp://127.0.0.1:1", code=code),
        "no scheduler answers at tcp://127.0.0.1:1; start it first",
    )


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 300 kB, and a function that changes its size."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "tmpfs", str(folder), "-o"]
    if not shutil.which("mount") or subprocess.run([*mount, "size=300k"]).returncode:
        pytest.skip("only root may mount a small tmpfs")
    try:
        yield folder, lambda size: subprocess.run([*mount, f"remount,size={size}"], check=True)
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_ends_in_a_sentence_and_the_sweep_goes_on_with_space(
    command, spec, whole, tree, small_disk, count_chunks
):
    folder, resize = small_disk
    refused(
        command(spec, folder / "a.zarr"),
        "No space left on device; what is done stays valid; free some space and run the same "
        "command again",
    )
    assert 0 < count_chunks(folder / "a.zarr", RESULT) < 40
    full = command(spec, folder / "a.zarr", "--workers", "1")
    refused(full, "No space left on device; what is done stays valid; free some space")
    resize("8m")
    status, out, problems = command(spec, folder / "a.zarr")
    assert (status, problems) == (0, "")
    assert " 0 kept" not in out
    assert tree(folder / "a.zarr") == tree(whole)
