"""The limits on requests, and how long the server waits. `docs/serving.md` lists the values."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Bounds:
    """The limits that a server enforces.

    Args:
        body_bytes: the largest body of a request.
        bodies_bytes: the total size of all bodies in memory.
        header_bytes: the total size of a request's first line and headers.
        request_images: the most images in one request.
        image_pixels: the most pixels in an image. If a header claims more, the image is refused
            before it is decoded.
        queue_images: the most images that can be accepted and not yet answered.
        queue_pixels: the most pixels in those images. An image counts with its own pixels until it
            is decoded, then with those of the network's input.
        batch_images: the largest batch.
        batch_seconds: the longest time for a batch; batch sizes that take longer at startup are not
            used.
        connections: the most open connections.
        header_seconds: the longest time from the first byte of a request, or from opening a new
            connection, to the last header.
        body_seconds: the longest time from the last header to the end of the body.
        write_seconds: the longest time that a client may take to read the response.
        idle_seconds: how long a connection without a request stays open.
        deadline_seconds: the time to answer a request that has no ``X-Deadline-Ms``.
        most_deadline_seconds: the largest deadline that a request can set.
        stuck_seconds: a batch that takes longer is treated as a crash of the engine.
        notice_seconds: how long the server keeps listening after a signal to stop, so that load
            balancers can see that it is not ready.
        stop_seconds: the longest time to answer accepted requests after a signal to stop.
    """

    body_bytes: int = 20 * 2**20
    bodies_bytes: int = 256 * 2**20
    header_bytes: int = 16 * 2**10
    request_images: int = 64
    image_pixels: int = 50_000_000
    queue_images: int = 128
    queue_pixels: int = 200_000_000
    batch_images: int = 32
    batch_seconds: float = 0.2
    connections: int = 512
    header_seconds: float = 10.0
    body_seconds: float = 30.0
    write_seconds: float = 30.0
    idle_seconds: int = 5
    deadline_seconds: float = 10.0
    most_deadline_seconds: float = 60.0
    stuck_seconds: float = 15.0
    notice_seconds: float = 1.0
    stop_seconds: float = 18.0
