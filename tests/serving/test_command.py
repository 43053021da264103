"""`resnet serve` starts, says where it listens, and stops cleanly."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from .conftest import png, wait_for

pytestmark = pytest.mark.skipif(os.name == "nt", reason="SIGTERM ends a process at once")
STOP_SECONDS = 25
"""What docs/serving.md promises."""


class Command:
    def __init__(self, process: subprocess.Popen[str], port: int, notes: list[str]) -> None:
        self.process = process
        self.port = port
        self.notes = notes

    def request(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, body)
            reply = connection.getresponse()
            return reply.status, reply.read()
        finally:
            connection.close()


@contextmanager
def served(*arguments: object, **environment: str) -> Iterator[Command]:
    process = subprocess.Popen(
        [sys.executable, "-m", "resnetkit", "serve", *map(str, arguments), "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )
    try:
        assert process.stderr is not None
        notes = [process.stderr.readline()]
        port = int(re.search(r"http://\S+:(\d+)", notes[0])[1])
        command = Command(process, port, notes)
        wait_for(lambda: command.request("GET", "/ready")[0] == 200, 60)
        yield command
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        for stream in (process.stdout, process.stderr):
            stream.close()


def test_it_serves_an_exported_file_without_torch(exported):
    with served(exported) as command:
        assert f"Serving {exported} at http://127.0.0.1:" in command.notes[0]
        maps = Path(f"/proc/{command.process.pid}/maps")
        if maps.exists():
            assert "libtorch" not in maps.read_text()
        status, content = command.request("POST", "/predict", png())
        assert (status, json.loads(content)["source"]) == (200, "<bytes>")
        start = time.monotonic()
        command.process.terminate()
        log, errors = command.process.communicate(timeout=STOP_SECONDS)
        assert command.process.returncode == 0
        assert time.monotonic() - start < 5
        lines = [json.loads(line) for line in log.splitlines()]
        events = [line["event"] for line in lines]
        assert events[-2:] == ["stopping", "stopped"]
        ready = next(line for line in lines if line["event"] == "engine_ready")
        assert ready["verified"] == "17 golden images agree"
        assert ready["batch_images"] >= 1
        assert "Traceback" not in errors


def test_wrong_use_is_explained(tmp_path, exported):
    def run(*arguments: object, **environment: str) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, "-m", "resnetkit", "serve", *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=60,
            env={**os.environ, **environment},
        )
        assert "Traceback" not in done.stderr
        return done.returncode, done.stderr

    code, text = run(tmp_path / "missing.onnx")
    assert (code, "does not exist" in text) == (1, True)
    code, text = run(exported, "--device", "cpu")
    assert (code, "--device cannot be used with an exported file" in text) == (2, True)
    code, text = run(exported, RESNETKIT_TOKEN="short")
    assert (code, "at least 16 ASCII characters" in text) == (2, True)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, text = run(exported, "--port", port)
        assert (code, f"127.0.0.1:{port}: Address already in use" in text) == (1, True)


def test_another_address_says_what_that_means(exported):
    with served(exported, "--host", "0.0.0.0", RESNETKIT_TOKEN="a" * 16) as command:
        note = command.process.stderr.readline()
        assert "any machine that can reach it can send" in note
        assert "Clients need the token" in note
        assert command.request("GET", "/classes")[0] == 401
        command.process.terminate()
        assert command.process.wait(STOP_SECONDS) == 0


@pytest.mark.slow
@pytest.mark.parametrize("attempt", range(5))
def test_sigterm_under_load_answers_what_was_accepted(exported, attempt):
    """20 clients keep sending images; every request ends with an answer or a refusal.

    On Linux, no connection is reset, not even one made at the moment the port closes.
    """
    with served(exported) as command:
        counts: dict[object, int] = {}
        lock = threading.Lock()
        stop = threading.Event()

        def client() -> None:
            while not stop.is_set():
                try:
                    outcome: object = command.request("POST", "/predict", png(size=(200, 150)))[0]
                except http.client.IncompleteRead:
                    outcome = "cut"
                except (ConnectionError, http.client.HTTPException) as error:
                    outcome = type(error).__name__
                with lock:
                    counts[outcome] = counts.get(outcome, 0) + 1

        clients = [threading.Thread(target=client) for _ in range(20)]
        for thread in clients:
            thread.start()
        time.sleep(0.5 + 0.1 * attempt)
        start = time.monotonic()
        command.process.send_signal(signal.SIGTERM)
        ready = wait_for(lambda: command.request("GET", "/ready")[0] == 503, 1)
        assert ready < 0.5
        log, errors = command.process.communicate(timeout=STOP_SECONDS)
        assert time.monotonic() - start < 5
        stop.set()
        for thread in clients:
            thread.join(30)
            assert not thread.is_alive()
        assert command.process.returncode == 0, errors
        assert counts[200] > 0
        assert counts.get("cut", 0) == 0
        resets = {"ConnectionResetError", "RemoteDisconnected", "BrokenPipeError"}
        elsewhere = set() if sys.platform == "linux" else resets
        assert set(counts) <= {200, 503, "ConnectionRefusedError"} | elsewhere
        lines = [json.loads(line) for line in log.splitlines()]
        statuses = [line["status"] for line in lines if line.get("path") == "/predict"]
        assert set(statuses) <= {200, 503, 499}
        assert statuses.count(200) == counts[200]  # each answer that was computed arrived


@pytest.mark.slow
def test_a_body_that_never_ends_does_not_keep_the_server(exported):
    with (
        served(exported) as command,
        socket.create_connection(("127.0.0.1", command.port)) as slow,
    ):
        head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999\r\n\r\n"
        slow.sendall(head + b"abc")
        start = time.monotonic()
        command.process.terminate()
        assert command.process.wait(STOP_SECONDS) == 0
        assert time.monotonic() - start < 8
    with served(exported) as command:
        command.process.send_signal(signal.SIGINT)
        assert command.process.wait(STOP_SECONDS) == 0


@pytest.mark.slow
def test_a_log_that_nobody_reads_blocks_nothing(exported):
    """The log's pipe fills up; log lines are lost, but no requests."""
    with served(exported) as command:
        for _ in range(1500):
            assert command.request("GET", "/classes")[0] == 200
        command.process.terminate()
        assert command.process.wait(STOP_SECONDS) == 0
