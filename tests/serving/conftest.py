"""A server in a thread of the test process, on a loopback port."""

from __future__ import annotations

import http.client
import io
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from resnetkit.errors import ImageError
from resnetkit.serving.bounds import Bounds
from resnetkit.serving.logs import JsonLog
from resnetkit.serving.served import open_served
from resnetkit.serving.server import Server

QUICK = Bounds(notice_seconds=0.05, stop_seconds=5.0, batch_images=8)


class Reply(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Running:
    """A running server, and its log."""

    def __init__(self, server: Server, log: io.StringIO) -> None:
        self.server = server
        self.log = log

    @property
    def address(self) -> tuple[str, int]:
        assert self.server.address is not None
        return self.server.address

    def request(
        self,
        method: str = "POST",
        path: str = "/predict",
        body: Any = None,
        **headers: str,
    ) -> Reply:
        """Send one request. Underscores in header names stand for hyphens."""
        connection = http.client.HTTPConnection(*self.address, timeout=20)
        try:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body, named)
            reply = connection.getresponse()
            found = {name.lower(): value for name, value in reply.getheaders()}
            return Reply(reply.status, found, reply.read())
        finally:
            connection.close()

    def open(self) -> socket.socket:
        return socket.create_connection(self.address, timeout=20)

    def send(self, content: bytes) -> bytes:
        """Send bytes, and return everything that arrives until the server closes the connection."""
        with self.open() as connection:
            connection.sendall(content)
            return read_all(connection)

    def metric(self, name: str, **labels: str) -> float:
        value = self.server.metrics.registry.get_sample_value(name, labels)
        return 0.0 if value is None else value

    def wait_ready(self, seconds: float = 20) -> None:
        wait_for(lambda: self.request("GET", "/ready").status == 200, seconds)


def read_all(connection: socket.socket) -> bytes:
    found = b""
    try:
        while part := connection.recv(65536):
            found += part
    except ConnectionError:
        pass
    return found


def wait_for(condition: Callable[[], bool], seconds: float = 10) -> float:
    """Wait until a condition holds; return the seconds it took."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < seconds, "it never happened"
        time.sleep(0.01)
    return time.monotonic() - start


@contextmanager
def running(served: Any, ready: bool = True, **options: Any) -> Iterator[Running]:
    """Run a server in a thread. `Bounds` and `Server` options may be mixed."""
    names = Bounds.__dataclass_fields__
    bounds = replace(QUICK, **{k: v for k, v in options.items() if k in names})
    rest = {k: v for k, v in options.items() if k not in names}
    log = io.StringIO()
    server = Server(served, port=0, bounds=bounds, log=JsonLog(log), **rest)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_for(lambda: server.address is not None)
        here = Running(server, log)
        if ready:
            wait_for(lambda: server.engine.ready, 60)
        yield here
    finally:
        server.stop()
        thread.join(20)
        assert not thread.is_alive()


class FakeServed:
    """A model without a network: an image's answer is its mean color, after a delay you choose."""

    classes = ("red", "green", "blue")
    digest = "0" * 12
    can_explain = False

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.batches: list[int] = []
        self.crash: BaseException | None = None
        self.blocked = threading.Event()
        self.blocked.set()

    def describe(self) -> dict[str, Any]:
        return {"file": "fake"}

    def resolve_uncertainty(self, coverage: float | None, false_alarms: float | None) -> None:
        return None

    def prepare(self, contents: bytes) -> np.ndarray:
        try:
            return np.asarray(Image.open(io.BytesIO(contents)).convert("RGB"))
        except OSError as error:
            raise ImageError(f"the image: {error}") from error

    def example(self) -> np.ndarray:
        return np.zeros((8, 8, 3), np.uint8)

    def input_size(self, inputs: np.ndarray) -> tuple[int, int]:
        return inputs.shape[0], inputs.shape[1]

    def verify(self) -> str:
        return "nothing"

    def start(self) -> Any:
        return self.compute

    def compute(self, inputs: Any) -> Iterator[dict[str, np.ndarray]]:
        if any(one.any() for one in inputs):  # the examples are black
            self.batches.append(len(inputs))
            self.blocked.wait(20)
            time.sleep(self.seconds)
            crash, self.crash = self.crash, None
            if crash is not None:
                raise crash
        else:
            time.sleep(0.003)  # the same for all sizes, so the largest is the fastest
        means = [one.mean((0, 1)).astype(np.float32) for one in inputs]
        return iter([{"logits": one, "probabilities": one / (one.sum() + 1)} for one in means])

    def show(self, contents: bytes) -> np.ndarray:
        return self.prepare(contents)

    def explain(self, inputs: np.ndarray, shown: np.ndarray, target: int) -> bytes:
        raise NotImplementedError


@pytest.fixture
def fake() -> FakeServed:
    return FakeServed()


def png(color: tuple[int, int, int] = (200, 30, 30), size: tuple[int, int] = (8, 8)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, color).save(buffer, "PNG")
    return buffer.getvalue()


def form(*files: tuple[str, bytes]) -> tuple[bytes, str]:
    """Return the body and the content type of a multipart form."""
    parts = [
        b'--XX\r\nContent-Disposition: form-data; name="f"; filename="%s"\r\n\r\n%s\r\n'
        % (name.encode(), contents)
        for name, contents in files
    ]
    return b"".join(parts) + b"--XX--\r\n", "multipart/form-data; boundary=XX"


@pytest.fixture(scope="session")
def exported(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model exported to ONNX, for images of any size."""
    from resnetkit.export.export import export

    path = tmp_path_factory.mktemp("exported") / "tiny.onnx"
    export(tiny_model, "onnx", path)
    return path


@pytest.fixture(scope="session")
def _shared(exported: Path) -> Iterator[Running]:
    with running(open_served(exported)) as server:
        yield server


@pytest.fixture
def server(_shared: Running) -> Running:
    """A running server of the exported model, shared by tests that do not change it."""
    return _shared
