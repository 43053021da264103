"""Storage for working pixels: end to end in a few large buffers, in memory or in a file.

There is no Python object per image: besides its pixels, an image takes only 20 bytes. Stored pixels
are read-only, and a function of the file and the working size: no random result is ever stored.

The layout of the file (all numbers are little-endian)::

    pixels     of every image that could be read, (H, W, C) uint8, one after the other
    shapes     (n, 2) int32: height and width; 0, 0 for images that could not be read
    errors     JSON: error messages for images whose bytes are invalid, by index
    footer     magic (8 bytes), n (int64), length of errors (int64), BLAKE2b-128 of shapes, errors
"""

from __future__ import annotations

import hashlib
import json
import mmap
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

CHUNK = 64 * 2**20
"""Size of a buffer in memory, in bytes; pages that are never written take no memory."""

_MAGIC = b"RNKPIX1\n"
_FOOTER = struct.Struct("<8sqq16s")


@dataclass
class Pixels:
    """Working pixels of ``n`` images, some or all of which are stored.

    Args:
        buffers: flat uint8 arrays.
        buffer: ``(n,)`` int32, the index of each image's buffer; -1 if it is not stored.
        start: ``(n,)`` int64, the offset in that buffer.
        shapes: ``(n, 2)`` int32, height and width.
        channels: channels of every image.
    """

    buffers: list[np.ndarray]
    buffer: np.ndarray
    start: np.ndarray
    shapes: np.ndarray
    channels: int = 3
    _free: int = 0  # bytes at the end of the last buffer

    @classmethod
    def empty(cls, count: int, channels: int = 3) -> Pixels:
        """Return storage in memory for ``count`` images, none of them stored yet."""
        return cls(
            buffers=[],
            buffer=np.full(count, -1, np.int32),
            start=np.zeros(count, np.int64),
            shapes=np.zeros((count, 2), np.int32),
            channels=channels,
        )

    def get(self, row: int) -> np.ndarray | None:
        """Return an image as read-only ``(H, W, channels)`` uint8; None if it is not stored."""
        if self.buffer[row] < 0:
            return None
        height, width = self.shapes[row].tolist()
        start = int(self.start[row])
        end = start + self.channels * height * width
        flat: np.ndarray = self.buffers[self.buffer[row]][start:end]
        flat.flags.writeable = False
        return flat.reshape(height, width, self.channels)

    def add(self, row: int, pixels: np.ndarray) -> None:
        """Store a copy of ``(H, W, channels)`` uint8 in memory."""
        if pixels.nbytes > self._free:
            self._free = max(CHUNK, pixels.nbytes)
            self.buffers.append(np.empty(self._free, np.uint8))
        last = self.buffers[-1]
        start = last.size - self._free
        last[start : start + pixels.nbytes] = pixels.reshape(-1)
        self._free -= pixels.nbytes
        self.shapes[row] = pixels.shape[:2]
        self.start[row] = start
        self.buffer[row] = len(self.buffers) - 1


def write_pixels(file: BinaryIO, images: Iterable[np.ndarray | str | None]) -> None:
    """Write the pixels of every image in order.

    Where an image has invalid bytes, ``images`` has an error message, which is recorded. Where
    reading failed for a temporary reason, it has None, and the file records no error.

    Raises:
        OSError: the disk is full or fails.
    """
    shapes = []
    errors = {}
    for row, image in enumerate(images):
        if image is None or isinstance(image, str):
            shapes.append((0, 0))
            if image is not None:
                errors[row] = image
        else:
            file.write(np.ascontiguousarray(image).data)
            shapes.append(image.shape[:2])
    table = np.array(shapes, dtype="<i4").reshape(-1, 2).tobytes()
    messages = json.dumps(errors).encode()
    footer = _FOOTER.pack(_MAGIC, len(shapes), len(messages), _checksum(table, messages))
    file.write(table + messages + footer)


def open_pixels(path: Path, count: int, channels: int = 3) -> tuple[Pixels, dict[int, str]] | None:
    """Memory-map a file that `write_pixels` wrote.

    The footer, the hash of the shapes and the length of the file are checked; the pixels are not.

    Returns:
        The pixels, and the error messages by index; None if the file is damaged.

    Raises:
        OSError: the file does not exist or cannot be read.
    """
    with path.open("rb") as file:
        size = file.seek(0, 2)
        if size < _FOOTER.size:
            return None
        file.seek(size - _FOOTER.size)
        magic, rows, length, checksum = _FOOTER.unpack(file.read())
        if magic != _MAGIC or rows != count or not 0 <= length <= size:
            return None
        tail = 8 * rows + length + _FOOTER.size
        if tail > size:
            return None
        file.seek(size - tail)
        table = file.read(8 * rows)
        messages = file.read(length)
        if _checksum(table, messages) != checksum:
            return None
        flat = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
    shapes = np.frombuffer(table, "<i4").reshape(rows, 2).astype(np.int32)
    ends = np.cumsum(channels * shapes.prod(1, dtype=np.int64))
    if size - tail != (ends[-1] if rows else 0):
        return None
    stored = Pixels(
        buffers=[flat],
        buffer=np.where(shapes[:, 0] > 0, 0, -1).astype(np.int32),
        start=np.concatenate([[0], ends[:-1]]) if rows else ends,
        shapes=shapes,
        channels=channels,
    )
    errors = {int(row): message for row, message in json.loads(messages).items()}
    return stored, errors


def _checksum(table: bytes, messages: bytes) -> bytes:
    lengths = struct.pack("<qq", len(table), len(messages))
    return hashlib.blake2b(lengths + table + messages, digest_size=16).digest()
