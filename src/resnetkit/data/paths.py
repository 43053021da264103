"""What can be told from a file's name, and a compact list of paths."""

from __future__ import annotations

import operator
import os
import re
import unicodedata
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import overload

import numpy as np

from ..text import printable

EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff"}
    | {".ppm", ".pgm", ".pbm", ".pnm", ".avif", ".heic", ".heif"}
)
"""Extensions of images: raster formats that are decoded in this process."""

SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "validate", "dev", "eval"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""Names of splits in folders and manifests, in lower case."""

_SYSTEM = frozenset(
    {"@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot"}  # Synology, QNAP
    | {"$recycle.bin", "system volume information", "thumbs.db", "ehthumbs.db", "desktop.ini"}
    | {"__macosx", "network trash folder", "temporary items", "icon\r"}
    | {"lost+found", "__pycache__", "~snapshot", "recycler", "found.000", "@tmp", "@sharebin"}
    | {"_gsdata_"}  # GoodSync
    | {"cvs", "node_modules", "venv", "captureone"}  # programs' own icons and thumbnails
)
# Lightroom's previews, and the libraries of Apple's photo programs, which also hold thumbnails.
_SYSTEM_SUFFIXES = (".lrdata", ".photoslibrary", ".photolibrary", ".aplibrary")

_PLURAL = re.compile(r"\b(file|folder|image|link)s\b")

_SPLIT_WORD = re.compile(
    rf"(?<![^\W\d_])({'|'.join(sorted(SPLITS, key=len, reverse=True))})"
    r"(?=(?:set|data|images?)?(?![^\W\d_]))"
)


def object_url(path: str | os.PathLike[str]) -> str | None:
    """Return the URL of an object in a store; None for a path on this machine.

    The argument may be a `Path`, which drops one of the two slashes.

    >>> from pathlib import PurePosixPath
    >>> object_url(PurePosixPath("s3://bucket/cats/1.jpg")), object_url("cats/1.jpg")
    ('s3://bucket/cats/1.jpg', None)
    """
    text = os.fspath(path)
    if os.name == "nt":
        text = text.replace("\\", "/")
    if not text.startswith(("s3:/", "gs:/")) and text not in ("s3:", "gs:"):
        return None
    return f"{text[:2]}://{text[4:].lstrip('/')}"


def shown(path: str | os.PathLike[str]) -> str:
    """Return a path as the user types it; for an object, its URL."""
    return object_url(path) or os.fspath(path)


def absolute(path: str | os.PathLike[str]) -> str:
    """Return an absolute path; for an object, its URL."""
    return object_url(path) or str(Path(path).absolute())


def is_system(name: str) -> bool:
    """Return whether a file or folder with this name is never data.

    Such files are hidden, or were created by an operating system, a network drive or a photo
    program.
    """
    lower = name.lower()
    return name.startswith(".") or lower in _SYSTEM or lower.endswith(_SYSTEM_SUFFIXES)


def is_image(path: str) -> bool:
    """Return whether a path has an image's extension and is not a system file."""
    name = os.path.basename(path)
    return os.path.splitext(name)[1].lower() in EXTENSIONS and not is_system(name)


def label(name: str) -> str:
    """Return the class name for a folder name, which is the same on every machine.

    It does not depend on the locale, or on whether the disk stores accents composed (NFC) or
    decomposed (NFD, as macOS does).
    """
    text = os.fsencode(name).decode("utf-8", "surrogateescape")
    return unicodedata.normalize("NFC", text)


def spelling(label: str) -> str:
    """Return a key that is equal for labels that probably mean the same class.

    Numbers are compared by value, and words without regard to case. Single letters keep their case,
    because the classes may be letters.

    >>> [spelling(label) for label in ("1", "01", "1.0", "Cat", "cat", "A", "a")]
    ['1', '1', '1', 'cat', 'cat', 'A', 'a']
    """
    number = re.fullmatch(r"0*(\d+?)(?:\.0*)?|0*(\d+\.\d*?)0*", label, re.ASCII)
    if number is not None:
        return number[1] or number[2]
    return label.casefold() if len(label) > 1 else label


def affixed_split(name: str) -> tuple[str, tuple[str, str]] | None:
    """Return the split that one word in a name stands for, and the text before and after that word.

    >>> affixed_split("seg_train"), affixed_split("TestImages"), affixed_split("restrain")
    (('train', ('seg_', '')), ('test', ('', '_images')), None)
    """
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()
    matches = list(_SPLIT_WORD.finditer(words))
    if len(matches) != 1:
        return None
    (match,) = matches
    return SPLITS[match[1]], (words[: match.start()], words[match.end() :])


class LeftOut(Counter[str]):
    """Counts of the files and folders that were left out, by reason, with an example of each."""

    def __init__(self) -> None:
        super().__init__()
        self.examples: dict[str, str] = {}

    def add(self, reason: str, example: str) -> None:
        """Count one more file or folder."""
        self[reason] += 1
        self.examples.setdefault(reason, example)

    def lines(self) -> list[str]:
        """Return a line for each reason.

        >>> left_out = LeftOut()
        >>> left_out.add("files of another kind", "cat/notes.txt")
        >>> left_out.lines()
        ['1 file of another kind, such as cat/notes.txt']
        """
        return [
            f"{_count(number, reason)}, such as {printable(self.examples[reason])}"
            for reason, number in self.items()
            if number
        ]


def _count(number: int, reason: str) -> str:
    """Return text such as "1 hidden file" or "2 hidden files", given a reason in the plural."""
    if number == 1:
        reason = _PLURAL.sub(r"\1", reason, count=1)
    return f"{number:,} {reason}"


class Paths(Sequence[str]):
    """An append-only list of paths that takes 8 bytes per path in addition to its text.

    A list of ``str`` takes 57 more bytes per path. Every access to a ``str`` also writes to its
    reference count, so a forked process ends up copying the list page by page.

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

    @classmethod
    def from_buffers(cls, text: bytearray, ends: array[int]) -> Paths:
        """Return the paths whose text is joined in ``text``; ``ends`` says where each one ends."""
        paths = cls()
        paths._text = text
        paths._ends = ends
        return paths

    def to_buffers(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the joined text (uint8) and the length of each path in bytes (uint64)."""
        ends = np.frombuffer(self._ends, np.uint64)
        return np.frombuffer(self._text, np.uint8), np.diff(ends, prepend=np.uint64(0))

    def append(self, path: str) -> None:
        """Append a path."""
        self._text += os.fsencode(path)
        self._ends.append(len(self._text))

    def extend(self, others: Paths) -> None:
        """Append all paths of ``others``."""
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
            rows = range(len(self))[index]
            return self._consecutive(rows) if rows and rows.step == 1 else self.take(rows)
        position = operator.index(index)  # also accepts NumPy integers
        position += len(self) if position < 0 else 0
        if not 0 <= position < len(self):
            raise IndexError(f"path {index} of {len(self)}")
        return os.fsdecode(self.encoded(position))

    def encoded(self, index: int) -> bytes:
        """Return a path as the system stores it; ``index`` is not negative."""
        start = self._ends[index - 1] if index else 0
        return bytes(self._text[start : self._ends[index]])

    def __iter__(self) -> Iterator[str]:
        start = 0
        for end in self._ends:
            yield os.fsdecode(bytes(self._text[start:end]))
            start = end

    def _consecutive(self, rows: range) -> Paths:
        start = self._ends[rows[0] - 1] if rows[0] else 0
        ends = np.frombuffer(self._ends, np.uint64)[rows.start : rows.stop] - np.uint64(start)
        text = self._text[start : self._ends[rows[-1]]]
        return Paths.from_buffers(text, array("Q", ends.tobytes()))

    def take(self, indices: Iterable[int]) -> Paths:
        """Return the paths at ``indices``, in that order."""
        return Paths(self[i] for i in indices)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Paths):
            return NotImplemented
        return self._ends == other._ends and self._text == other._text

    __hash__ = None  # type: ignore[assignment]  # mutable

    def __repr__(self) -> str:
        shown = ", ".join(map(repr, self[:3]))
        return f"Paths([{shown}{', ...' if len(self) > 3 else ''}], {len(self)} in all)"
