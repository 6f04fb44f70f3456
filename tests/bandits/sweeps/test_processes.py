"""Several processes share a sweep, need nothing of each other, and change no bit."""

import os
import re
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from bandits.sweeps import processes
from bandits.sweeps.processes import joined
from bandits.sweeps.stored import ALONE, Share
from theory.checks import InvalidInput

CODE = """
from rounding import *
slow({pause})
with joined("localhost:{port}", {count}, {index}) as (share, barrier):
    print({sweep}.run(share, barrier=barrier))
"""
LAUNCHED = """
import os
os.environ.update({told})
from rounding import *
with joined() as (share, barrier):
    print({sweep}.run(share, barrier=barrier))
"""
LIGHT = "stored('a.zarr', chunk_runs=25)"  # 80 chunks
WHOLE = "from rounding import *\nprint({sweep}.run())"


@pytest.fixture
def launch(start, port):
    """Start the processes of a job."""

    def launch(count, sweep, pause=0.0):
        return [
            start(CODE.format(port=port, count=count, index=i, sweep=sweep, pause=pause))
            for i in range(count)
        ]

    return launch


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_processes_give_the_files_of_one(do, launch, wait, tmp_path, tree):
    ends = [wait(child) for child in launch(3, LIGHT)]
    assert [status for status, _, _ in ends] == [0] * 3, ends
    assert do(WHOLE.format(sweep=LIGHT.replace("a.zarr", "b.zarr")))[0] == 0
    assert tree(tmp_path / "a.zarr") == tree(tmp_path / "b.zarr")
    done = [int(out.split("done=")[1].split(",")[0]) for _, out, _ in ends]
    assert sum(done) == 2000
    assert max(done) - min(done) <= 25  # a chunk


@pytest.mark.parametrize("killed", [0, 2])
def test_one_of_three_is_killed_and_the_others_finish_their_shares(
    do, launch, wait, tmp_path, tree, killed
):
    children = launch(3, LIGHT, pause=0.1)
    ledger = tmp_path / "a.zarr" / "ledger" / "sha256"
    wait_for((ledger / f"{80 * killed // 3}.0").exists)
    os.kill(children[killed], signal.SIGKILL)
    ends = [wait(child, 40) for child in children]
    assert ends[killed][0] == -signal.SIGKILL
    others = [ends[i] for i in range(3) if i != killed]
    assert [status for status, _, _ in others] == [0, 0], others
    for _, out, _ in others:
        assert "kept=0" in out
        assert 640 < int(out.split("done=")[1].split(",")[0]) < 690
    missing = [int(out.split("missing=")[1].split(",")[0]) for _, out, _ in others]
    held = len(list(ledger.glob("[0-9]*.0")))
    assert max(missing) >= 2000 - 25 * held > 0
    status, out, _ = do(WHOLE.format(sweep=LIGHT))
    assert status == 0
    assert "missing=0" in out
    assert do(WHOLE.format(sweep=LIGHT.replace("a.zarr", "b.zarr")))[0] == 0
    assert tree(tmp_path / "a.zarr") == tree(tmp_path / "b.zarr")


def test_a_store_is_gone_on_with_by_another_number_of_processes(do, launch, wait, tmp_path, tree):
    assert do(WHOLE.format(sweep=LIGHT))[0] == 0
    expected = tree(tmp_path / "a.zarr")
    for number in (3, 40, 41, 79):
        (tmp_path / "a.zarr" / "ledger" / "sha256" / f"{number}.0").unlink()
    ends = [wait(child) for child in launch(3, LIGHT)]
    assert [status for status, _, _ in ends] == [0, 0, 0], ends
    done = [int(out.split("done=")[1].split(",")[0]) for _, out, _ in ends]
    assert all(done)
    assert tree(tmp_path / "a.zarr") == expected


def test_a_refusal_of_the_store_ends_every_process(do, launch, wait, tmp_path, tree):
    other = LIGHT.replace("stored", "into")
    assert do(WHOLE.format(sweep=LIGHT))[0] == 0
    before = tree(tmp_path / "a.zarr")
    for status, _, problems in [wait(child) for child in launch(2, other)]:
        assert status == 70
        assert "holds another sweep: name is" in problems.splitlines()[-1]
    assert tree(tmp_path / "a.zarr") == before


def test_a_store_that_one_process_writes_is_refused_to_every_process_of_a_job(
    start, launch, wait, tmp_path
):
    first = start("from rounding import *\nslow(0.5)\n" + LIGHT + ".run()")
    wait_for((tmp_path / "a.zarr").exists)
    for status, _, problems in [wait(child) for child in launch(2, LIGHT)]:
        assert status == 70
        assert "is being written by another process" in problems.splitlines()[-1]
    os.kill(first, signal.SIGKILL)
    assert wait(first)[0] == -signal.SIGKILL


def test_a_second_job_is_refused_while_any_process_of_the_first_writes_and_harms_nothing(
    do, start, launch, wait, tmp_path, tree
):
    first = launch(2, LIGHT, pause=0.3)
    wait_for((tmp_path / "a.zarr" / "ledger" / "sha256" / "40.0").exists)
    os.kill(first[0], signal.SIGKILL)
    assert wait(first[0])[0] == -signal.SIGKILL
    with socket.socket() as listening:
        listening.bind(("localhost", 0))
        port = listening.getsockname()[1]
    second = [
        start(CODE.format(port=port, count=2, index=i, sweep=LIGHT, pause=0)) for i in range(2)
    ]
    status, _, problems = wait(second[0])
    assert status == 70
    assert "is being written by another process" in problems.splitlines()[-1]
    # Its other process cannot tell, and may do what the first job does too.
    assert wait(second[1])[0] == 0
    os.kill(first[1], signal.SIGKILL)
    assert wait(first[1])[0] == -signal.SIGKILL
    status, out, _ = do(WHOLE.format(sweep=LIGHT))
    assert status == 0
    assert "missing=0" in out
    assert do(WHOLE.format(sweep=LIGHT.replace("a.zarr", "b.zarr")))[0] == 0
    assert tree(tmp_path / "a.zarr") == tree(tmp_path / "b.zarr")


def test_where_the_store_cannot_be_made_the_others_say_who_knows_why(launch, wait, tmp_path):
    (tmp_path / "file").write_text("")
    ends = [wait(child) for child in launch(2, LIGHT.replace("a.zarr", "file/a.zarr"))]
    assert [status for status, _, _ in ends] == [70, 70]
    first, second = (problems.splitlines()[-1] for _, _, problems in ends)
    assert "InvalidInput: cannot write file/a.zarr: Not a directory" in first
    assert second.endswith(
        "InvalidInput: file/a.zarr was not made by process 0, whose message says why"
    )


def slurm(step, index):
    """What Slurm tells a process of a job of two tasks."""
    told = {"JOB_ID": os.getpid(), "STEP_ID": step, "STEP_NODELIST": "localhost", "NTASKS": 2}
    told |= {"STEP_NUM_TASKS": 2, "PROCID": index, "LOCALID": index}
    return {f"SLURM_{name}": str(value) for name, value in told.items()}


def open_mpi_5(index):
    """What Open MPI 5 tells one of two processes."""
    told = {"SIZE": 2, "RANK": index, "LOCAL_RANK": index}
    told = {f"OMPI_COMM_WORLD_{name}": str(value) for name, value in told.items()}
    return told | {"PMIX_NAMESPACE": f"prterun-localhost-{os.getpid()}@1"}


def test_steps_of_a_slurm_job_run_at_once(do, start, wait, tmp_path, tree):
    children = [
        start(LAUNCHED.format(told=slurm(step, index), sweep=LIGHT.replace("a.zarr", f"{step}")))
        for index in range(2)
        for step in range(2)
    ]
    for ended, out, problems in map(wait, children):
        assert ended == 0, problems
        assert "done=1000" in out
    assert do(WHOLE.format(sweep=LIGHT))[0] == 0
    assert tree(tmp_path / "0") == tree(tmp_path / "1") == tree(tmp_path / "a.zarr")


@pytest.mark.parametrize("around", [{}, slurm(0, 0) | {"SLURM_NTASKS": "1"}], ids=["", "slurm"])
def test_open_mpi_5_is_understood(do, start, wait, tmp_path, tree, around):
    children = [
        start(LAUNCHED.format(told=around | open_mpi_5(index), sweep=LIGHT)) for index in range(2)
    ]
    for ended, out, problems in map(wait, children):
        assert ended == 0, problems
        assert "done=1000" in out
    assert do(WHOLE.format(sweep=LIGHT.replace("a.zarr", "b.zarr")))[0] == 0
    assert tree(tmp_path / "a.zarr") == tree(tmp_path / "b.zarr")


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    """Whatever started the tests."""
    for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({"ORTE": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911"}, "10.96.0.1:62624"),
        ({"ORTE": "1531576320.0;usock;tcp://10.96.0.1:34911"}, "10.96.0.1:62624"),
        ({"ORTE": "1531576320.0;tcp6://[fe80::b9b,2620:10d::2]:43370"}, "[fe80::b9b]:62624"),
        ({"PMIX": "prterun-node-1.lan-4097@1"}, "node-1.lan:61441"),
        ({"PMIX": "prterun-node-4097@1", "PORT": "9999"}, "node:9999"),
    ],
)
def test_processes_meet_where_open_mpi_was_started(monkeypatch, told, expected):
    names = {"ORTE": processes.ORTE, "PMIX": "PMIX_NAMESPACE", "PORT": processes.PORT}
    for short, name in names.items():
        monkeypatch.delenv(name, raising=False)
        if short in told:
            monkeypatch.setenv(name, told[short])
    assert processes._address_of_mpirun() == expected


def test_under_open_mpi_the_coordinator_may_be_given_alone(do, start, wait, tmp_path, port):
    children = []
    for index in range(2):
        told = open_mpi_5(index) | {"PMIX_NAMESPACE": "prterun-elsewhere.invalid-1@1"}
        code = LAUNCHED.format(told=told, sweep=LIGHT)
        children.append(start(code.replace("joined()", f"joined('localhost:{port}')")))
    for ended, out, problems in map(wait, children):
        assert ended == 0, problems
        assert "done=1000" in out


@pytest.fixture
def short(monkeypatch):
    """Nobody is waited for."""
    for name in ("PATIENCE", "RESOLVING"):
        monkeypatch.setattr(processes, name, 0.1)


@pytest.mark.parametrize("process", [0, 1])
def test_an_address_that_nobody_has_is_refused(short, port, process):
    address = f"nowhere.invalid:{port}"
    sentence = ("does not reach itself at", "does not answer at")[process]
    refusal = pytest.raises(
        InvalidInput, match=f"^process 0 {sentence} {address}.* as coordinator$"
    )
    with refusal, joined(address, 2, process):
        pass


def test_where_nobody_listens_process_0_is_missed(short, port):
    with pytest.raises(InvalidInput) as refusal, joined(f"localhost:{port}", 2, 1):
        pass
    assert str(refusal.value) == (
        f"process 0 does not answer at localhost:{port} (Connection refused); start it, or give "
        "its HOST:PORT as coordinator"
    )


def test_a_port_that_is_taken_is_refused(port):
    expected = f"process 0 cannot listen at port {port}: Address already in use; choose another"
    refusal = pytest.raises(InvalidInput, match=f"^{expected} port$")
    with socket.create_server(("", port)), refusal, joined(f"localhost:{port}", 2, 0):
        pass


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "::1"])
def test_process_0_finds_itself_again_and_again(port, host):
    if host == "::1" and not socket.has_dualstack_ipv6():
        pytest.skip("there is no IPv6")
    for _ in range(3):
        processes._require_own(host, port)


def test_process_0_may_be_late(port):
    with ThreadPoolExecutor(2) as pool:
        others = [pool.submit(processes._await_process_0, "localhost", port) for _ in range(2)]
        time.sleep(0.5)
        assert not any(other.done() for other in others)
        processes._require_own("localhost", port)  # though the others knock first
        with socket.create_server(("localhost", port)):  # as JAX does next
            for other in others:
                other.result(timeout=10)


def test_open_mpi_that_says_too_little_is_refused(monkeypatch):
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    for name in ("PMIX_NAMESPACE", "OMPI_MCA_orte_hnp_uri"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(InvalidInput, match="does not say where process 0 is; give"), joined():
        pass


def test_without_flags_a_process_is_alone_and_waits_for_none():
    with joined() as (share, barrier):
        assert share == ALONE == Share(0, 1)
        barrier()


@pytest.mark.parametrize("name", ["SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"])
def test_a_launcher_of_one_process_changes_nothing(monkeypatch, name):
    monkeypatch.setenv(name, "1")
    with joined() as (share, _):
        assert share == ALONE


@pytest.mark.parametrize(
    ("flags", "missing"),
    [
        (("localhost:1", None, None), "processes"),
        ((None, 2, None), "coordinator"),
        ((None, None, 0), "coordinator"),
        (("localhost:1", 2, None), "process"),
        ((None, 2, 0), "coordinator"),
    ],
)
def test_some_flags_without_the_others_are_refused(flags, missing):
    with pytest.raises(InvalidInput, match=f"^{missing} is missing; give"), joined(*flags):
        pass


@pytest.mark.parametrize(
    "address",
    [
        *("", ":", ":1", "localhost", "localhost:", "localhost:port", "localhost:0"),
        *("localhost:65536", "a..b:1", f"{'a' * 64}:1", "::1:9999", "a b:1", "[]:1"),
    ],
)
def test_an_address_that_is_none_is_refused(address):
    refusal = pytest.raises(
        InvalidInput, match=f"^coordinator is '{re.escape(address)}'; give HOST:"
    )
    with refusal, joined(address, 1, 0):
        pass


@pytest.mark.parametrize(("processes", "process"), [(2, 2), (2, 3), (2, -1), (1, 1), (0, 0)])
def test_a_process_out_of_range_is_refused(processes, process):
    refusal = pytest.raises(InvalidInput, match=f"process is {process}; with {processes} processes")
    with refusal, joined("localhost:1", processes, process):
        pass


def test_a_single_process_may_be_joined(do, port):
    status, out, _ = do(
        CODE.format(port=port, count=1, index=0, sweep="stored('a.zarr', chunk_runs=1000)", pause=0)
    )
    assert status == 0
    assert "done=2000" in out
