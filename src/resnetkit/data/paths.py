"""What a path says by itself; and many paths in little memory."""

from __future__ import annotations

import operator
import os
import re
import unicodedata
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import overload

import numpy as np

EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff"}
    | {".ppm", ".pgm", ".pbm", ".pnm", ".avif", ".heic", ".heif"}
)
"""What is taken for a picture: raster formats that are decoded in this process."""

SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "validate", "dev", "eval"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""What folders and manifests call the splits, in any case."""

_SYSTEM = frozenset(
    {"@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot"}  # Synology, QNAP
    | {"$recycle.bin", "system volume information", "thumbs.db", "ehthumbs.db", "desktop.ini"}
    | {"__macosx", "network trash folder", "temporary items", "icon\r"}
    | {"lost+found", "__pycache__", "~snapshot", "recycler", "found.000"}
)
_SYSTEM_SUFFIXES = (".lrdata",)  # Lightroom's previews

_AFFIXED = re.compile(
    rf"(?<![^\W\d_])({'|'.join(sorted(SPLITS, key=len, reverse=True))})"
    r"(?=(?:set|data|images?)?(?![^\W\d_]))"
)


def is_system(name: str) -> bool:
    """Whether a file or folder of this name is never data: it is hidden, or an operating system, a
    network drive or a photo program put it there."""
    lower = name.lower()
    return name.startswith(".") or lower in _SYSTEM or lower.endswith(_SYSTEM_SUFFIXES)


def is_image(path: str) -> bool:
    """Whether the name says so; files of the system are none."""
    name = os.path.basename(path)
    return os.path.splitext(name)[1].lower() in EXTENSIONS and not is_system(name)


def label(name: str) -> str:
    """The class that a folder's name means: the same text on every machine, whatever its locale,
    and whether its disk keeps accents composed (NFC) or apart (NFD, as macOS does)."""
    text = os.fsencode(name).decode("utf-8", "surrogateescape")
    return unicodedata.normalize("NFC", text)


def spelling(label: str) -> str:
    """What is the same for labels that probably mean one class, whoever typed them: numbers by
    their value, words in any case. Single letters differ by case: they may be what is learned.

    >>> [spelling(label) for label in ("1", "01", "1.0", "Cat", "cat", "A", "a")]
    ['1', '1', '1', 'cat', 'cat', 'A', 'a']
    """
    number = re.fullmatch(r"0*(\d+?)(?:\.0*)?|0*(\d+\.\d*?)0*", label, re.ASCII)
    if number is not None:
        return number[1] or number[2]
    return label.casefold() if len(label) > 1 else label


def affixed_split(name: str) -> tuple[str, tuple[str, str]] | None:
    """The split that one word of a name means, and what stands around that word.

    >>> affixed_split("seg_train"), affixed_split("TestImages"), affixed_split("restrain")
    (('train', ('seg_', '')), ('test', ('', '_images')), None)
    """
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()
    found = list(_AFFIXED.finditer(words))
    if len(found) != 1:
        return None
    (match,) = found
    return SPLITS[match[1]], (words[: match.start()], words[match.end() :])


class LeftOut(Counter[str]):
    """How many files and folders were not taken, by reason, with an example of each."""

    def __init__(self) -> None:
        super().__init__()
        self.examples: dict[str, str] = {}

    def add(self, reason: str, example: str) -> None:
        """Count one more."""
        self[reason] += 1
        self.examples.setdefault(reason, example)

    def lines(self) -> list[str]:
        """A line for each reason.

        >>> found = LeftOut()
        >>> found.add("file(s) of another kind", "cat/notes.txt")
        >>> found.lines()
        ['1 file(s) of another kind, such as cat/notes.txt']
        """
        return [
            f"{count:,} {reason}, such as {self.examples[reason]}"
            for reason, count in self.items()
            if count
        ]


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
