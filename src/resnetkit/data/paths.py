"""What a path says by itself; and many paths in little memory."""

from __future__ import annotations

import operator
import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import overload

import numpy as np

EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff"}
    | {".ppm", ".pgm", ".pbm", ".pnm", ".avif", ".heic", ".heif"}
)
"""What is taken for a picture: raster formats that are decoded in this process."""

SPLITS = {
    "train": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}
"""What folders and manifests call the splits."""


def is_picture(path: str) -> bool:
    """Whether the name says so; hidden files are none."""
    name = os.path.basename(path)
    return os.path.splitext(name)[1].lower() in EXTENSIONS and not name.startswith(".")


class Paths(Sequence[str]):
    """A list of paths that takes their bytes and eight more each; it can grow at its end.

    A list of ``str`` takes 57 more, and its reference counts are written to whenever one is looked
    at, so that a forked process copies it page by page.

    >>> paths = Paths(["cats/1.jpg", "dogs/é.jpg"])
    >>> paths[1], paths[-2], len(paths), list(paths[:1])
    ('dogs/é.jpg', 'cats/1.jpg', 2, ['cats/1.jpg'])
    """

    __slots__ = ("_ends", "_text")

    def __init__(self, paths: Iterable[str] = ()) -> None:
        self._text = bytearray()
        self._ends = array("Q")
        for path in paths:
            self.append(path)

    def append(self, path: str) -> None:
        self._text += os.fsencode(path)
        self._ends.append(len(self._text))

    def extend(self, others: Paths) -> None:
        """Append all of ``others``."""
        ends = np.frombuffer(others._ends, np.uint64) + np.uint64(len(self._text))
        self._text += others._text
        self._ends.frombytes(ends.tobytes())

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Paths: ...
    def __getitem__(self, index: int | slice) -> str | Paths:
        if isinstance(index, slice):
            return self.take(range(len(self))[index])
        place = operator.index(index)  # a number of NumPy's will do
        place += len(self) if place < 0 else 0
        if not 0 <= place < len(self):
            raise IndexError(f"path {index} of {len(self)}")
        start = self._ends[place - 1] if place else 0
        return os.fsdecode(bytes(self._text[start : self._ends[place]]))

    def __iter__(self) -> Iterator[str]:
        start = 0
        for end in self._ends:
            yield os.fsdecode(bytes(self._text[start:end]))
            start = end

    def take(self, indices: Iterable[int]) -> Paths:
        """The paths at ``indices``, in that order."""
        return Paths(self[i] for i in indices)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Paths):
            return NotImplemented
        return self._ends == other._ends and self._text == other._text

    __hash__ = None  # type: ignore[assignment]  # it can grow

    def __repr__(self) -> str:
        shown = ", ".join(map(repr, self[:3]))
        return f"Paths([{shown}{', ...' if len(self) > 3 else ''}], {len(self)} in all)"
