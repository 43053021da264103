"""What the server refuses, and how soon."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path

import pytest

from resnetkit.errors import RecipeError
from resnetkit.serving import app
from resnetkit.serving.body import split_images
from resnetkit.serving.protocol import DeadlineProtocol
from resnetkit.serving.refusals import Refusal
from resnetkit.serving.server import Server
from resnetkit.serving.token import read_token

from .conftest import FakeServed, form, png, read_all, running, wait_for


def huge_png(width: int, height: int) -> bytes:
    """Return a valid PNG of black pixels, a few kilobytes for billions of pixels."""
    squeeze = zlib.compressobj(9)
    row = bytes(1 + width // 8)
    data = b"".join(squeeze.compress(row * 64) for _ in range(height // 64)) + squeeze.flush()
    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    parts = ((b"IHDR", head), (b"IDAT", data), (b"IEND", b""))
    chunks = (
        struct.pack(">I", len(part)) + name + part + struct.pack(">I", zlib.crc32(name + part))
        for name, part in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def memory() -> int:
    """Return this process's peak memory in bytes since `reset_peak`."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return 1024 * int(line.split()[1])
    raise AssertionError


def reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        (b"hello", 415, "not_an_image"),
        (b"", 415, "not_an_image"),
        (b"http://127.0.0.1/photo.png", 415, "not_an_image"),
        (b"file:///etc/passwd", 415, "not_an_image"),
        (b'{"url": "http://127.0.0.1/photo.png"}', 415, "not_an_image"),
        (b"<svg><image href='/etc/passwd'/></svg>", 415, "not_an_image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", 415, "not_an_image"),
        (png()[:45], 422, "broken_image"),
        (png()[:12], 422, "broken_image"),
        (b"\xff\xd8\xff\xe0 not a JPEG", 422, "broken_image"),
        (b"GIF89a", 422, "broken_image"),
    ],
)  # fmt: skip
def test_what_is_no_image(server, body, status, reason):
    reply = server.request(body=body)
    assert (reply.status, reply.json["reason"]) == (status, reason), reply.json
    assert reply.json["error"]
    assert reply.json["request"] == reply.headers["x-request-id"]


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads /proc")
@pytest.mark.parametrize("size", [(12288, 8192), (16384, 16384), (30_000_000, 64)])
def test_a_bomb_is_refused_without_its_memory(server, size):
    bomb = huge_png(*size)
    assert len(bomb) < 2**20 * 16
    reset_peak()
    before = memory()
    reply = server.request(body=bomb)
    assert reply.status == 422
    assert memory() - before < 3 * len(bomb) + 2**24


def test_a_webp_bomb_is_refused_without_its_memory(server):
    """The image's two headers both claim 16383 x 16383 pixels."""
    canvas = struct.pack("<I", 16382)[:3] * 2
    vp8x = b"VP8X" + struct.pack("<I", 10) + b"\0\0\0\0" + canvas
    vp8l = b"VP8L" + struct.pack("<I", 6) + b"\x2f" + struct.pack("<I", 16382 | 16382 << 14) + b"\0"
    content = b"WEBP" + vp8x + vp8l
    if Path("/proc/self/clear_refs").exists():
        reset_peak()
        before = memory()
    reply = server.request(body=b"RIFF" + struct.pack("<I", len(content)) + content)
    assert reply.status == 422
    if Path("/proc/self/clear_refs").exists():
        assert memory() - before < 2**25


def test_a_body_over_the_limit_is_refused_before_it_is_sent():
    with running(FakeServed(), body_bytes=200_000) as server:
        assert server.request(body=bytes(200_000)).status == 415
        reply = server.request(body=bytes(200_001))
        assert (reply.status, reply.json["reason"]) == (413, "body_too_large")
        head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 999999999\r\n"
        # A client that asks before it sends the body is refused at once.
        answer = server.send(head + b"Expect: 100-continue\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert b"100 Continue" not in answer


@pytest.mark.parametrize("kind", [b"Transfer-Encoding: chunked", b"Content-Length: 100000000"])
def test_of_a_body_over_the_limit_at_most_64_kib_more_are_read(kind, monkeypatch):
    limit = 300_000
    received: list[int] = []
    original = DeadlineProtocol.data_received

    def counted(self: DeadlineProtocol, data: bytes) -> None:
        received.append(len(data))
        original(self, data)

    monkeypatch.setattr(DeadlineProtocol, "data_received", counted)
    with running(FakeServed(), body_bytes=limit) as server, server.open() as connection:
        received.clear()
        head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\n" + kind + b"\r\n\r\n"
        connection.sendall(head)
        piece = bytes(0x8000)
        if b"chunked" in kind:
            piece = b"8000\r\n" + piece + b"\r\n"
        with pytest.raises(ConnectionError):
            for _ in range(1000):
                connection.sendall(piece)
        overhead = len(head) + limit // 0x8000 * 8
        assert sum(received) <= limit + 65536 + overhead
        if b"chunked" not in kind:
            assert sum(received) <= 65536 + overhead
        wait_for(lambda: '"status": 413' in server.log.getvalue())


def test_too_many_images_and_damaged_forms(server):
    body, kind = form(*((str(n), b"x") for n in range(65)))
    reply = server.request(body=body, Content_Type=kind)
    assert (reply.status, reply.json["reason"]) == (413, "too_many_images")
    good, _ = form(("a.png", png()))
    form_type = "multipart/form-data; boundary=XX"
    for body, kind in (
        (good[:-10], form_type),
        (b"--XX\r\nno colon\r\n\r\n\r\n--XX--\r\n", form_type),
        (b"--XX--\r\n", form_type),
        (b"nonsense", form_type),
        (good, "multipart/form-data"),
        (good, "multipart/form-data; boundary=" + "x" * 71),
        (good, "multipart/form-data; boundary=another"),
    ):
        reply = server.request(body=body, Content_Type=kind)
        assert (reply.status, reply.json["reason"]) == (400, "bad_form"), (body, kind)


def test_a_form_of_lines_that_begin_like_a_boundary_is_refused_unparsed(monkeypatch):
    monkeypatch.setattr("resnetkit.serving.body.MultipartParser", None)
    body, kind = form(("a.png", b"\r\n--XXa" * 100))
    with pytest.raises(Refusal, match="at most 64 images"):
        split_images(body, kind, 64)


def test_a_header_that_takes_long_ends_at_the_deadline_and_stops_nobody(monkeypatch):
    blocked = threading.Event()
    slow = png((1, 2, 3))

    def stored_size(contents: bytes) -> tuple[int, int]:
        assert contents != slow or blocked.wait(20)
        return 8, 8

    monkeypatch.setattr(app, "stored_size", stored_size)
    monkeypatch.setattr(app, "cores", lambda: 2)
    with running(FakeServed()) as server:
        start = time.monotonic()
        reply = server.request(body=slow, X_Deadline_Ms="300")
        assert (reply.status, reply.json["reason"]) == (504, "deadline")
        assert server.request(body=png()).status == 200
        assert time.monotonic() - start < 6
        assert server.server.service._memory._bytes == 0
        blocked.set()


def test_a_thread_that_reads_headers_does_not_keep_the_process():
    code = (
        "import time; from resnetkit.prefetch import Pool; "
        "Pool(lambda call: call(), 1).submit(lambda: time.sleep(60)); time.sleep(0.5)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=40)


def test_an_upload_slower_than_the_deadline(fake):
    """The default deadline starts after the upload; one that the client sets starts before it."""
    body = png()
    with running(fake, deadline_seconds=0.3) as server:
        for header, status in ((b"", b"200"), (b"X-Deadline-Ms: 300\r\n", b"504")):
            with server.open() as connection:
                head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
                connection.sendall(head + header + b"Content-Length: %d\r\n\r\n" % len(body))
                time.sleep(0.5)
                connection.sendall(body)
                answer = read_all(connection)
            assert answer.startswith(b"HTTP/1.1 " + status)
            assert b"retry-after" not in answer


def test_a_full_queue_answers_at_once_with_a_measured_time():
    fake = FakeServed(seconds=0.05)
    with running(fake, queue_images=4, batch_images=1) as server:
        for _ in range(3):
            server.request(body=png())
        fake.blocked.clear()
        statuses: list[int] = []
        threads = [
            threading.Thread(target=lambda: statuses.append(server.request(body=png()).status))
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        wait_for(lambda: server.server.queue.images == 4)
        times = []
        for _ in range(20):
            start = time.monotonic()
            reply = server.request(body=png())
            times.append(time.monotonic() - start)
            assert (reply.status, reply.json["reason"]) == (503, "queue_full")
            assert 1 <= int(reply.headers["retry-after"]) <= 30
        # The answer does not wait for the body.
        head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 999999\r\n\r\n"
        start = time.monotonic()
        assert server.send(head).startswith(b"HTTP/1.1 503 ")
        assert time.monotonic() - start < 5
        fake.blocked.set()
        for thread in threads:
            thread.join()
        assert statuses == [200] * 4
        assert sorted(times)[len(times) // 2] < 0.05
        assert server.metric("resnetkit_refusals_total", reason="queue_full") == 21


def test_a_queue_is_full_of_pixels_too():
    fake = FakeServed()
    with running(fake, queue_pixels=100 * 100 + 50) as server:
        fake.blocked.clear()
        thread = threading.Thread(target=server.request, kwargs={"body": png(size=(100, 100))})
        thread.start()
        wait_for(lambda: fake.batches == [1])
        assert server.server.queue.pixels == 100 * 100
        reply = server.request(body=png(size=(20, 20)))
        assert (reply.status, reply.json["reason"]) == (503, "queue_full")
        assert "10,000 pixels" in reply.json["error"]
        fake.blocked.set()
        thread.join()
        assert server.server.queue.pixels == 0
        assert server.request(body=png(size=(20, 20))).status == 200


def test_a_request_past_its_deadline_is_not_computed():
    fake = FakeServed()
    with running(fake) as server:
        fake.blocked.clear()
        thread = threading.Thread(target=server.request, kwargs={"body": png()})
        thread.start()
        wait_for(lambda: fake.batches == [1])
        start = time.monotonic()
        reply = server.request(body=png(), X_Deadline_Ms="100")
        assert (reply.status, reply.json["reason"]) == (504, "deadline")
        assert time.monotonic() - start < 1
        fake.blocked.set()
        thread.join()
        assert server.request(body=png()).status == 200
        assert fake.batches == [1, 1]
        assert server.server.queue.dropped == 1
    for value in ("0", "60001", "1e3", "-5", "soon", "٣"):
        with running(fake) as server:
            head = f"POST /predict HTTP/1.1\r\nHost: [::1]\r\nX-Deadline-Ms: {value}\r\n"
            answer = server.send(head.encode() + b"Content-Length: 1\r\n\r\nx")
            assert b" 400 " in answer[:20], value


def test_a_request_whose_client_has_gone_is_not_computed():
    fake = FakeServed()
    with running(fake) as server:
        fake.blocked.clear()
        thread = threading.Thread(target=server.request, kwargs={"body": png()})
        thread.start()
        wait_for(lambda: fake.batches == [1])
        with server.open() as connection:
            body = png()
            head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"
            connection.sendall(head % len(body) + body)
            wait_for(lambda: server.server.queue.images == 2)
        wait_for(lambda: server.server.queue.images == 1)
        fake.blocked.set()
        thread.join()
        server.request(body=png())
        assert fake.batches == [1, 1]
        wait_for(lambda: '"status": 499' in server.log.getvalue())


def test_a_queue_that_needs_longer_than_the_deadline_refuses():
    fake = FakeServed(seconds=0.3)
    with running(fake, batch_images=1) as server:
        server.request(body=png())
        threads = [
            threading.Thread(target=server.request, kwargs={"body": png()}) for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        wait_for(lambda: server.server.queue.images == 3)
        reply = server.request(body=png(), X_Deadline_Ms="200")
        assert (reply.status, reply.json["reason"]) == (503, "too_busy")
        for thread in threads:
            thread.join()


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST:80", 200),
        ("127.0.0.1:8000", 200),
        ("[::1]:8000", 200),
        ("192.168.0.7", 200),
        ("photos.example", 200),
        ("evil.example", 421),
        ("localhost.evil.example", 421),
        ("localhost@evil.example", 421),
        ("", 421),
        ("127.0.0.1.evil.example", 421),
    ],
)
def test_only_known_host_names_are_answered(fake, host, status):
    with running(fake, allowed_hosts=["Photos.example"]) as server:
        reply = server.request("GET", "/classes", Host=host)
        assert reply.status == status


@pytest.mark.parametrize("name", ["Photos.Example.", "photos.example:8443", "photos.example"])
def test_names_of_the_server_are_compared_without_port_and_dot(fake, name):
    with running(fake, allowed_hosts=[name]) as server:
        assert server.request("GET", "/classes", Host="photos.example").status == 200
        assert server.request("GET", "/classes", Host="photos.example.:8443").status == 200


def test_a_wrong_name_of_the_server_is_refused(fake):
    with pytest.raises(RecipeError, match="is not a host name"):
        Server(fake, allowed_hosts=["https://photos.example"])


def test_a_path_with_a_slash_too_many_is_not_redirected(fake):
    """The new URL would begin with http://, even behind a TLS proxy."""
    with running(fake) as server:
        reply = server.request(path="/predict/", body=png())
        assert (reply.status, reply.json["reason"]) == (404, "not_found")
        assert "location" not in reply.headers


def test_pages_of_other_sites_are_refused(server):
    host = "{}:{}".format(*server.address)
    assert server.request("GET", "/classes", Origin=f"http://{host}").status == 200
    for origin in ("http://evil.example", "null", "http://[", f"http://{host}.evil.example"):
        reply = server.request(body=png(), Origin=origin)
        assert (reply.status, reply.json["reason"]) == (403, "other_origin")
        assert "access-control-allow-origin" not in reply.headers


def test_the_token_protects_all_but_the_page_and_the_probes(fake):
    token = "s3cret-token-of-32-characters-ok"
    with running(fake, token=token) as server:
        for path in ("/", "/page/style.css", "/live", "/ready"):
            assert server.request("GET", path).status == 200
        for path in ("/classes", "/model", "/metrics"):
            assert server.request("GET", path).status == 401
            assert server.request("GET", path, Authorization=f"Bearer {token}").status == 200
        for wrong in ("", token, f"Basic {token}", f"Bearer {token}x", "Bearer", "Bearer é"):
            reply = server.request(body=png(), Authorization=wrong)
            assert reply.status == 401
            assert reply.headers["www-authenticate"] == "Bearer"
        assert server.request(body=png(), Authorization=f"bearer {token}").status == 200
        assert token not in server.log.getvalue()


def test_tokens_come_from_a_file_or_the_environment(tmp_path, monkeypatch):
    assert read_token(None) is None
    monkeypatch.setenv("RESNETKIT_TOKEN", "a" * 16)
    assert read_token(None) == "a" * 16
    (tmp_path / "token").write_text("b" * 20 + "\n")
    assert read_token(tmp_path / "token") == "b" * 20
    for bad in (b"\xff\xfe" * 20, b"secret of 16 bytes\xe9"):
        (tmp_path / "token").write_bytes(bad)
        with pytest.raises(RecipeError, match="at least 16 ASCII characters"):
            read_token(tmp_path / "token")
    for bad in ("short", "with a space in the middle", "é" * 20, ""):
        (tmp_path / "token").write_text(bad)
        with pytest.raises(RecipeError, match="at least 16 ASCII characters"):
            read_token(tmp_path / "token")


def test_every_answer_has_strict_headers_and_no_cookies(server):
    replies = [
        server.request("GET", "/"),
        server.request(body=png()),
        server.request(body=b"no"),
        server.request("GET", "/nothing"),
        server.request("PUT", "/predict"),
        server.request("GET", "/live", Host="evil.example"),
    ]
    assert [reply.status for reply in replies] == [200, 200, 415, 404, 405, 421]
    for reply in replies:
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in reply.headers["content-security-policy"]
        assert reply.headers["x-frame-options"] == "DENY"
        assert "set-cookie" not in reply.headers
        assert "server" not in reply.headers


def test_an_unread_body_does_not_become_the_next_request(server):
    """A request that is refused early closes the connection: no smuggling."""
    inner = b"GET /classes HTTP/1.1\r\nHost: localhost\r\n\r\n"
    outer = b"POST /nothing HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"
    answer = server.send(outer % (len(inner) + 5) + inner)
    assert answer.count(b"HTTP/1.1 ") == 1
    assert b"connection: close" in answer.lower()
    double = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n"
    answer = server.send(double + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + inner)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.count(b"HTTP/1.1 ") == 1


def test_too_many_uploads_at_once_are_refused():
    with running(FakeServed(), bodies_bytes=100_000, body_bytes=90_000) as server:
        with server.open() as slow:
            slow.sendall(
                b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 80000\r\n\r\n"
            )
            slow.sendall(bytes(60_000))
            wait_for(lambda: server.server.service._memory._bytes == 60_000)
            reply = server.request(body=bytes(50_000))
            assert (reply.status, reply.json["reason"]) == (503, "memory")
        wait_for(lambda: server.server.service._memory._bytes == 0)
        assert server.request(body=bytes(50_000)).status == 415


def test_too_many_connections_are_refused(fake):
    with running(fake, connections=5) as server:
        idle = [server.open() for _ in range(5)]
        wait_for(lambda: server.metric("resnetkit_refusals_total", reason="x") == 0)
        with server.open() as another:
            assert read_all(another).startswith(b"HTTP/1.1 503 ")
        for connection in idle:
            connection.close()
        server.wait_ready()


def test_a_busy_server_refuses_before_it_reads(fake):
    """A refusal for a full queue looks like any other, and carries the id of the request."""
    fake.blocked.clear()
    with running(fake, queue_images=1) as server:
        waiting = threading.Thread(target=lambda: server.request(body=png()))
        waiting.start()
        wait_for(lambda: server.server.queue.images == 1)
        head = b"POST /predict?top_k=1 HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: abc\r\n"
        answer = server.send(head + b"Content-Length: 90000\r\n\r\n" + bytes(20_000))
        start, _, body = answer.partition(b"\r\n\r\n")
        lines = start.decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines[1:])
        assert lines[0] == "HTTP/1.1 503 Service Unavailable"
        assert json.loads(body)["reason"] == "queue_full"
        assert json.loads(body)["request"] == headers["x-request-id"] == "abc"
        assert int(headers["retry-after"]) >= 1
        assert headers["connection"] == "close"
        assert headers["content-length"] == str(len(body))
        assert server.metric("resnetkit_refusals_total", reason="queue_full") == 1
        assert server.metric("resnetkit_stage_seconds_count", stage="request") > 0
        # Requests that do not need the queue are answered as usual.
        assert server.request(body=png(), Host="evil.example").status == 421
        assert server.request(body=png(), Origin="http://evil.example").status == 403
        assert server.request("GET", "/live").status == 200
        assert server.request(body=png(), X_Deadline_Ms="soon").status == 400
        fake.blocked.set()
        waiting.join()
    assert '"request": "abc"' in server.log.getvalue()
