"""Decode every image in a split once, and keep its working pixels in memory or on disk.

Pixels stay in memory if they fit in `RAM_SHARE` of the available memory. Otherwise they go into
one memory-mapped file, which later runs reuse. Cached pixels are a function of the file's contents
and the working size. They are bit-identical to a fresh decode; no random result is ever cached.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from ..errors import DataError, ImageError
from ..limits import available_memory
from ..prefetch import prefetch_map
from ..processes import local_world_size
from ..progress import say
from ..text import printable
from . import decode, disk_cache, files, shards
from .dataset import Images, image_sizes
from .folder import Split
from .pixels import Pixels
from .preprocessing import Preprocessing
from .remote import in_order

RAM_SHARE = 0.4
"""Largest share of the available memory used for pixels."""

SAMPLE = 64
"""Number of image headers read to estimate the total size of the pixels."""


@dataclass(frozen=True)
class Scan:
    """The result of reading every image in a split once."""

    images: Images
    digests: list[str]
    """`files.digest` of each file's contents; empty if the file could not be read."""
    unreadable: dict[int, str]
    """Error messages, by image index."""


def scan(
    split: Split, preprocessing: Preprocessing, workers: int, advance: Callable[[str], None]
) -> Scan:
    """Read, hash and decode every image once, in threads; call ``advance`` after each.

    Pixels are kept in memory if they fit in `RAM_SHARE` of the available memory. Otherwise they go
    into a file in `disk_cache.cache_folder`, named by a hash of the digests of all images, the
    working size and `decode.fingerprint`. Every run hashes every image, which takes 5 to 10% of
    the decoding time; a run that finds the file decodes nothing. `pixels.open_pixels` describes how
    the file is checked. If two runs need the same file, one writes it and the other waits. If the
    file cannot be written, a message says so, and images that do not fit in memory are decoded each
    time they are needed.

    With several processes on one machine, each process reads every image, so that no pixels have to
    be sent, and may use its share of the memory. If that many copies do not fit, the first process
    writes the file and all processes share its pages.

    Raises:
        DataError: an image changed while it was being read.
    """
    budget = int(available_memory() * RAM_SHARE / local_world_size())
    expected = expected_bytes(split, preprocessing, workers)
    advance_once_each = _limit_calls(len(split), advance)
    if expected > budget:
        say(
            f"The pixels of {len(split):,} images need about {expected / 1e9:,.1f} GB, more than "
            f"the {budget / 1e9:,.1f} GB of memory available for them. They are cached in "
            f"{disk_cache.cache_folder()}"
        )
        try:
            return _scan_to_disk(
                split,
                preprocessing,
                workers=workers,
                advance=advance_once_each,
                expected=expected,
            )
        except OSError as error:
            say(f"The pixels cannot be cached on disk: {error}")
    return _scan_to_memory(
        split, preprocessing, workers=workers, advance=advance_once_each, budget=budget
    )


def expected_bytes(split: Split, preprocessing: Preprocessing, workers: int = 1) -> int:
    """Estimate the size in bytes of a split's working pixels, from a sample of headers."""
    sample = np.linspace(0, len(split) - 1, min(SAMPLE, len(split))).astype(int)
    sizes = image_sizes(split, sample, workers)
    if not sizes:
        return 0
    shapes = [preprocessing.working_shape(size) for size in sizes]
    channels = preprocessing.channels
    return int(np.mean([channels * width * height for width, height in shapes]) * len(split))


def _scan_to_memory(
    split: Split,
    preprocessing: Preprocessing,
    *,
    workers: int,
    advance: Callable[[], None],
    budget: int,
) -> Scan:
    """Scan a split and keep up to ``budget`` bytes of pixels in memory."""
    kept = Pixels.empty(len(split), preprocessing.channels)
    digests = [""] * len(split)
    unreadable = {}
    left_out = 0
    reader = _Reader(split, preprocessing)
    results = prefetch_map(reader, in_order(split), workers)
    for index, (digest, pixels) in enumerate(results):
        digests[index] = digest
        if isinstance(pixels, ImageError):
            unreadable[index] = reader.with_path(index, str(pixels))
        elif pixels.nbytes <= budget:
            budget -= pixels.nbytes
            kept.add(index, pixels)
        else:
            left_out += 1
        advance()
    if left_out:
        say(
            f"{left_out:,} of {len(split):,} images do not fit in memory. They are decoded "
            "each time they are needed, which is slower"
        )
    return Scan(Images(split, preprocessing, kept=kept), digests, unreadable=unreadable)


def _scan_to_disk(
    split: Split,
    preprocessing: Preprocessing,
    *,
    workers: int,
    advance: Callable[[], None],
    expected: int,
) -> Scan:
    """Scan a split and keep its pixels in a file, which is written if it does not exist.

    Raises:
        OSError: the file cannot be written.
        DataError: an image changed after it was hashed.
    """
    reader = _Reader(split, preprocessing)
    digests = list(prefetch_map(reader.digest, in_order(split), workers))

    def decode_all() -> Iterator[np.ndarray | str | None]:
        results = prefetch_map(reader, in_order(split), workers)
        for index, (digest, pixels) in enumerate(results):
            if digest and digests[index] and digest != digests[index]:
                raise _changed(split, index)
            if digest != digests[index]:
                yield None  # one of the two reads failed; the image is read again below
            elif isinstance(pixels, ImageError):
                yield None if pixels.passing else str(pixels)
            else:
                yield pixels
            advance()

    key = "\n".join(
        [
            decode.fingerprint(),
            str(preprocessing.decoder),
            str(preprocessing.resize_size),
            str(preprocessing.channels),
            str(preprocessing.value_range),
            *digests,
        ]
    )
    kept, errors = disk_cache.load_or_create(
        key,
        len(split),
        expected=expected,
        decode_all=decode_all,
        channels=preprocessing.channels,
    )
    for _ in digests:
        advance()
    unreadable = {index: reader.with_path(index, text) for index, text in errors.items()}
    # Temporary failures are not recorded in the file, so try to read those images again.
    missing = np.flatnonzero(kept.buffer < 0)
    retry = [int(row) for row in missing if row not in errors]
    for index, (digest, pixels) in zip(retry, prefetch_map(reader, retry, workers), strict=True):
        if digest and digests[index] and digest != digests[index]:
            raise _changed(split, index)
        digests[index] = digests[index] or digest
        if isinstance(pixels, ImageError):
            unreadable[index] = reader.with_path(index, str(pixels))
    return Scan(Images(split, preprocessing, kept=kept), digests, unreadable=unreadable)


def _changed(split: Split, index: int) -> DataError:
    return DataError(
        f"{split.path(index)} was changed while the images were being read. Start again once "
        "nothing else is writing to them"
    )


@dataclass(frozen=True)
class _Reader:
    """Reads, hashes and decodes images from a split; called from many threads."""

    split: Split
    preprocessing: Preprocessing

    def __call__(self, index: int) -> tuple[str, np.ndarray | ImageError]:
        """Return the digest and the pixels, or an error that calls the file just "the image"."""
        try:
            contents = files.read_file(self.split.path(index), decode.UNNAMED)
        except ImageError as error:
            return "", error
        digest = files.digest(contents)
        try:
            return digest, self.preprocessing.pixels(contents)
        except ImageError as error:
            return digest, error

    def digest(self, index: int) -> str:
        """Return only the digest; empty if the file cannot be read."""
        try:
            return files.file_digest(self.split.path(index))
        except ImageError:  # decoding reports what is wrong
            return ""

    def with_path(self, index: int, message: str) -> str:
        """Return an error message that names the image by its path."""
        return message.replace(decode.UNNAMED, shards.describe(self.split.path(index)), 1)


def _limit_calls(times: int, advance: Callable[[str], None]) -> Callable[[], None]:
    """Return ``advance`` limited to ``times`` calls: one per image, even if it is read twice."""
    left = times

    def advance_while_left() -> None:
        nonlocal left
        if left:
            left -= 1
            advance("")

    return advance_while_left


def check_readable(scans: dict[str, Scan]) -> None:
    """Raise an error that names every unreadable image, if there are any.

    Raises:
        DataError: at least one image cannot be read.
    """
    messages = [text for scan in scans.values() for text in scan.unreadable.values()]
    if messages:
        count = f"{len(messages):,} images" if len(messages) > 1 else "1 image"
        raise DataError(
            f"{count} cannot be read:\n  "
            + "\n  ".join(map(printable, messages))
            + "\nRepair or remove them, or train without them: --on-error skip"
        )
