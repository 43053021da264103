"""The metrics that Prometheus scrapes. Labels have few values; requests cannot add new ones."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from .queue import Queue

STAGES = ("receive", "wait", "decode", "queue", "compute", "explain", "request")
"""In order: a body arrives; an image waits to be decoded, is decoded, and waits for the engine; a
batch is computed; an image is explained. ``request`` is a whole request, from its headers to its
answer."""

PATHS = ("/", "/predict", "/classes", "/model", "/live", "/ready", "/metrics", "/docs")
"""The paths that are counted separately; all others share one count."""
CONTENT_TYPE = CONTENT_TYPE_LATEST

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Metrics:
    """The metrics of one server."""

    def __init__(self, queue: Queue) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "resnetkit_requests", "Answered requests.", ("path", "status"), registry=self.registry
        )
        self._refusals = Counter(
            "resnetkit_refusals", "Refused requests.", ("reason",), registry=self.registry
        )
        self._seconds = Histogram(
            "resnetkit_stage_seconds",
            "Seconds by stage.",
            ("stage",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.batch_images = Histogram(
            "resnetkit_batch_images",
            "Images per computed batch.",
            buckets=(1, 2, 4, 8, 16, 32),
            registry=self.registry,
        )
        self.engine_starts = Counter(
            "resnetkit_engine_starts", "Starts of the engine.", registry=self.registry
        )
        self.ready = Gauge(
            "resnetkit_ready", "1 if the server accepts images.", registry=self.registry
        )
        images = Gauge(
            "resnetkit_queue_images",
            "Admitted images without an answer yet.",
            registry=self.registry,
        )
        images.set_function(lambda: queue.images)
        pixels = Gauge(
            "resnetkit_queue_pixels", "Pixels of the images in the queue.", registry=self.registry
        )
        pixels.set_function(lambda: queue.pixels)
        dropped = Gauge(
            "resnetkit_dropped_images",
            "Images that were dropped because their deadline passed or their client disconnected.",
            registry=self.registry,
        )
        dropped.set_function(lambda: queue.dropped)
        for stage in STAGES:
            self._seconds.labels(stage)

    def observe(self, stage: str, seconds: float) -> None:
        """Record how long a stage took."""
        self._seconds.labels(stage).observe(seconds)

    def count_request(self, path: str, status: int) -> None:
        """Count an answer; ``path`` is one of `PATHS` or ``other``."""
        self._requests.labels(path, str(status)).inc()

    def count_refusal(self, reason: str) -> None:
        """Count a refusal."""
        self._refusals.labels(reason).inc()

    def render(self) -> bytes:
        """Return the metrics in Prometheus's text format."""
        return generate_latest(self.registry)
