"""Threads that read image headers and decode admitted images. The codecs release the GIL.

All are daemon threads: at exit, Python does not wait for them, as it does for an executor's.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from .metrics import Metrics
from .queue import Queue
from .served import Served


class DaemonPool:
    """Daemon threads that call functions. A call that is canceled before it starts is skipped."""

    def __init__(self, threads: int, name: str) -> None:
        self._calls: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None]
        self._calls = queue.SimpleQueue()
        self._threads = threads
        for number in range(threads):
            threading.Thread(target=self._work, name=f"{name}-{number}", daemon=True).start()

    def submit(self, call: Callable[[], Any]) -> Future[Any]:
        """Queue a call, and return a future for its result."""
        future: Future[Any] = Future()
        self._calls.put((future, call))
        return future

    def close(self) -> None:
        """End the threads after the calls that are already queued."""
        for _ in range(self._threads):
            self._calls.put(None)

    def _work(self) -> None:
        while (item := self._calls.get()) is not None:
            future, call = item
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(call())
                except BaseException as error:
                    future.set_exception(error)
            del item, future, call  # keep no body in memory while waiting


class Decoders:
    """Threads that take images from the queue, decode them and put them back for the engine."""

    def __init__(self, served: Served, queue: Queue, metrics: Metrics, threads: int) -> None:
        self._served = served
        self._queue = queue
        self._metrics = metrics
        self._threads = [
            threading.Thread(target=self._work, name=f"decoder-{number}", daemon=True)
            for number in range(threads)
        ]

    def start(self) -> None:
        """Start the threads; they end when the queue is closed."""
        for thread in self._threads:
            thread.start()

    def _work(self) -> None:
        while (ticket := self._queue.take_encoded()) is not None:
            start = time.monotonic()
            self._metrics.observe("wait", start - ticket.since)
            try:
                inputs = self._served.prepare(ticket.contents)
                shown = self._served.show(ticket.contents) if ticket.wants_explanation else None
            except BaseException as error:
                self._queue.finish([ticket], [error])
                continue
            self._metrics.observe("decode", time.monotonic() - start)
            height, width = self._served.input_size(inputs)
            self._queue.put_decoded(ticket, inputs, height * width, shown)
            del inputs, shown, ticket  # keep no image in memory while waiting
