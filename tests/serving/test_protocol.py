"""Clients that are slow, disconnect, or send nonsense."""

from __future__ import annotations

import asyncio
import random
import socket
import sys
import threading
import time
from contextlib import suppress
from typing import Any

import pytest
import uvicorn

from resnetkit.serving.bounds import Bounds
from resnetkit.serving.metrics import Metrics
from resnetkit.serving.protocol import DeadlineProtocol, protocol_class
from resnetkit.serving.queue import Queue
from resnetkit.serving.server import _ignore_new_connections, _Uvicorn

from .conftest import FakeServed, Running, png, read_all, running, wait_for

SLOW = {"header_seconds": 0.4, "body_seconds": 0.4, "write_seconds": 0.4, "idle_seconds": 1}
HEAD = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"


def trickle(connection: socket.socket, content: bytes, seconds: float) -> float:
    """Send one byte at a time until the server hangs up; return how long that took."""
    start = time.monotonic()
    connection.settimeout(0.05)
    for position in range(len(content)):
        try:
            connection.sendall(content[position : position + 1])
            if connection.recv(1) == b"":
                break
        except TimeoutError:
            pass
        except ConnectionError:
            break
        assert time.monotonic() - start < seconds, "the server waits too long"
    return time.monotonic() - start


@pytest.mark.parametrize(
    "sent", [b"", b"POST /pre", b"GET /live HTTP/1.1\r\nHost: localhost\r\nX-A"]
)
def test_headers_that_never_end_are_cut(fake, sent):
    with running(fake, **SLOW) as server, server.open() as connection:
        connection.sendall(sent)
        start = time.monotonic()
        assert read_all(connection) == b""
        assert time.monotonic() - start < 2
        assert server.metric("resnetkit_refusals_total", reason="slow_headers") == 1


def test_headers_byte_by_byte_are_cut(fake):
    with running(fake, **SLOW) as server, server.open() as connection:
        assert trickle(connection, b"GET /live HTTP/1.1\r\nX-Long: " + b"a" * 1000, 3) < 2


def test_headers_of_a_later_request_are_cut(fake):
    with running(fake, **SLOW) as server, server.open() as connection:
        connection.sendall(b"GET /live HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert connection.recv(9999).startswith(b"HTTP/1.1 200 ")
        assert trickle(connection, b"GET /live HTTP/1.1\r\nX-Long: " + b"a" * 1000, 3) < 2


def test_a_connection_without_a_request_is_closed(fake):
    with running(fake, **SLOW) as server, server.open() as connection:
        connection.sendall(b"GET /live HTTP/1.1\r\nHost: localhost\r\n\r\n")
        start = time.monotonic()
        assert read_all(connection).startswith(b"HTTP/1.1 200 ")
        assert time.monotonic() - start < 3


def test_a_body_that_never_ends_is_answered_and_cut(fake):
    with running(fake, **SLOW) as server:
        answer = server.send(HEAD % 1000 + b"abc")
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b"connection: close" in answer
        with server.open() as connection:
            connection.sendall(HEAD % 10_000)
            assert trickle(connection, b"a" * 10_000, 4) < 3
        with server.open() as connection:  # a route that reads no body
            connection.sendall(b"POST /live HTTP/1.1\r\nHost: a\r\nContent-Length: 10000\r\n\r\n")
            assert trickle(connection, b"a" * 10_000, 4) < 3.5
        wait_for(lambda: not server.server.queue.images)


def test_a_client_that_does_not_read_is_cut():
    """The client requests more than the system's buffers hold, and reads nothing."""
    with running(FakeServed(), **SLOW) as server, server.open() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        request = b"GET /docs HTTP/1.1\r\nHost: localhost\r\n\r\n"
        connection.settimeout(0.5)
        start = time.monotonic()
        with pytest.raises((ConnectionError, TimeoutError)):
            while time.monotonic() - start < 15:
                connection.sendall(request * 100)
        wait_for(lambda: server.metric("resnetkit_refusals_total", reason="slow_reader") == 1)
        assert server.request("GET", "/live").status == 200


def test_a_client_that_leaves_a_small_rest_is_cut(monkeypatch):
    """The unread answers fit into our own buffer, and the connection is already closing."""
    original = DeadlineProtocol.connection_made

    def small_buffers(self, transport):
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        original(self, transport)

    monkeypatch.setattr(DeadlineProtocol, "connection_made", small_buffers)
    with running(FakeServed(), **SLOW) as server, socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(server.address)
        connection.sendall(b"GET /docs HTTP/1.1\r\nHost: localhost\r\n\r\n" * 8)
        wait_for(lambda: server.metric("resnetkit_refusals_total", reason="slow_reader") == 1, 5)


RUBBISH = [
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),  # TLS
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"GET / HTTP/9.9\r\n\r\n",
    b"\r\n" * 100 + b"\0",
    b"GET /\xff\xfe HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET /live HTTP/1.1\r\n\r\n",  # no Host header
    b"GET /live HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    b"GET /live HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 70_000 + b"\r\n\r\n",
    b"GET /live HTTP/1.1\r\nHost: localhost\r\n" + b"X: a\r\n" * 20_000 + b"\r\n",
    b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
    b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1, 2\r\n\r\n",
    b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: %s\r\n\r\n" % (b"9" * 5000),
    b"POST /predict HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"POST /predict HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip\r\n\r\n",
    b"GET /live HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
    b"CONNECT localhost:22 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET http://evil.example/ HTTP/1.1\r\nHost: localhost\r\n\r\n",
]


def survives(server: Running) -> None:
    assert server.request(body=png()).status == 200
    assert "Traceback" not in server.log.getvalue()
    assert '"event": "error"' not in server.log.getvalue()
    assert '"event": "library"' not in server.log.getvalue()


@pytest.mark.parametrize("rubbish", RUBBISH)
def test_rubbish_is_refused_or_cut(fake, rubbish):
    with running(fake, **SLOW) as server:
        answer = server.send(rubbish)
        assert answer == b"" or answer.startswith(b"HTTP/1.1 ")
        survives(server)


@pytest.mark.slow
def test_rubbish_after_a_request_is_refused_or_cut(fake):
    """The rubbish is pipelined after answered requests, or after one that is being computed."""
    with running(fake, **SLOW) as server:
        image = png()
        for rubbish in RUBBISH:
            live = b"GET /live HTTP/1.1\r\nHost: localhost\r\n\r\n"
            for good in (live, live * 20, HEAD % len(image) + image):
                assert server.send(good + rubbish).startswith(b"HTTP/1.1 200 ")
        survives(server)


def test_a_damaged_later_chunk_is_one_refusal(fake):
    with running(fake) as server, server.open() as connection:
        head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        connection.sendall(head + b"5\r\nabcde\r\n")
        time.sleep(0.2)
        connection.sendall(b"zz\r\n")
        assert read_all(connection).startswith(b"HTTP/1.1 400 ")
        wait_for(lambda: '"status": 400' in server.log.getvalue())
        assert server.metric("resnetkit_refusals_total", reason="bad_http") == 1
        assert server.metric("resnetkit_refusals_total", reason="client_gone") == 0


@pytest.mark.parametrize("kind", ["length", "chunked"])
def test_a_photo_that_is_being_sent_does_not_cost_the_refusal(kind):
    """Most clients read the answer only after they have sent everything."""
    fake = FakeServed()
    fake.blocked.clear()
    piece = bytes(2**16)
    lines = {"length": b"Content-Length: %d" % (40 * len(piece)),
             "chunked": b"Transfer-Encoding: chunked"}  # fmt: skip
    with running(fake, queue_images=1, body_seconds=30) as server:
        waiting = threading.Thread(target=server.request, kwargs={"body": png()})
        waiting.start()
        wait_for(lambda: server.server.queue.images == 1)
        with server.open() as connection:
            head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\n" + lines[kind] + b"\r\n\r\n"
            connection.sendall(head)
            for _ in range(40):
                time.sleep(0.08)
                framed = b"%x\r\n" % len(piece) + piece + b"\r\n"
                connection.sendall(framed if kind == "chunked" else piece)
            assert read_all(connection).startswith(b"HTTP/1.1 503 ")
        with server.open() as slow:  # stopping does not wait for such a client
            slow.sendall(head)
            assert slow.recv(9999).startswith(b"HTTP/1.1 503 ")
            fake.blocked.set()
            waiting.join()
            start = time.monotonic()
            server.server.stop()
            wait_for(lambda: '"event": "stopped"' in server.log.getvalue())
            assert time.monotonic() - start < 2.9
            assert '"event": "library"' not in server.log.getvalue()


def test_pipelined_requests_are_answered_in_order(fake):
    with running(fake, **SLOW) as server:
        image = png()
        one = HEAD % len(image) + image
        other = b"GET /classes HTTP/1.1\r\nHost: localhost\r\n\r\n"
        answer = server.send((one + other) * 50)
        assert answer.count(b"HTTP/1.1 200 ") == 100
        first, second = answer.split(b"HTTP/1.1 200 ")[1:3]
        assert b'"source"' in first
        assert b'"classes"' in second


@pytest.mark.slow
def test_a_thousand_mutated_requests_and_uploads(fake):
    rng = random.Random(0)
    image = png(size=(30, 20))
    seeds = [HEAD % len(image) + image, b"GET /ready HTTP/1.1\r\nHost: localhost\r\n\r\n", *RUBBISH]
    with running(fake, **{**SLOW, "idle_seconds": 1}) as server:
        for _ in range(1000):
            content = bytearray(rng.choice(seeds[:2]) if rng.random() < 0.7 else rng.choice(seeds))
            for _ in range(rng.randint(1, 8)):
                place = rng.randrange(len(content))
                if rng.random() < 0.5:
                    content[place] = rng.randrange(256)
                else:
                    del content[place : place + rng.randint(1, 20)]
                    content = content or bytearray(b"x")
            with server.open() as connection:
                with suppress(OSError):  # the server may refuse and close before it has everything
                    connection.sendall(bytes(content))
                    connection.shutdown(socket.SHUT_WR)
                answer = read_all(connection)
            assert answer == b"" or answer.startswith(b"HTTP/1.1 ")
        wait_for(lambda: not server.server.queue.images)
        survives(server)


@pytest.mark.slow
def test_a_hundred_slow_clients_do_not_disturb_a_quick_one(fake):
    with running(fake, header_seconds=3, body_seconds=3) as server:
        slow = [server.open() for _ in range(100)]
        for number, connection in enumerate(slow):
            connection.sendall(HEAD % 100_000 + b"a" * 1000 if number % 2 else b"POST /pre")
        times = []
        for _ in range(50):
            start = time.monotonic()
            assert server.request(body=png()).status == 200
            times.append(time.monotonic() - start)
        assert sorted(times)[25] < 0.1
        wait_for(lambda: len(all_connections(server)) == 0, 15)
        for connection in slow:
            connection.close()


def all_connections(server: Running) -> list[str]:
    """Return the open connections to the server, as Linux lists them."""
    port = f":{server.address[1]:04X}"
    with open("/proc/net/tcp") as file:
        rows = [line.split() for line in file.readlines()[1:]]
    return [row[1] for row in rows if row[1].endswith(port) and row[3] == "01"]


@pytest.mark.parametrize("sent", [b"", b"GET /cla"])
def test_a_connection_from_before_the_end_is_answered(fake, sent):
    """The request arrives on that connection after the server has stopped listening."""
    with running(fake) as server, server.open() as connection:
        connection.sendall(sent)
        time.sleep(0.1)
        server.server.stop()
        wait_for(lambda: not can_connect(server))
        rest = b"GET /classes HTTP/1.1\r\nHost: localhost\r\n\r\n"[len(sent) :]
        connection.sendall(rest)
        answer = read_all(connection)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"\r\nconnection: close\r\n" in answer.lower()


def can_connect(server: Running) -> bool:
    try:
        server.open().close()
    except OSError:
        return False
    return True


def test_connections_that_nobody_accepted_yet_are_answered():
    """A busy server's event loop may get to such connections only when the server stops."""

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def run() -> list[bytes]:
        listener = socket.create_server(("127.0.0.1", 0))
        config = uvicorn.Config(
            application,
            http=protocol_class(Bounds(), Metrics(Queue(Bounds()))),
            lifespan="off",
            log_config=None,
        )
        config.load()
        server = _Uvicorn(config)
        server.lifespan = config.lifespan_class(config)
        await server.startup([listener])
        asyncio.get_running_loop().remove_reader(listener)  # no more connections are accepted
        clients = [socket.create_connection(listener.getsockname()[:2]) for _ in range(5)]
        for client in clients:
            client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        await server.shutdown([listener])
        answers = [read_all(client) for client in clients]
        for client in clients:
            client.close()
        return answers

    answers = asyncio.run(run())
    assert [answer[:13] for answer in answers] == [b"HTTP/1.1 204 "] * 5


@pytest.mark.skipif(sys.platform != "linux", reason="uses Linux's packet filter")
def test_a_port_that_is_about_to_close_ignores_new_connections_only():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
        with socket.create_connection(address, timeout=5) as early:
            _ignore_new_connections(listener)
            with pytest.raises(TimeoutError):
                socket.create_connection(address, timeout=0.3)
            accepted, _ = listener.accept()
            with accepted:
                early.sendall(b"x")
                assert accepted.recv(1) == b"x"
