"""How the ranks of a run meet, with a real store, and with threads instead of processes."""

from __future__ import annotations

import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from torch.distributed import HashStore

from resnetkit import hosts
from resnetkit.errors import TrainingError

NAMES = ["alpha", "alpha", "beta"]


def meet_in_threads(store, size, *, seconds=10.0, ranks=None):
    """Let ranks meet; return the peers, or the error, that each rank gets."""

    def meet(rank):
        threading.current_thread().name = str(rank)
        try:
            return hosts.meet(store, rank, size, deadline=time.monotonic() + seconds)
        except TrainingError as error:
            return error

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(meet, range(size) if ranks is None else ranks))


@contextmanager
def closing(peers):
    try:
        yield
    finally:
        for each in peers:
            each.close()


@pytest.fixture(autouse=True)
def _short_wait(monkeypatch):
    monkeypatch.setattr(hosts, "ANSWER_SECONDS", 0.5)


def own_rank():
    return int(threading.current_thread().name)


def test_equal_reports_have_no_differences():
    assert hosts.differences([{"lr": 0.1, "torch": "2"}] * 3, NAMES) == []


def test_a_difference_names_the_holders_of_each_value():
    reports = [{"torch": "2.14", "lr": 1}, {"torch": "2.13", "lr": 1}, {"torch": "2.14"}]
    assert hosts.differences(reports, NAMES) == [
        "torch: 2.14 on alpha (rank 0), beta (rank 2); 2.13 on alpha (rank 1)",
        "lr: 1 on alpha (ranks 0, 1); nothing on beta (rank 2)",
    ]
    (line,) = hosts.differences([{"a": "x" * 500}, {"a": "y" * 500}], NAMES)
    assert line == f"a: {'x' * 100}... on alpha (rank 0); {'y' * 100}... on alpha (rank 1)"


def test_all_ranks_meet_and_those_of_a_restart_do_not_read_older_keys():
    store = HashStore()
    tokens = set()
    for size in (3, 2, 4, 2):  # torchrun may restart with another number of ranks
        peers = meet_in_threads(store, size)
        with closing(peers):
            assert len({each.token for each in peers}) == 1
            tokens.add(peers[0].token)
            assert all(each.reports == peers[0].reports for each in peers)
            ports = [each.listener.getsockname()[1] for each in peers]
            assert [report["port"] for report in peers[0].reports] == ports
    assert len(tokens) == 4


def test_a_rank_that_does_not_come_is_named():
    errors = meet_in_threads(HashStore(), 3, seconds=0.5, ranks=[0, 2])
    assert [str(error).split(".")[0] for error in errors] == [
        "1 of 3 ranks did not arrive within 24 seconds: 1"
    ] * 2


def test_other_versions_are_an_error_on_all_ranks(monkeypatch):
    own = hosts.versions()
    monkeypatch.setattr(
        hosts, "versions", lambda: own if own_rank() else {**own, "torch": "2.0", "python": "3.12"}
    )
    errors = meet_in_threads(HashStore(), 2)
    assert str(errors[0]) == str(errors[1])
    host = socket.gethostname()
    assert f"torch: 2.0 on {host} (rank 0); {own['torch']} on {host} (rank 1)" in str(errors[0])
    assert "pip install resnetkit==" in str(errors[0])
    assert "torch==2.0" in str(errors[0])
    assert "with Python 3.12" in str(errors[0])


def test_a_loopback_address_is_an_error_only_between_hosts(monkeypatch):
    monkeypatch.setattr(hosts, "exchange_address", lambda: "127.0.0.1")
    peers = meet_in_threads(HashStore(), 2)
    with closing(peers):
        assert not any(each.unreachable() for each in peers)
    monkeypatch.setattr(socket, "gethostname", lambda: ["alpha", "beta"][own_rank()])
    monkeypatch.setattr(hosts, "interfaces", lambda: {"lo": "127.0.0.1", "eth7": "10.1.2.3"})
    errors = meet_in_threads(HashStore(), 2)
    assert "beta (rank 1): gloo would use 127.0.0.1. Its interfaces: eth7 10.1.2.3" in str(
        errors[0]
    )
    assert "export GLOO_SOCKET_IFNAME=eth7" in str(errors[1])


def test_a_rank_that_ended_is_named_and_one_that_lives_is_not():
    peers = meet_in_threads(HashStore(), 3)
    with closing(peers):
        assert peers[0].unreachable() == {}
        peers[2].close()
        assert peers[0].unreachable() == {2: "refused"}
        host = socket.gethostname()
        assert (
            peers[0]
            .explain_loss()
            .startswith(
                f"Another process of this run has ended: {host} (rank 2). Its own message says why"
            )
        )


def test_a_rank_that_still_accepts_connections_while_it_ends_is_named(monkeypatch):
    monkeypatch.setattr(hosts, "ENDING_SECONDS", 30)
    peers = meet_in_threads(HashStore(), 2)
    with closing(peers):
        threading.Timer(0.15, peers[1].close).start()
        assert f"has ended: {socket.gethostname()} (rank 1)" in peers[0].explain_loss()


@pytest.mark.skipif(sys.platform != "linux", reason="interfaces are read only on Linux")
def test_the_address_is_that_of_the_interface_in_the_variable(monkeypatch):
    assert hosts.interfaces()["lo"] == "127.0.0.1"
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo,eth0")
    assert hosts.exchange_address() == "127.0.0.1"
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "no-such0")
    assert hosts.exchange_address() == ""
    errors = meet_in_threads(HashStore(), 2)
    assert "gloo would use an unknown interface" in str(errors[0])


@pytest.mark.skipif(sys.platform != "linux", reason="finds sockets in /proc")
def test_connections_made_since_get_a_time_limit_and_end_together():
    (peers,) = meet_in_threads(HashStore(), 1)
    with closing([peers]), socket.create_server(("127.0.0.1", 0)) as server:
        before = hosts.open_sockets()
        client = socket.create_connection(server.getsockname())
        peer, _ = server.accept()
        with client, peer:
            peers.watch({**before, "unknown": 0})
            assert client.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            assert client.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 12_000
            assert server.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 0
            peers.explain_loss()
            assert client.recv(1) == peer.recv(1) == b""


def test_a_main_rank_that_cannot_be_reached_is_named(monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "1")
    with pytest.raises(TrainingError, match=r"\(rank 3\) cannot reach the main rank at 127.0.0.1,"):
        hosts.await_main_rank(3, time.monotonic() + 0.3)
