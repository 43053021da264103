"""Start, run and stop a server."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import ipaddress
import logging
import os
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any

import uvicorn

from ..limits import cores
from .app import Service
from .bounds import Bounds
from .decoding import Decoders
from .engine import Engine
from .guard import Guard
from .logs import JsonHandler, JsonLog
from .metrics import Metrics
from .protocol import protocol_class
from .queue import Queue
from .served import Served

FLUSH_SECONDS = 3
"""Time for clients to read their last answers when the server stops."""


class Server:
    """Serves a model over HTTP.

    Args:
        served: the model.
        host: the address to listen on.
        port: the port; 0 for any free one.
        allowed_hosts: names accepted in ``Host``, besides IP addresses and ``localhost``.
        token: the token that clients must send, if any.
        bounds: the limits.
        log: the log to write to.

    Attributes:
        address: the address and port, once the server listens.
    """

    def __init__(
        self,
        served: Served,
        host: str = "127.0.0.1",
        port: int = 8000,
        *,
        allowed_hosts: Sequence[str] = (),
        token: str | None = None,
        bounds: Bounds | None = None,
        log: JsonLog | None = None,
    ) -> None:
        self.bounds = bounds or Bounds()
        self.log = log or JsonLog()
        self.queue = Queue(self.bounds, decoders=cores())
        self.metrics = Metrics(self.queue)
        self.engine = Engine(
            served, self.queue, self.metrics, bounds=self.bounds, log=self.log.event
        )
        self.service = Service(served, self.engine, self.queue, self.metrics, self.bounds)
        self._decoders = Decoders(served, self.queue, self.metrics, threads=cores())
        self._app = Guard(
            self.service.application(),
            hosts=[host, *allowed_hosts],
            token=token,
            metrics=self.metrics,
            log=self.log,
            is_stopping=lambda: self.service.is_stopping,
            refusal_before_reading=self.service.refusal_before_reading,
        )
        self._host = host
        self._port = port
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop = threading.Event()
        self._stop_now = asyncio.Event()
        self.address: tuple[str, int] | None = None

    def stop(self) -> None:
        """Ask the server to stop; any thread may call this."""
        self._stop.set()
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the event loop has ended
                self._loop.call_soon_threadsafe(self._stop_now.set)

    def run(self, listening: Callable[[str, int], None] = lambda host, port: None) -> bool:
        """Serve until a signal or `stop`.

        Args:
            listening: called with the address and the port.

        Returns:
            Whether the engine ended too. If not, it is stuck, and may keep the process from
            exiting.

        Raises:
            OSError: the address or port is not available.
            Exception: the error that kept the model from starting.
        """
        listener = _listen(self._host, self._port)
        self.address = listener.getsockname()[:2]
        listening(*self.address)
        try:
            with _library_logs(self.log), self._signals():
                asyncio.run(self._serve(listener))
        finally:
            listener.close()
            self.queue.close()
            has_ended = not self.engine.starts or self.engine.stop(timeout=2)
            self.service.close()
            self.log.event("stopped")
            self.log.close()
        if self.engine.failure is not None:
            raise self.engine.failure
        return has_ended

    async def _serve(self, listener: socket.socket) -> None:
        self._loop = asyncio.get_running_loop()
        if self._stop.is_set():
            return
        config = uvicorn.Config(
            self._app,
            http=protocol_class(self.bounds, self.metrics, self._app.refuse_early),
            loop="asyncio",
            lifespan="off",
            ws="none",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            h11_max_incomplete_event_size=self.bounds.header_bytes,
            timeout_keep_alive=self.bounds.idle_seconds,
            timeout_graceful_shutdown=FLUSH_SECONDS,
        )
        server = _Uvicorn(config)
        self.engine.start()
        self._decoders.start()
        serving = asyncio.ensure_future(server.serve(sockets=[listener]))
        watching = asyncio.ensure_future(self._watch_first_start())
        stopping = asyncio.ensure_future(self._stop_now.wait())
        await asyncio.wait({serving, watching, stopping}, return_when=asyncio.FIRST_COMPLETED)
        await self._drain()
        server.should_exit = True
        await serving
        watching.cancel()
        stopping.cancel()

    async def _watch_first_start(self) -> None:
        """Return once the model has failed to start."""
        while self.engine.failure is None:
            await asyncio.sleep(0.1)

    async def _drain(self) -> None:
        """Refuse new requests, and wait for the answers to accepted ones."""
        self.service.is_stopping = True
        self.log.event("stopping", images=self.queue.images)
        start = time.monotonic()
        if self.engine.failure is None:
            await asyncio.sleep(self.bounds.notice_seconds)
        while self.service.active and time.monotonic() - start < self.bounds.stop_seconds:
            await asyncio.sleep(0.05)

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Stop at the first SIGINT or SIGTERM. Only the main thread can handle signals."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def handle(number: int, frame: FrameType | None) -> None:
            self.stop()

        previous = {
            number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class _Uvicorn(uvicorn.Server):
    """uvicorn without its own signal handling, and without losing clients when it stops."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop listening, and answer every client that has connected by then.

        When a socket is closed, the operating system resets connections that are waiting to be
        accepted. So new connections are kept out, and the waiting ones are accepted first.
        """
        loop = asyncio.get_running_loop()
        waiting: list[socket.socket] = []
        for listener in sockets or ():
            _ignore_new_connections(listener)
            with contextlib.suppress(BlockingIOError):
                while True:
                    waiting.append(listener.accept()[0])
        for server in self.servers:
            server.close()
        for connection in waiting:
            connection.setblocking(False)
            await loop.connect_accepted_socket(self._protocol, connection)
        await super().shutdown(sockets)

    def _protocol(self) -> asyncio.Protocol:
        protocol: Any = self.config.http_protocol_class
        return protocol(  # type: ignore[no-any-return]
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )

    @contextlib.contextmanager
    def capture_signals(self) -> Any:
        """Leave signals to `Server`."""
        yield


def _listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens on an address."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, os.name != "nt")
        listener.bind(address)
        listener.listen(128)
    except OSError as error:
        name = f"{host}:{port}"
        raise OSError(error.errno, error.strerror or str(error), name) from error
    return listener


def _ignore_new_connections(listener: socket.socket) -> None:
    """Make the system ignore new connections from now on; Linux only.

    A client that connects between the last accept and the close would be reset. If it is ignored,
    its operating system retries after a second, and the closed port refuses it. The filter is a
    one-instruction program for the kernel's packet filter: accept 0 bytes of every packet.
    """
    if sys.platform == "linux":
        program = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))  # BPF_RET, 0
        attach_filter = 26  # SO_ATTACH_FILTER
        filter_program = struct.pack("HP", 1, ctypes.addressof(program))
        with contextlib.suppress(OSError):  # some sandboxes have no packet filter
            listener.setsockopt(socket.SOL_SOCKET, attach_filter, filter_program)


@contextlib.contextmanager
def _library_logs(log: JsonLog) -> Iterator[None]:
    """Log errors from uvicorn and asyncio as JSON."""
    handler = JsonHandler(log)
    loggers = [logging.getLogger(name) for name in ("uvicorn.error", "asyncio")]
    before = [(logger.level, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.ERROR)
        logger.propagate = False
    try:
        yield
    finally:
        for logger, (level, propagate) in zip(loggers, before, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(level)
            logger.propagate = propagate
