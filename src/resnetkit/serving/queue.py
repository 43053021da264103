"""The bounded queue: admitted images wait here for a decoder, and decoded ones for the engine."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from .bounds import Bounds
from .refusals import DEADLINE_PASSED, Refusal

SMOOTHING = 0.2
"""The weight of the newest measurement in the moving averages."""


FEW_PIXELS = 250_000
"""Decoding an image takes at least as long as for this many pixels."""

MARGIN = 0.8
"""An image is admitted if its expected wait is at most this share of the time to its deadline."""


@dataclass(eq=False)
class Ticket:
    """An admitted image.

    Args:
        contents: the bytes of its file.
        pixels: how many pixels it counts as.
        deadline: when its answer becomes useless, on the clock of `time.monotonic`.
        deliver: called once with the outputs or an exception, from any thread. Not called if the
            image was withdrawn or its deadline passed.
        wants_explanation: whether a Grad-CAM overlay is requested.
        inputs: the decoded image, as the model expects it.
        shown: the decoded image as the overlay shows it, if one is requested.
        since: when it was admitted or, once it is decoded, when it was decoded.
        taken: when its decoding began.
        undecoded: the pixels, at least `FEW_PIXELS`, that the decoders have yet to decode.
    """

    contents: bytes = field(repr=False)
    pixels: int
    deadline: float
    deliver: Callable[[Any], None] = field(repr=False)
    wants_explanation: bool = False
    inputs: Any = field(default=None, repr=False)
    shown: Any = field(default=None, repr=False)
    since: float = field(default_factory=time.monotonic)
    taken: float = 0.0
    undecoded: int = 0


class Queue:
    """Admitted images: at most `Bounds.queue_images`, with at most `Bounds.queue_pixels` in total.

    An image counts from its admission until it is answered. If its deadline has passed, or its
    client is gone, it is dropped instead of being decoded or run through the network. Thread-safe.

    Args:
        bounds: the limits.
        decoders: the number of decoding threads.
    """

    def __init__(self, bounds: Bounds, decoders: int = 1) -> None:
        self._bounds = bounds
        self._decoders = decoders
        self._changed = threading.Condition()
        self._admitted: set[Ticket] = set()
        self._encoded: deque[Ticket] = deque()
        self._decoded: deque[Ticket] = deque()
        self._closed = False
        self._pixels = 0
        self._undecoded = 0  # pixels, as in `Ticket.undecoded`
        self._seconds_per_pixel = 0.0  # for one decoder
        self._seconds_per_image = 0.0  # for the engine
        self._busy_since: float | None = None
        self._batch_images = 1
        self.dropped = 0

    @property
    def images(self) -> int:
        """How many images are admitted and not yet answered."""
        return len(self._admitted)

    @property
    def pixels(self) -> int:
        """How many pixels those images count as."""
        return self._pixels

    def retry_after(self) -> float:
        """Return the expected seconds until the images that are waiting now are answered.

        Decoding and computing overlap, so the slower of the two decides.
        """
        if not self.images:
            return 0.0
        decoding = self._undecoded * self._seconds_per_pixel / self._decoders
        seconds = self._seconds_per_image
        since = self._busy_since
        if since is not None:  # the current images may take longer than earlier ones
            seconds = max(seconds, (time.monotonic() - since) / self._batch_images)
        return max(decoding, self.images * seconds)

    def check_room(self, images: int, pixels: int, deadline: float) -> None:
        """Raise if images cannot be admitted now.

        Args:
            images: how many images.
            pixels: their total number of pixels.
            deadline: when their answers become useless.

        Raises:
            Refusal: 504 if the deadline has passed; 413 if several images together have more pixels
                than the queue can hold; 503 if there is no room now, or the wait is too long.
        """
        left = deadline - time.monotonic()
        if left <= 0:
            raise Refusal(504, "deadline", DEADLINE_PASSED)
        most = self._bounds.queue_pixels
        if images > 1 and pixels > most:
            raise Refusal(
                413,
                "too_many_pixels",
                f"The images have {pixels:,} pixels in total, but at most {most:,} may wait. Send "
                "them in several requests",
            )
        if self.images + images > self._bounds.queue_images:
            raise self._refusal("queue_full", f"{self.images} images are waiting")
        if self.images and self._pixels + pixels > most:
            raise self._refusal("queue_full", f"Images with {self._pixels:,} pixels are waiting")
        if self.retry_after() > MARGIN * left:
            raise self._refusal("too_busy", "The waiting images will take longer than the deadline")

    def _refusal(self, reason: str, message: str) -> Refusal:
        seconds = self.retry_after()
        return Refusal(503, reason, f"{message}. Try again later", retry_after=seconds)

    def admit(self, tickets: Sequence[Ticket]) -> None:
        """Admit images, all or none.

        Raises:
            Refusal: for the same reasons as in `check_room`.
        """
        pixels = sum(ticket.pixels for ticket in tickets)
        deadline = min(ticket.deadline for ticket in tickets)
        with self._changed:
            self.check_room(len(tickets), pixels, deadline)
            self._admitted.update(tickets)
            self._encoded.extend(tickets)
            for ticket in tickets:
                ticket.undecoded = max(ticket.pixels, FEW_PIXELS)
                self._undecoded += ticket.undecoded
            self._pixels += pixels
            self._changed.notify_all()

    def withdraw(self, tickets: Iterable[Ticket]) -> None:
        """Drop images whose answers nobody is waiting for anymore."""
        with self._changed:
            for ticket in tickets:
                self.dropped += self._release(ticket)
            for waiting in (self._encoded, self._decoded):
                kept = [ticket for ticket in waiting if ticket in self._admitted]
                waiting.clear()
                waiting.extend(kept)

    def take_encoded(self) -> Ticket | None:
        """Wait for an image to decode; return None once the queue is closed."""
        with self._changed:
            while not self._closed:
                while self._encoded:
                    ticket = self._encoded.popleft()
                    if self._is_wanted(ticket):
                        ticket.taken = time.monotonic()
                        return ticket
                self._changed.wait()
        return None

    def put_decoded(self, ticket: Ticket, inputs: Any, pixels: int, shown: Any = None) -> None:
        """Pass a decoded image on to the engine.

        Args:
            ticket: the image.
            inputs: the decoded image.
            pixels: how many pixels it counts as from now on.
            shown: the image as the overlay shows it, if one is requested.
        """
        with self._changed:
            if ticket not in self._admitted:
                return
            now = time.monotonic()
            seconds = (now - ticket.taken) / ticket.undecoded
            self._seconds_per_pixel = _smooth(self._seconds_per_pixel, seconds)
            self._undecoded -= ticket.undecoded
            ticket.undecoded = 0
            self._pixels += pixels - ticket.pixels
            ticket.pixels = pixels
            ticket.inputs = inputs
            ticket.shown = shown
            ticket.since = now
            ticket.contents = b""
            self._decoded.append(ticket)
            self._changed.notify_all()

    def take_batch(self, images: int, pixels: int, stop: threading.Event) -> list[Ticket]:
        """Wait until there are decoded images, and return them without waiting for more.

        The caller must end the batch with `end_batch`.

        Args:
            images: the maximum number of images.
            pixels: the maximum total number of pixels; a single image may have more.
            stop: once this is set and `wake` is called, an empty batch is returned.
        """
        batch: list[Ticket] = []
        with self._changed:
            while not self._closed and not stop.is_set():
                size = 0
                while self._decoded and len(batch) < images:
                    if batch and size + self._decoded[0].pixels > pixels:
                        break
                    ticket = self._decoded.popleft()
                    if self._is_wanted(ticket):
                        batch.append(ticket)
                        size += ticket.pixels
                if batch:
                    self._busy_since = time.monotonic()
                    self._batch_images = len(batch)
                    break
                self._changed.wait()
        return batch

    def end_batch(self, is_complete: bool) -> None:
        """Note that the engine is done with its batch; only a complete batch counts as timed."""
        with self._changed:
            if is_complete and self._busy_since is not None:
                seconds = (time.monotonic() - self._busy_since) / self._batch_images
                self._seconds_per_image = _smooth(self._seconds_per_image, seconds)
            self._busy_since = None

    def is_wanted(self, ticket: Ticket) -> bool:
        """Return whether an image is worth computing; drop it if it is not."""
        with self._changed:
            return self._is_wanted(ticket)

    def finish(self, tickets: Sequence[Ticket], answers: Sequence[Any]) -> None:
        """Deliver answers, or exceptions in their place, and make room in the queue."""
        wanted = []
        with self._changed:
            for ticket, answer in zip(tickets, answers, strict=True):
                ticket.contents = b""  # its request may keep the ticket for longer
                ticket.inputs = ticket.shown = None
                if self._release(ticket):
                    wanted.append((ticket, answer))
        for ticket, answer in wanted:
            ticket.deliver(answer)

    def wake(self) -> None:
        """Make `take_batch` check its event ``stop``."""
        with self._changed:
            self._changed.notify_all()

    def close(self) -> None:
        """Close the queue, and release all threads that are waiting on it."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _is_wanted(self, ticket: Ticket) -> bool:
        if ticket in self._admitted and ticket.deadline > time.monotonic():
            return True
        self.dropped += self._release(ticket)
        return False

    def _release(self, ticket: Ticket) -> bool:
        if ticket not in self._admitted:
            return False
        self._admitted.discard(ticket)
        self._pixels -= ticket.pixels
        self._undecoded -= ticket.undecoded
        return True


def _smooth(average: float, newest: float) -> float:
    """Update a moving average with a measurement; 0 means that there is no average yet."""
    return average + SMOOTHING * (newest - average) if average else newest
