"""Decode once: the working pixels of every picture, in memory or in a file on disk.

Which of the two is chosen by size: memory while the pixels fit into `RAM_SHARE` of what is free,
else one file, mapped into memory, which later runs find again. What is kept is a function of the
picture's contents and the working size: the bits of the first decode, never a random result.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError, ImageError
from ..limits import available_memory
from ..prefetch import prefetch_map
from ..progress import printable, say
from ..runtime import local_world_size
from . import decode, disk_cache, files
from .folder import Split
from .pixels import Pixels
from .transforms import Preprocessing

RAM_SHARE = 0.4
"""The most of the available memory that the pixels take."""

SAMPLE = 64  # pictures whose headers tell how much room all of them need


@dataclass(frozen=True)
class Images:
    """The pictures of a part, as working pixels.

    Args:
        part: which pictures.
        preprocessing: says how they are decoded.
        kept: pixels that are kept; None where each is decoded when it is asked for.
        rows: ``(n,)`` int64, the row of each picture in ``kept``; None where they are the same.
    """

    split: Split
    preprocessing: Preprocessing
    kept: Pixels | None = None
    rows: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> np.ndarray:
        """``(H, W, C)`` uint8, read only where it is kept, decoded where it is not.

        Raises:
            PictureError: the file cannot be read.
        """
        if self.kept is not None:
            found = self.kept.get(index if self.rows is None else int(self.rows[index]))
            if found is not None:
                return found
        return self.preprocessing.pixels(self.split.path(index))

    def labels(self) -> Tensor:
        """``(n,)`` int64."""
        return torch.from_numpy(self.split.labels.astype(np.int64))

    def select(self, split: Split) -> Images:
        """The same for some of these pictures, sharing what is kept.

        Raises:
            KeyError: ``part`` has a picture that is not among these.
        """
        index = {path: i for i, path in enumerate(self.split.paths)}
        rows = np.fromiter((index[path] for path in split.paths), np.int64, len(split))
        return Images(split, self.preprocessing, self.kept, _rows_of(self.rows, rows))


@dataclass(frozen=True)
class Scan:
    """What reading every picture of a part once found."""

    images: Images
    digests: list[str]
    """16 hex digits of the BLAKE2b of each file's contents; empty where it could not be read."""
    unreadable: dict[int, str]
    """What is wrong, by index."""


def scan(
    split: Split, preprocessing: Preprocessing, workers: int, advance: Callable[[str], None]
) -> Scan:
    """Read, hash and decode every picture once, in threads; call ``advance`` after each.

    The pixels are kept in memory while they fit `RAM_SHARE` of what is available. Else they are
    kept in a file of `disk.cache_folder`, named by the hashes of the contents of all the pictures,
    the working size and `decode.fingerprint`: every run reads and hashes every picture, which takes
    a twentieth to a tenth of the time of decoding it, and one that finds the file decodes nothing;
    what is checked in the file is said at `pixels.open_file`. Of
    two runs that need the same file, one writes it and the other waits. Where the file cannot be
    written, that is said, and what does not fit into memory is decoded whenever it is needed.

    Of several processes on a machine each reads every picture, so that nothing has to be sent, and
    each may take its part of the memory: pixels of which so many copies do not fit lie in the file,
    which the first to come writes and whose pages all share.

    Raises:
        DataError: a picture was changed in the meantime.
    """
    budget = int(available_memory() * RAM_SHARE / local_world_size())
    expected = expected_bytes(split, preprocessing, workers)
    ticks = _at_most(len(split), advance)
    if expected > budget:
        say(
            f"{len(split):,} pictures are about {expected / 1e9:,.1f} GB as pixels; at most "
            f"{budget / 1e9:,.1f} GB of memory are taken for them. Kept in "
            f"{disk_cache.cache_folder()}"
        )
        try:
            return _on_disk(split, preprocessing, workers, ticks, expected)
        except OSError as error:
            say(f"They cannot be kept on disk: {error}")
    return _in_memory(split, preprocessing, workers, ticks, budget)


def sizes(split: Split, indices: Iterable[int], workers: int = 1) -> list[tuple[int, int]]:
    """Width and height of some pictures, from their headers; without those that cannot be read,
    which `scan` names."""

    def size(index: int) -> tuple[int, int] | None:
        try:
            return decode.size(split.path(int(index)))
        except ImageError:
            return None

    return [found for found in prefetch_map(size, indices, workers) if found is not None]


def expected_bytes(split: Split, preprocessing: Preprocessing, workers: int = 1) -> int:
    """About how many bytes the working pixels of a part take, from the headers of a sample."""
    sample = np.linspace(0, len(split) - 1, min(SAMPLE, len(split))).astype(int)
    sides = [preprocessing.working_shape(found) for found in sizes(split, sample, workers)]
    channels = preprocessing.channels
    return int(np.mean([channels * w * h for w, h in sides]) * len(split)) if sides else 0


def _in_memory(
    split: Split,
    preprocessing: Preprocessing,
    workers: int,
    advance: Callable[[], None],
    budget: int,
) -> Scan:
    kept = Pixels.none(len(split), preprocessing.channels)
    digests, unreadable = [""] * len(split), {}
    left_out = 0
    reader = _Reader(split, preprocessing)
    for index, (name, image) in enumerate(prefetch_map(reader, range(len(split)), workers)):
        digests[index] = name
        if isinstance(image, ImageError):
            unreadable[index] = reader.named(index, str(image))
        elif image.nbytes <= budget:
            budget -= image.nbytes
            kept.add(index, image)
        else:
            left_out += 1
        advance()
    if left_out:
        say(
            f"{left_out:,} of {len(split):,} pictures do not fit into memory: they are decoded "
            "again whenever they are needed, which is slower"
        )
    return Scan(Images(split, preprocessing, kept), digests, unreadable)


def _on_disk(
    split: Split,
    preprocessing: Preprocessing,
    workers: int,
    advance: Callable[[], None],
    expected: int,
) -> Scan:
    """The same with the pixels in a file, which is written where it is not there yet.

    Raises:
        OSError: it cannot be written.
        DataError: a picture changed after it was hashed.
    """
    reader = _Reader(split, preprocessing)
    digests = list(prefetch_map(reader.digest, range(len(split)), workers))

    def decoded() -> Iterator[np.ndarray | str | None]:
        for index, (name, image) in enumerate(prefetch_map(reader, range(len(split)), workers)):
            if name != digests[index]:
                raise DataError(
                    f"{split.path(index)} was changed while the pictures were read; start again "
                    "when nobody writes to them"
                )
            if isinstance(image, ImageError):
                yield None if image.passing else str(image)
            else:
                yield image
            advance()

    channels = preprocessing.channels
    size, span = preprocessing.resize_size, preprocessing.value_range
    how = map(str, (preprocessing.decoder, size, channels, span))
    made_from = "\n".join([decode.fingerprint(), *how, *digests])
    kept, errors = disk_cache.find_or_write(made_from, len(split), expected, decoded, channels)
    for _ in digests:
        advance()
    unreadable = {index: reader.named(index, text) for index, text in errors.items()}
    # Nothing is remembered about pictures that could not be read for a passing reason.
    again = [int(row) for row in np.flatnonzero(kept.buffer < 0) if row not in errors]
    for index, (_, image) in zip(again, prefetch_map(reader, again, workers), strict=True):
        if isinstance(image, ImageError):
            unreadable[index] = reader.named(index, str(image))
    return Scan(Images(split, preprocessing, kept), digests, unreadable)


@dataclass(frozen=True)
class _Reader:
    """Reads, hashes and decodes a picture of a part; called from many threads."""

    split: Split
    preprocessing: Preprocessing

    def __call__(self, index: int) -> tuple[str, np.ndarray | ImageError]:
        """Digest and working pixels; or what is wrong, as a sentence about "the picture"."""
        try:
            contents = files.read(self.split.path(index), "the picture")
        except ImageError as error:
            return "", error
        try:
            return digest(contents), self.preprocessing.pixels(contents)
        except ImageError as error:
            return digest(contents), error

    def digest(self, index: int) -> str:
        """Digest alone; empty where the file cannot be read."""
        try:
            return file_digest(self.split.path(index))
        except ImageError:  # decoding says what is wrong with it
            return ""

    def named(self, index: int, text: str) -> str:
        """What is wrong, with the path of the picture in it."""
        return text.replace("the picture", str(self.split.path(index)), 1)


def _at_most(times: int, advance: Callable[[str], None]) -> Callable[[], None]:
    """``advance`` that is called no more than ``times``: once a picture, however often it is
    read."""
    left = times

    def once() -> None:
        nonlocal left
        if left:
            left -= 1
            advance("")

    return once


def _rows_of(outer: np.ndarray | None, inner: np.ndarray) -> np.ndarray:
    return inner if outer is None else outer[inner]


def digest(contents: bytes) -> str:
    """16 hex digits that name a file by its contents."""
    return hashlib.blake2b(contents, digest_size=8).hexdigest()


def file_digest(path: Path) -> str:
    """`digest` of a file.

    Raises:
        PictureError: it cannot be read.
    """
    return digest(files.read(path))


def check_readable(scans: dict[str, Scan]) -> None:
    """Refuse to go on with pictures that cannot be read, and name them all.

    Raises:
        DataError: there are some.
    """
    broken = [text for found in scans.values() for text in found.unreadable.values()]
    if broken:
        raise DataError(
            f"{len(broken)} picture(s) cannot be read:\n  "
            + "\n  ".join(map(printable, broken))
            + "\nRepair or remove them, or train without them: --on-error skip"
        )
