"""Threads that decode admitted images. The codecs release the GIL."""

from __future__ import annotations

import threading
import time

from .metrics import Metrics
from .queue import Queue
from .served import Served


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
