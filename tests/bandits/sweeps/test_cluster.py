"""Workers share a sweep: one that dies costs time only, and their number changes no bit."""

import os
import pickle
import random
import shutil
import signal
import time

import dask
import distributed
import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bandits.sweeps import cluster
from theory.checks import InvalidInput

WORKER = "from rounding import *\nslow({pause})\n{more}\nwork('{scheduler}')"
DRIVER = """
from rounding import *
with connect(scheduler='{scheduler}') as client:
    print({sweep}.run(client))
"""
LIGHT = "stored('a.zarr', chunk_runs=25)"  # 80 chunks of 25 runs
TINY = "stored_sweep(lambda x: {'y': x / x}, {'x': np.arange(4.0)}, 'a.zarr', chunk_runs=1)"
WHOLE = f"from rounding import *\nprint({LIGHT}.run())"
DONE = "Summary(runs=2000, kept=0, done=2000, missing=0, diverged=0)\n"


def scheduler_with(deaths):
    """A cluster without workers."""
    settings = {"distributed.scheduler.allowed-failures": deaths}
    page = {"dashboard_address": ":0"}
    with (
        dask.config.set(settings),
        distributed.LocalCluster(
            n_workers=0, dashboard_address=None, scheduler_kwargs=page, silence_logs="CRITICAL"
        ) as made,
    ):
        yield made.scheduler_address


@pytest.fixture(scope="module")
def scheduler():
    """The address of a scheduler that forgives everything."""
    yield from scheduler_with(deaths=100)


@pytest.fixture
def employ(start, wait, scheduler):
    """Start a worker, which lasts no longer than the test; its process id."""
    started = []

    def employ(pause=0.0, more="", scheduler=scheduler):
        started.append(start(WORKER.format(pause=pause, more=more, scheduler=scheduler)))
        return started[-1]

    yield employ
    for worker in started:
        try:
            os.kill(worker, signal.SIGKILL)
        except ProcessLookupError:
            continue
        wait(worker)


@pytest.fixture(scope="module")
def whole(server, tmp_path_factory):
    """The store of one process that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    assert server("wait", server("start", WHOLE, None, str(folder)), str(folder), 240)[0] == 0
    return folder / "a.zarr"


@given(st.integers(1, 300), st.integers(1, 40))
def test_every_chunk_is_in_one_stretch_and_stretches_are_alike(count, threads):
    stretches = cluster._cut(range(count), threads)
    assert sorted(chunk for stretch in stretches for chunk in stretch) == list(range(count))
    lengths = {len(stretch) for stretch in stretches}
    assert max(lengths) - min(lengths) <= 1
    assert len(stretches) == min(count, cluster.STRETCHES * threads)


def test_threads_begin_far_apart_and_go_on_where_they_were():
    firsts = [stretch[0] for stretch in cluster._cut(range(320), 2)]
    assert firsts[:4] == [0, 160, 10, 170]


def test_two_workers_one_of_them_killed_leave_the_files_of_one_process(
    start, wait, employ, wait_for, count_chunks, scheduler, whole, tmp_path, tree
):
    workers = [employ(pause=0.02) for _ in range(2)]
    driver = start(DRIVER.format(scheduler=scheduler, sweep=LIGHT))
    wait_for(lambda: count_chunks(tmp_path / "a.zarr", "spread") >= 30)
    os.kill(workers[0], signal.SIGKILL)
    assert wait(driver) == [0, DONE, ""]
    assert tree(tmp_path / "a.zarr") == tree(whole)


def test_workers_killed_ten_times_at_random_leave_no_hole(
    start, wait, employ, scheduler, whole, tmp_path, tree
):
    chance = random.Random(0)
    workers = [employ(pause=0.04) for _ in range(2)]
    driver = start(DRIVER.format(scheduler=scheduler, sweep=LIGHT))
    for _ in range(10):
        time.sleep(chance.uniform(0, 0.3))
        os.kill(workers.pop(chance.randrange(2)), signal.SIGKILL)
        workers.append(employ(pause=0.04))
    assert wait(driver) == [0, DONE, ""]
    resumed = start("from rounding import *\nstore.LEFT_BEHIND = 0\n" + WHOLE)
    assert "done=0" in wait(resumed)[1]
    assert tree(tmp_path / "a.zarr") == tree(whole)


def test_a_driver_that_is_killed_leaves_what_its_workers_wrote(
    do, start, wait, employ, wait_for, count_chunks, scheduler, whole, tmp_path, tree
):
    for _ in range(2):
        employ(pause=0.02)
    driver = start(DRIVER.format(scheduler=scheduler, sweep=LIGHT))
    wait_for(lambda: count_chunks(tmp_path / "a.zarr", "spread") >= 10)
    os.kill(driver, signal.SIGKILL)
    assert wait(driver)[0] == -signal.SIGKILL
    # The workers may still be at work: another driver does what is missing beside them.
    status, out, problems = do(DRIVER.format(scheduler=scheduler, sweep=LIGHT))
    assert (status, problems) == (0, "")
    assert "kept=0" not in out
    assert "missing=0" in out
    assert tree(tmp_path / "a.zarr") == tree(whole)


def test_a_cluster_goes_on_with_a_store_and_does_what_is_damaged(
    do, employ, scheduler, whole, tmp_path, tree
):
    employ()
    shutil.copytree(whole, tmp_path / "a.zarr")
    files = sorted(
        file for file in (tmp_path / "a.zarr" / "probs" / "c").rglob("*") if file.is_file()
    )
    files[3].unlink()
    files[50].write_bytes(files[50].read_bytes()[:-1] + b"?")
    status, out, _ = do(DRIVER.format(scheduler=scheduler, sweep=LIGHT))
    assert status == 0
    assert "kept=1950, done=50" in out
    assert tree(tmp_path / "a.zarr") == tree(whole)


def test_workers_compute_as_precisely_as_the_driver(do, employ, scheduler, tmp_path, tree):
    employ()
    precise = "from rounding import *\njax.config.update('jax_enable_x64', True)\n"
    assert do(precise + DRIVER.format(scheduler=scheduler, sweep=TINY))[0] == 0
    assert do(precise + f"{TINY.replace('a.zarr', 'b.zarr')}.run()")[0] == 0
    assert tree(tmp_path / "a.zarr") == tree(tmp_path / "b.zarr")
    assert b"float64" in (tmp_path / "a.zarr" / "y" / "zarr.json").read_bytes()


def test_runs_that_gave_nan_are_counted_by_the_driver(do, employ, scheduler):
    employ()
    status, out, _ = do(DRIVER.format(scheduler=scheduler, sweep=TINY))
    assert (status, out) == (0, "Summary(runs=4, kept=0, done=4, missing=0, diverged=1)\n")


def refusal(problems):
    return problems.splitlines()[-1].removeprefix("theory.checks.InvalidInput: ")


def test_what_a_worker_refuses_the_driver_says(do, employ, scheduler):
    employ(more="store.FORMAT = 9")
    status, _, problems = do(DRIVER.format(scheduler=scheduler, sweep=LIGHT))
    assert status == 70
    assert "holds another sweep: format is 2 there and 9 here" in refusal(problems)


SCHEDULER = """
import asyncio
from rounding import distributed

async def until_the_end():
    page = {"dashboard": False, "dashboard_address": ":0"}
    scheduler = await distributed.Scheduler(port=0, host="127.0.0.1", **page)
    print(scheduler.address, flush=True)
    await scheduler.finished()

asyncio.run(until_the_end())
"""


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


def test_the_command_says_that_the_scheduler_died_and_goes_on_with_what_is_done(
    do, start, wait, employ, wait_for, count_chunks, tmp_path, tree
):
    (tmp_path / "spec.toml").write_text(SPEC)
    argv = ["sweep", "spec.toml", "--chunk-runs", "2", "--out"]
    scheduler = start(SCHEDULER)
    said = tmp_path / f"out.{scheduler}"
    wait_for(lambda: said.exists() and said.read_text().endswith("\n"))
    address = said.read_text().strip()
    employ(pause=0.1, scheduler=address)
    driver = start("", [*argv, "a.zarr", "--scheduler", address])
    wait_for(lambda: count_chunks(tmp_path / "a.zarr", "expected_reward") >= 5)
    os.kill(scheduler, signal.SIGKILL)
    assert wait(scheduler)[0] == -signal.SIGKILL
    assert wait(driver)[::2] == [
        2,
        "modeseek: the scheduler is gone; what is done is kept, the same command goes on with it\n",
    ]
    tidy = "from bandits.sweeps import store\nstore.LEFT_BEHIND = 0\n"
    status, out, problems = do(tidy, [*argv, "a.zarr"])
    assert (status, problems, " 0 kept" in out) == (0, "", False)
    assert do("", [*argv, "b.zarr"])[0] == 0
    assert tree(tmp_path / "a.zarr") == tree(tmp_path / "b.zarr")


def test_runs_that_kill_every_worker_are_given_up_in_a_sentence(do, employ):
    for scheduler in scheduler_with(deaths=1):
        for _ in range(4):
            employ(
                more="store.Store.write = lambda *_: signal.raise_signal(9)", scheduler=scheduler
            )
        status, _, problems = do(DRIVER.format(scheduler=scheduler, sweep=TINY))
        assert status == 70
        assert refusal(problems) == (
            "2 workers died one after another over the same runs; where memory is short, choose "
            "fewer workers; what is done is kept"
        )


def test_a_store_that_a_worker_does_not_see_is_said_with_its_machine(tmp_path):
    sent = pickle.dumps(({}, pickle.dumps({"path": tmp_path / "a.zarr"})))
    with pytest.raises(InvalidInput, match=r"a.zarr is not there on .*; choose a folder that all"):
        cluster._unpack(sent, 1)


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:1", "nowhere", "tcp://nowhere.invalid:8786"])
def test_where_no_scheduler_answers_that_is_said(monkeypatch, address):
    monkeypatch.setattr(cluster, "PATIENCE", "0.5 s")
    with (
        pytest.raises(InvalidInput, match="no scheduler answers at"),
        cluster.connect(scheduler=address),
    ):
        pass


def test_without_dask_its_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "distributed", None)
    with (
        pytest.raises(InvalidInput, match=r"pip install 'modeseek\[cluster\]'"),
        cluster.connect(2),
    ):
        pass


def test_without_workers_and_scheduler_there_is_no_client():
    with cluster.connect() as client:
        assert client is None


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ((0, None, None), "workers is 0"),
        ((2, 0, None), "devices is 0"),
        ((2, None, "tcp://a:1"), "the scheduler has its own workers; leave out workers"),
        ((None, 2, "tcp://a:1"), "the scheduler has its own workers; leave out devices"),
    ],
)
def test_workers_that_contradict_are_refused(asked, message):
    with pytest.raises(InvalidInput, match=message):
        cluster.require_workers(*asked)


def test_workers_do_not_share_gpus(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    with pytest.raises(InvalidInput, match="workers share cores, not GPUs"):
        cluster.require_workers(2, None, None)
    assert cluster.require_workers(None, 3, None) == 3


def test_a_worker_has_one_device_unless_more_are_asked_for():
    assert [
        cluster.require_workers(*asked, None) for asked in [(2, None), (2, 3), (None, None)]
    ] == [1, 3, None]
