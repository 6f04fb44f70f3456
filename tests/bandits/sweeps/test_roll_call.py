"""Processes come to a roll call, or hear in a sentence why they cannot go on."""

import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from bandits.sweeps.roll_call import roll_call
from theory.checks import InvalidInput


@pytest.fixture
def call(port):
    """Have processes, as (number, count), come at once: what each hears, "" if all are there."""

    def one(who, address, patience):
        try:
            roll_call(address or f"localhost:{port}", who[1], who[0], patience)
        except InvalidInput as error:
            return str(error)
        return ""

    def call(*processes, address=None, patience=30.0):
        with ThreadPoolExecutor(len(processes)) as pool:
            return list(pool.map(lambda who: one(who, address, patience), processes))

    return call


@pytest.mark.parametrize("count", [1, 2, 5])
def test_all_go_on_once_all_are_there(call, count):
    assert call(*((number, count) for number in range(count))) == [""] * count


def test_the_same_port_serves_again_at_once(call):
    for _ in range(3):
        assert call((1, 2), (0, 2)) == ["", ""]


def test_process_0_may_be_late(port):
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(roll_call, f"localhost:{port}", 2, 1)
        time.sleep(0.5)
        roll_call(f"localhost:{port}", 2, 0)
        other.result()


def test_an_address_of_version_6_is_understood(call, port):
    if not socket.has_dualstack_ipv6():
        pytest.skip("no IPv6 here")
    assert call((0, 2), (1, 2), address=f"[::1]:{port}") == ["", ""]


def test_everyone_hears_who_does_not_come(call, port):
    expected = f"process 1, 3, 4, … of 6 did not come to localhost:{port}; start all of them"
    assert call((0, 6), (2, 6), patience=2.0) == [expected] * 2


def test_who_finds_no_process_0_says_so(call, port):
    (heard,) = call((1, 2), patience=0.5)
    assert heard == (
        f"process 0 does not answer at localhost:{port} (Connection refused); start it, or give "
        "its HOST:PORT"
    )


def test_a_number_given_twice_is_refused_to_everyone(call):
    assert (
        call((0, 3), (1, 3), (1, 3)) == ["two processes have the number 1; give each its own"] * 3
    )


def test_two_processes_0_are_told_of_the_port(call, port):
    heard = call((0, 2), (0, 2), patience=1.0)
    assert f"process 0 cannot listen at port {port}: Address already in use" in " ".join(heard)


def test_another_count_is_refused_to_everyone(call):
    assert call((0, 2), (1, 3)) == ["process 1 counts 3 processes, process 0 2"] * 2


def test_process_0_refuses_an_address_that_is_not_its_own(call, port):
    (heard,) = call((0, 2), address=f"nowhere.invalid:{port}")
    assert heard.startswith(f"process 0 does not reach itself at nowhere.invalid:{port} (")
    assert heard.endswith("); give HOST:PORT of its machine as coordinator")


@pytest.mark.parametrize(
    "words", [b"", b"GET / HTTP/1.1\r\n\r\n", b"modeseek\n", b"modeseek x 2\n"]
)
def test_strangers_are_passed_over(call, port, words):
    def strange():
        for _ in range(100):
            try:
                with socket.create_connection(("localhost", port)) as connection:
                    connection.sendall(words)
                    return connection.recv(1)
            except ConnectionRefusedError:
                time.sleep(0.02)
        raise AssertionError

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(call, (0, 2))
        assert pool.submit(strange).result() == b""
        assert call((1, 2)) == [""]
        assert first.result() == [""]


def test_what_answers_and_is_not_process_0_is_not_believed(call, port):
    with socket.create_server(("localhost", port)) as server, ThreadPoolExecutor(1) as pool:
        heard = pool.submit(call, (1, 2), patience=1.0)
        while not heard.done():
            server.settimeout(0.5)
            try:
                connection, _ = server.accept()
            except TimeoutError:
                continue
            with connection:
                connection.sendall(b"SSH-2.0-OpenSSH\r\n")
    assert heard.result()[0].startswith(f"process 0 does not answer at localhost:{port}")
