"""The engine: one thread computes batches, and another restarts it after a crash."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from ..export.predictor import MAX_BATCH_PIXELS
from .bounds import Bounds
from .metrics import Metrics
from .queue import Queue, Ticket
from .served import Compute, Served

LONGEST_PAUSE = 30.0
"""Maximum number of seconds between attempts to restart an engine that keeps crashing."""


FAST = 0.98
"""A batch size is fast if it reaches this share of the fastest size's images per second."""

PLATEAU = 4
"""Measuring stops at a size this many times the smallest fast size."""


def smallest_fast(latencies: dict[int, float]) -> int:
    """Return the smallest fast batch size: a larger one would only make images wait.

    >>> smallest_fast({1: 0.010, 2: 0.018, 3: 0.0265, 4: 0.035})
    3
    """
    speeds = {images: images / max(seconds, 1e-9) for images, seconds in latencies.items()}
    return min(images for images, speed in speeds.items() if speed >= FAST * max(speeds.values()))


class EngineError(Exception):
    """The engine crashed, or got stuck, while processing this image."""


class Engine:
    """Runs the model on the images in the queue, one batch at a time.

    Before it is ready, the engine verifies the model, and times batches of 1, 2, 4, ... images
    until larger ones are no faster; see `smallest_fast`. Sizes that take longer than
    `Bounds.batch_seconds` are ruled out. If the engine crashes, or a batch takes longer than
    `Bounds.stuck_seconds`, the batch fails, and a new engine starts. Waiting images keep their
    places in the queue.

    Args:
        served: the model.
        queue: the queue that images come from.
        metrics: the server's metrics.
        bounds: the limits.
        log: called with the name of an event and its fields.
    """

    def __init__(
        self,
        served: Served,
        queue: Queue,
        metrics: Metrics,
        *,
        bounds: Bounds,
        log: Callable[..., None],
    ) -> None:
        self._served = served
        self._queue = queue
        self._metrics = metrics
        self._bounds = bounds
        self._log = log
        self._stopping = threading.Event()
        self._worker: _Worker | None = None
        self._supervisor = threading.Thread(target=self._supervise, name="engine", daemon=True)
        self.latencies: dict[int, float] = {}
        """The measured time of a batch in seconds, by batch size."""
        self.batch_images = 1
        """The largest batch size in use."""
        self.failure: BaseException | None = None
        """The error that made the first start fail, if any."""
        self.starts = 0

    @property
    def ready(self) -> bool:
        """Whether the engine is taking images from the queue."""
        worker = self._worker
        return worker is not None and worker.ready and not worker.is_stuck()

    def start(self) -> None:
        """Start the engine in the background."""
        self._supervisor.start()

    def stop(self, timeout: float) -> bool:
        """Stop after the current batch; return whether the engine ended in time."""
        self._stopping.set()
        self._supervisor.join(timeout)
        return not self._supervisor.is_alive()

    def _supervise(self) -> None:
        pause = 0.0
        while not self._stopping.wait(pause):
            self.starts += 1
            self._metrics.engine_starts.inc()
            worker = _Worker(self)
            self._worker = worker
            worker.thread.start()
            while worker.thread.is_alive() and not worker.is_stuck():
                if self._stopping.is_set():
                    worker.stop.set()
                    self._queue.wake()
                worker.thread.join(0.1)
            was_ready = worker.ready or worker.served_any
            worker.ready = False
            if self._stopping.is_set():
                return
            worker.retire()
            error = worker.error or EngineError(f"no answer for {self._bounds.stuck_seconds:g} s")
            if not self.latencies:
                self.failure = error
                return
            self._log("engine_crashed", "error", error=type(error).__name__, message=str(error))
            pause = 0.0 if was_ready else min(LONGEST_PAUSE, max(1.0, 2 * pause))

    def measure(self, compute: Compute) -> None:
        """Time batch sizes and select the largest to use; after a restart, only warm up each size.

        Every size in use is run here, because the first batch of a size takes longer than others.
        """
        example = self._served.example()
        if not self.latencies:
            self.latencies = self._measure_doubled(compute, example)
            self.batch_images = smallest_fast(self.latencies)
            new = [size for size in range(1, self.batch_images) if size not in self.latencies]
        else:
            new = list(range(1, self.batch_images + 1))
        for images in new:
            list(compute([example] * images))

    def _measure_doubled(self, compute: Compute, example: Any) -> dict[int, float]:
        """Return the seconds per batch of 1, 2, 4, ... images, each the faster of two runs."""
        measured: dict[int, float] = {}
        images = 1
        while images <= self._bounds.batch_images:
            times = []
            for _ in range(2):
                start = time.monotonic()
                list(compute([example] * images))
                times.append(time.monotonic() - start)
            if images > 1 and min(times) > self._bounds.batch_seconds:
                break
            measured[images] = min(times)
            if images >= PLATEAU * smallest_fast(measured):
                break
            images *= 2
        return measured

    def work(self, worker: _Worker) -> None:
        """Start the model and compute batches until told to stop."""
        verified = self._served.verify() if self.starts == 1 else None
        compute = self._served.start()
        self.measure(compute)
        most = self.batch_images
        worker.ready = True
        self._log(
            "engine_ready",
            verified=verified,
            batch_images=most,
            batch_seconds=round(self.latencies[most], 6),
            image_seconds=round(self.latencies[1], 6),
        )
        while not worker.stop.is_set():
            batch = self._queue.take_batch(most, MAX_BATCH_PIXELS, worker.stop)
            if not batch:
                return
            worker.begin(batch)
            answers = self._answer(compute, batch)
            plain = [ticket for ticket in batch if not ticket.wants_explanation]
            self._finish(worker, plain, [answers[ticket] for ticket in plain])
            self._explain([t for t in batch if t.wants_explanation], answers, worker)
            worker.end()
            if not worker.stop.is_set():
                self._queue.end_batch(is_complete=True)
            del batch, plain, answers  # keep no image in memory while waiting

    def _finish(self, worker: _Worker, tickets: list[Ticket], answers: list[Any]) -> None:
        if not worker.stop.is_set():  # otherwise they have already failed
            self._queue.finish(tickets, answers)

    def _answer(self, compute: Compute, batch: list[Ticket]) -> dict[Ticket, dict[str, Any]]:
        start = time.monotonic()
        for ticket in batch:
            self._metrics.observe("queue", start - ticket.since)
        answers: list[dict[str, Any]] = list(compute([ticket.inputs for ticket in batch]))
        self._metrics.observe("compute", time.monotonic() - start)
        self._metrics.batch_images.observe(len(batch))
        return dict(zip(batch, answers, strict=True))

    def _explain(
        self, tickets: list[Ticket], answers: dict[Ticket, dict[str, Any]], worker: _Worker
    ) -> None:
        """Explain and answer, one by one, the images that a client is still waiting for."""
        for position, ticket in enumerate(tickets):
            worker.begin(tickets[position:])  # each explanation has its own time limit
            if not self._queue.is_wanted(ticket):
                continue
            start = time.monotonic()
            answer: Any = answers[ticket]
            best = int(answer["probabilities"].argmax())
            try:
                answer["explanation"] = self._served.explain(ticket.inputs, ticket.shown, best)
            except MemoryError as error:
                answer = error
            self._metrics.observe("explain", time.monotonic() - start)
            self._finish(worker, [ticket], [answer])

    def fail(self, batch: list[Ticket]) -> None:
        """Answer a batch with an error."""
        self._queue.end_batch(is_complete=False)
        if batch:
            self._queue.finish(batch, [EngineError("the engine crashed")] * len(batch))


class _Worker:
    """The engine from one start to its end: a thread, and the batch that it is computing."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.stop = threading.Event()
        self.ready = False
        self.served_any = False
        self.error: BaseException | None = None
        self._batch: list[Ticket] = []
        self._since: float | None = None
        self.thread = threading.Thread(target=self._run, name="engine-worker", daemon=True)

    def begin(self, batch: list[Ticket]) -> None:
        """Note that a batch is being computed."""
        self._batch = batch
        self._since = time.monotonic()

    def end(self) -> None:
        """Note that the batch is done."""
        self._since = None
        self._batch = []
        self.served_any = True

    def is_stuck(self) -> bool:
        """Return whether the current batch is taking too long."""
        since = self._since
        seconds = self._engine._bounds.stuck_seconds
        return since is not None and time.monotonic() - since > seconds

    def retire(self) -> None:
        """Fail the current batch; a stuck thread ends when its computation does."""
        self.stop.set()
        self._engine.fail(self._batch)
        self._batch = []

    def _run(self) -> None:
        try:
            self._engine.work(self)
        except BaseException as error:  # a runtime may raise anything
            self.error = error
        finally:
            was_ready = self.ready
            self.ready = False
            self.served_any = self.served_any or was_ready
