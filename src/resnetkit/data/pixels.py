"""Where working pixels are kept: end to end in few large buffers, in memory or in a file.

No object a picture, so that memory stays flat however many there are. What is kept is a function of
the file and the working size, and read only: no random result ever is.

The file, all numbers little-endian::

    pixels     of every picture that could be read, (H, W, C) uint8, one after the other
    shapes     (n, 2) int32: height and width; 0, 0 where it could not be read
    errors     JSON: what is wrong with the bytes of a picture, by index
    footer     magic (8 bytes), n (int64), length of errors (int64), BLAKE2b-128 of shapes to here
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
"""Bytes of a buffer in memory; the part that is not written to costs nothing."""

_MAGIC = b"RNKPIX1\n"
_FOOTER = struct.Struct("<8sqq16s")


@dataclass
class Pixels:
    """Working pixels of ``n`` pictures, as far as they are kept.

    Args:
        buffers: flat uint8 arrays.
        buffer: ``(n,)`` int32, in which of them a picture lies; -1 where it is not kept.
        start: ``(n,)`` int64, where in it.
        shapes: ``(n, 2)`` int32, height and width.
        channels: of every picture.
    """

    buffers: list[np.ndarray]
    buffer: np.ndarray
    start: np.ndarray
    shapes: np.ndarray
    channels: int = 3
    _free: int = 0  # of the last buffer, at its end

    @classmethod
    def none(cls, count: int, channels: int = 3) -> Pixels:
        """Room for ``count`` pictures in memory, of which none is kept yet."""
        nowhere = np.full(count, -1, np.int32)
        start, shapes = np.zeros(count, np.int64), np.zeros((count, 2), np.int32)
        return cls([], nowhere, start, shapes, channels)

    def get(self, row: int) -> np.ndarray | None:
        """``(H, W, channels)`` uint8, read only; None where it is not kept."""
        if self.buffer[row] < 0:
            return None
        height, width = self.shapes[row].tolist()
        start = int(self.start[row])
        end = start + self.channels * height * width
        flat: np.ndarray = self.buffers[self.buffer[row]][start:end]
        flat.flags.writeable = False
        return flat.reshape(height, width, self.channels)

    def add(self, row: int, pixels: np.ndarray) -> None:
        """Keep a copy of ``(H, W, channels)`` uint8 in memory."""
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

    def kept(self) -> int:
        """How many pictures are kept."""
        return int((self.buffer >= 0).sum())


def write(file: BinaryIO, images: Iterable[np.ndarray | str | None]) -> None:
    """Write the pixels of every picture in order; of one that cannot be read, what is wrong; None
    for one that could not be read this time, about which nothing is remembered.

    Raises:
        OSError: there is no room, or the disk fails.
    """
    shapes, errors = [], {}
    for row, image in enumerate(images):
        if image is None or isinstance(image, str):
            shapes.append((0, 0))
            if image is not None:
                errors[row] = image
        else:
            file.write(np.ascontiguousarray(image).data)
            shapes.append(image.shape[:2])
    table = np.array(shapes, dtype="<i4").reshape(-1, 2).tobytes()
    words = json.dumps(errors).encode()
    file.write(table + words + _FOOTER.pack(_MAGIC, len(shapes), len(words), _sum(table, words)))


def open_file(path: Path, count: int, channels: int = 3) -> tuple[Pixels, dict[int, str]] | None:
    """The pixels in a file that `write` made of ``count`` pictures, mapped into memory, and what is
    wrong with those that cannot be read; None where the file is damaged.

    Checked are the footer, the table of shapes by its hash, and that the length of the file is what
    these say; the pixels themselves are taken as the disk gives them.

    Raises:
        OSError: it is not there or cannot be read.
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
        table, words = file.read(8 * rows), file.read(length)
        if _sum(table, words) != checksum:
            return None
        flat = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
    shapes = np.frombuffer(table, "<i4").reshape(rows, 2).astype(np.int32)
    ends = np.cumsum(channels * shapes.prod(1, dtype=np.int64))
    if size - tail != (ends[-1] if rows else 0):
        return None
    there = np.where(shapes[:, 0] > 0, 0, -1).astype(np.int32)
    starts = np.concatenate([[0], ends[:-1]]) if rows else ends
    errors = {int(k): v for k, v in json.loads(words).items()}
    return Pixels([flat], there, starts, shapes, channels), errors


def _sum(table: bytes, words: bytes) -> bytes:
    lengths = struct.pack("<qq", len(table), len(words))
    return hashlib.blake2b(lengths + table + words, digest_size=16).digest()
