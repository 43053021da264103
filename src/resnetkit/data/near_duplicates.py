"""Which pictures look the same although their files differ: saved again, resized, brightened.

Two steps. A hash of 64 bits (pHash: the signs of the low frequencies, as in Zauner, "Implementation
and benchmarking of perceptual image hash functions", 2010) finds candidates without comparing every
picture with every other; their thumbnails then decide. Crops, turns and mirrors are not found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from .color import to_look_at
from .resize import resize

DISTANCE = 7
"""Bits in which the hashes of two candidates differ at most."""

ALIKE = 0.975
"""Least correlation of two thumbnails of the same picture. Looked at by eye: of 68,000 pictures of
four kinds, the greatest correlation of two that differ was 0.972 (two white shirts on one red
cloth); of 36 pairs of CIFAR-10 from 0.95 to 0.98, all were one picture."""

FLAT = 4.0
"""Least standard deviation, of 255, of a thumbnail that has something to compare."""

SAME_HASH = 200  # of more pictures with one hash, each further one is compared with the first alone
_GREY, _THUMB = 32, 16
_BANDS = 4  # of 16 bits; 7 bits in four bands: at least one of them has at most one
_CHUNK = 1 << 14
_COSINES = 2 * np.cos(
    np.pi * np.arange(8)[:, None] * (2 * np.arange(_GREY)[None, :] + 1) / (2 * _GREY)
)  # the first 8 rows of the discrete cosine transform, type II


@dataclass(frozen=True)
class Look:
    """``hash`` is 64 bits; ``thumb`` is ``(16, 16, 3)`` uint8; ``flat`` where it shows nothing."""

    hash: int
    thumb: np.ndarray
    flat: bool


def look(pixels: np.ndarray) -> Look:
    """How a picture looks from afar; ``pixels`` is ``(H, W, C)`` uint8."""
    small = resize(to_look_at(pixels), (_GREY, _GREY))
    grey = small @ np.array([0.299, 0.587, 0.114])  # as in BT.601
    thumb = resize(small, (_THUMB, _THUMB))
    return Look(phash(grey.round()), thumb, bool(thumb.std((0, 1)).max() < FLAT))


def phash(grey: np.ndarray) -> int:
    """64 bits, the first frequency in the highest: which of the 8 x 8 lowest are over their median.

    Args:
        grey: ``(32, 32)``.
    """
    low = _COSINES @ grey @ _COSINES.T
    bits = np.packbits(low > np.median(low))
    return int.from_bytes(bits.tobytes())


def near_pairs(hashes: np.ndarray) -> Iterator[np.ndarray]:
    """All pairs of hashes that differ in at most `DISTANCE` bits, each at least once.

    Four bands of 16 bits cannot all differ in two bits or more, or there were eight: so it is
    enough to look, for each band, at the pictures whose band is equal or differs in one bit.

    Args:
        hashes: ``(n,)`` uint64.

    Yields:
        ``(m, 2)`` int64 with indices i < j.
    """
    for band in range(_BANDS):
        keys = (hashes >> np.uint64(16 * band)).astype(np.uint16)
        order = np.argsort(keys, kind="stable")
        ends = np.searchsorted(keys[order], np.arange(2**16 + 1, dtype=np.uint32))
        for flip in (0, *(1 << bit for bit in range(16))):
            partner = keys ^ np.uint16(flip)
            first, counts = ends[partner], ends[partner.astype(np.int64) + 1] - ends[partner]
            for rows in _chunks(counts):
                here = counts[rows]
                left = np.repeat(rows, here)
                within = np.arange(here.sum()) - np.repeat(np.cumsum(here) - here, here)
                right = order[np.repeat(first[rows], here) + within]
                close = np.bitwise_count(hashes[left] ^ hashes[right]) <= DISTANCE
                found = np.stack([left, right], 1)[close & (left < right)]
                if len(found):
                    yield found


def _chunks(counts: np.ndarray, most: int = 1 << 21) -> Iterator[np.ndarray]:
    """Indices in order, in parts whose ``counts`` add up to about ``most``."""
    ends = np.cumsum(counts)
    splits = int(ends[-1]) // most + 1 if len(ends) else 0
    cuts = np.searchsorted(ends, np.arange(1, splits) * most)
    return (split for split in np.split(np.arange(len(counts)), cuts) if len(split))


def alike(thumbs: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """The correlation of the thumbnails of each pair, in [-1, 1]; brightness does not count.

    Args:
        thumbs: ``(n, 16, 16, 3)`` uint8.
        pairs: ``(m, 2)``.
    """
    rows = thumbs.reshape(len(thumbs), _THUMB * _THUMB * 3)
    sides = []
    for side in range(2):
        flat = rows[pairs[:, side]].astype(np.float32)
        flat -= flat.mean(1, keepdims=True)
        sides.append(flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6))
    correlation: np.ndarray = np.einsum("ij,ij->i", *sides)
    return correlation


def groups(
    hashes: np.ndarray, thumbs: np.ndarray, advance: Callable[[], None] = lambda: None
) -> list[list[int]]:
    """Pictures that look the same, two or more in a group, by their first.

    Args:
        hashes: ``(n,)`` uint64.
        thumbs: ``(n, 16, 16, 3)`` uint8.
        advance: called after each comparison of many.
    """
    root = list(range(len(hashes)))

    def find(i: int) -> int:
        while root[i] != i:
            root[i] = i = root[root[i]]
        return i

    searched, crowd = _crowds(hashes)
    candidates = (searched[pairs] for pairs in near_pairs(hashes[searched]))
    for pairs in (crowd, *candidates) if len(crowd) else candidates:
        for start in range(0, len(pairs), _CHUNK):
            split = pairs[start : start + _CHUNK]
            apart = [find(i) != find(j) for i, j in split.tolist()]
            split = split[np.array(apart, bool)]
            for i, j in split[alike(thumbs, split) >= ALIKE].tolist():
                first, second = sorted((find(i), find(j)))
                root[second] = first
            advance()
    members: dict[int, list[int]] = {}
    for i in range(len(root)):
        members.setdefault(find(i), []).append(i)
    return [group for group in members.values() if len(group) > 1]


def keep_together(
    labels: np.ndarray, digests: Sequence[str], looks: Iterable[Look]
) -> tuple[list[str], int]:
    """The digests, but of the images of one class that look the same, the digest of the first; and
    how many images that changes. A group of more than half of its class stays as it is: a split has
    to divide it.

    Args:
        labels: ``(n,)``.
    """
    count = len(digests)
    hashes, thumbs = np.zeros(count, np.uint64), np.zeros((count, _THUMB, _THUMB, 3), np.uint8)
    flat = np.zeros(count, bool)
    for i, seen in enumerate(looks):
        hashes[i], thumbs[i], flat[i] = seen.hash, seen.thumb, seen.flat
    together, changed = list(digests), 0
    for label in np.unique(labels):
        own = np.flatnonzero((labels == label) & ~flat)
        for group in groups(hashes[own], thumbs[own]):
            members = own[group].tolist()
            if len({digests[i] for i in members}) > 1 and 2 * len(members) <= len(own):
                changed += len(members)
                for i in members:
                    together[i] = digests[members[0]]
    return together, changed


def _crowds(hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which pictures are compared with all that are near; and pairs of a further one with the
    first, where more than `SAME_HASH` have the same hash."""
    order = np.argsort(hashes, kind="stable")
    ordered = hashes[order]
    first = np.searchsorted(ordered, ordered)
    further = np.arange(len(order)) - first >= SAME_HASH
    pairs = np.stack([order[first[further]], order[further]], 1)
    return np.sort(order[~further]), pairs
