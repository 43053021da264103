"""A fresh cache, and a local HTTP server that can fail in chosen ways."""

from __future__ import annotations

import contextlib
import hashlib
import random
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

CONTENT = random.Random(0).randbytes(3_500_000)
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@dataclass
class Site:
    """A local server: files by path, the faults of its next responses, and requests so far."""

    files: dict[str, bytes]
    address: str = ""
    faults: list[str] = field(default_factory=list)
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    etag: str | None = '"one"'
    heeds_if_range: bool = True
    delay: float = 0.0
    length: str = ""
    published: str = ""
    digest: str = ""
    content: bytes = b""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    site: Site

    def do_GET(self) -> None:
        site = self.site
        wanted = self.headers.get("Range")
        site.requests.append((self.path, wanted))
        fault = site.faults.pop(0) if site.faults else ""
        threading.Event().wait(site.delay)
        if fault == "close":
            self.close_connection = True
            return
        if fault.isdigit() or self.path not in site.files:
            self._answer(int(fault or 404), b"")
            return
        if fault.startswith("http"):
            self._answer(302, b"", {"Location": fault})
            return
        body = site.files[self.path]
        start = self._start(wanted, len(body))
        if start is None:
            self._answer(416, b"")
            return
        extra = {"Content-Range": f"bytes {start}-{len(body) - 1}/{len(body)}"} if start else {}
        if fault == "wrong part":
            extra = {"Content-Range": f"bytes 1-{len(body) - 1}/{len(body)}"}
        if fault == "flip":
            body = body[:-1] + bytes([body[-1] ^ 1])
        self._answer(206 if extra else 200, body[start:], extra, cut=fault == "cut")

    def _start(self, wanted: str | None, size: int) -> int | None:
        same = self.headers.get("If-Range") == self.site.etag or not self.site.heeds_if_range
        if wanted is None or not same:
            return 0
        start = int(wanted.removeprefix("bytes=").rstrip("-"))
        return start if start < size else None

    def _answer(
        self, status: int, body: bytes, extra: dict[str, str] | None = None, cut: bool = False
    ) -> None:
        self.send_response(status)
        headers = {"Content-Length": self.site.length or str(len(body)), **(extra or {})}
        if self.site.etag:
            headers["ETag"] = self.site.etag
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if cut else body)
        self.close_connection = self.close_connection or cut

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextlib.contextmanager
def serve(files: dict[str, bytes]) -> Iterator[Site]:
    site = Site(files)
    handler = type("Handler", (_Handler,), {"site": site})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    site.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """PyTorch's cache folder in a fresh home, without the environment's network settings."""
    for name in ("RESNETKIT_MIRROR", "RESNETKIT_OFFLINE", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("resnetkit.models.weights.http.PAUSE", 0.001)
    return tmp_path / "hub" / "checkpoints"


@pytest.fixture
def site():
    name = f"/models/net-{DIGEST[:8]}.pth"
    with serve({name: CONTENT, "/model.pth": CONTENT}) as made:
        made.published = made.address + name
        made.digest = DIGEST
        made.content = CONTENT
        yield made
