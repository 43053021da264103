"""Near duplicates: images that look the same in different files (resaved, resized, brightened).

There are two steps. A 64-bit hash (pHash: low frequencies above their median, as in Zauner,
"Implementation and benchmarking of perceptual image hash functions", 2010) finds candidates without
comparing every pair of images. The correlation between the candidates' thumbnails then decides.
Cropped, rotated and mirrored copies are not found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from .color import to_rgb
from .resize import resize

DISTANCE = 7
"""Maximum number of bits in which the hashes of two candidates differ."""

MIN_CORRELATION = 0.975
"""Smallest correlation between the thumbnails of two near duplicates.

Checked by eye: among 68,000 images of four kinds, the largest correlation between two different
ones was 0.972 (two white shirts on the same red cloth). All 36 pairs in CIFAR-10 between 0.95 and
0.98 showed the same image."""

FLAT = 4.0
"""Smallest standard deviation, on a scale of 255, of a thumbnail with enough detail to compare."""

SAME_HASH = 200
"""If more images than this share a hash, each additional one is compared only with the first."""

_GRAY = 32  # side of the image that is hashed, in pixels
_THUMB = 16  # side of a thumbnail, in pixels
_BANDS = 4  # 16 bits each: if 7 bits differ, at least one band differs in at most one bit
_CHUNK = 1 << 14  # pairs compared at a time
_COSINES = 2 * np.cos(
    np.pi * np.arange(8)[:, None] * (2 * np.arange(_GRAY)[None, :] + 1) / (2 * _GRAY)
)  # the first 8 rows of the discrete cosine transform, type II


@dataclass(frozen=True)
class Signature:
    """The properties that are compared to find near duplicates.

    ``hash`` is 64 bits, ``thumb`` is ``(16, 16, 3)`` uint8, and ``flat`` says that the image has
    too little detail to be compared.
    """

    hash: int
    thumb: np.ndarray
    flat: bool


def signature(pixels: np.ndarray) -> Signature:
    """Return the signature of an image, ``(H, W, C)`` uint8."""
    small = resize(to_rgb(pixels), (_GRAY, _GRAY))
    gray = small @ np.array([0.299, 0.587, 0.114])  # the luma weights from BT.601
    thumb = resize(small, (_THUMB, _THUMB))
    flat = bool(thumb.std((0, 1)).max() < FLAT)
    return Signature(phash(gray.round()), thumb, flat=flat)


def phash(gray: np.ndarray) -> int:
    """Return 64 bits: which of the 8 x 8 lowest frequencies exceed their median.

    The first frequency is the highest bit.

    Args:
        gray: ``(32, 32)``.
    """
    low = _COSINES @ gray @ _COSINES.T
    bits = np.packbits(low > np.median(low))
    return int.from_bytes(bits.tobytes())


def near_pairs(hashes: np.ndarray) -> Iterator[np.ndarray]:
    """Yield all pairs of hashes that differ in at most `DISTANCE` bits, each at least once.

    If all four bands of 16 bits differed in two or more bits, at least eight bits would differ. It
    is therefore enough to compare, for each band, images whose hashes agree in that band or differ
    there in one bit. The number of comparisons grows with the square of ``n``, but is small: each
    image is compared with about one image in a thousand.

    Args:
        hashes: ``(n,)`` uint64.

    Yields:
        ``(m, 2)`` int64 with indices i < j.
    """
    for band in range(_BANDS):
        keys = (hashes >> np.uint64(16 * band)).astype(np.uint16)
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        ordered = hashes[order]  # so that images to compare are neighbors in memory
        ends = np.searchsorted(keys, np.arange(2**16 + 1, dtype=np.uint32))
        for flip in (0, *(1 << bit for bit in range(16))):
            # Each pair only once: the left image comes first, or its bit is 0.
            lefts = np.flatnonzero(keys & np.uint16(flip) == 0)
            partners = keys[lefts].astype(np.int64) | flip
            first = ends[partners] if flip else lefts + 1
            counts = ends[partners + 1] - first
            for rows in _chunks(counts):
                row_ends = np.cumsum(counts[rows])
                shift = first[rows] - (row_ends - counts[rows])
                right = np.repeat(shift, counts[rows]) + np.arange(row_ends[-1])
                differing = np.repeat(ordered[lefts[rows]], counts[rows]) ^ ordered[right]
                close = np.flatnonzero(np.bitwise_count(differing) <= DISTANCE)
                if len(close):
                    left = lefts[rows[np.searchsorted(row_ends, close, side="right")]]
                    yield np.sort(np.stack([order[left], order[right[close]]], 1), axis=1)


def _chunks(counts: np.ndarray, most: int = 1 << 18) -> Iterator[np.ndarray]:
    """Yield consecutive indices, in chunks whose ``counts`` add up to about ``most``."""
    ends = np.cumsum(counts)
    chunks = int(ends[-1]) // most + 1 if len(ends) else 0
    cuts = np.searchsorted(ends, np.arange(1, chunks) * most)
    return (chunk for chunk in np.split(np.arange(len(counts)), cuts) if len(chunk))


def correlations(thumbs: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Return the correlation between each pair's thumbnails, in [-1, 1]; brightness cancels out.

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


def near_duplicate_groups(
    hashes: np.ndarray,
    thumbs: np.ndarray,
    indices: np.ndarray,
    advance: Callable[[], None] = lambda: None,
) -> list[list[int]]:
    """Return groups of two or more near duplicates, ordered by their first image.

    Args:
        hashes: ``(n,)`` uint64.
        thumbs: ``(n, 16, 16, 3)`` uint8.
        indices: ``(m,)`` the images to compare, ascending; groups hold these indices.
        advance: called after each batch of comparisons.
    """
    hashes = hashes[indices]
    parent = list(range(len(hashes)))  # a union-find forest; the root is a group's first image

    def find_root(i: int) -> int:
        while parent[i] != i:
            parent[i] = i = parent[parent[i]]
        return i

    searched, crowd_pairs = _crowds(hashes)
    candidates = (searched[pairs] for pairs in near_pairs(hashes[searched]))
    for pairs in (crowd_pairs, *candidates) if len(crowd_pairs) else candidates:
        for start in range(0, len(pairs), _CHUNK):
            chunk = pairs[start : start + _CHUNK]
            apart = [find_root(i) != find_root(j) for i, j in chunk.tolist()]
            chunk = chunk[np.array(apart, bool)]
            is_same = correlations(thumbs, indices[chunk]) >= MIN_CORRELATION
            for i, j in chunk[is_same].tolist():
                first, second = sorted((find_root(i), find_root(j)))
                parent[second] = first
            advance()
    members: dict[int, list[int]] = {}
    for i in range(len(parent)):
        members.setdefault(find_root(i), []).append(int(indices[i]))
    return [group for group in members.values() if len(group) > 1]


def keep_together(
    labels: np.ndarray,
    digests: Sequence[str],
    signatures: Iterable[Signature],
    *,
    largest: float = 0.5,
) -> tuple[list[str], int]:
    """Give near duplicates in a class the same digest, so that a split keeps them together.

    Args:
        labels: ``(n,)``.
        digests: the digest of each image's contents.
        signatures: the signature of each image.
        largest: the largest share of its class that a group may make up. A larger group is not
            kept together, because a split has to divide it.

    Returns:
        The digests, in which each near duplicate has the digest of the first image in its group;
        and the number of images in those groups.
    """
    count = len(digests)
    hashes = np.zeros(count, np.uint64)
    thumbs = np.zeros((count, _THUMB, _THUMB, 3), np.uint8)
    flat = np.zeros(count, bool)
    for i, each in enumerate(signatures):
        hashes[i] = each.hash
        thumbs[i] = each.thumb
        flat[i] = each.flat
    together = list(digests)
    changed = 0
    for label in np.unique(labels):
        own = np.flatnonzero((labels == label) & ~flat)
        for members in near_duplicate_groups(hashes, thumbs, own):
            if len({digests[i] for i in members}) > 1 and len(members) <= largest * len(own):
                changed += len(members)
                for i in members:
                    together[i] = digests[members[0]]
    return together, changed


def _crowds(hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the images to compare with all their candidates, and pairs for the others.

    If more than `SAME_HASH` images share a hash, each additional one is paired with the first.
    """
    order = np.argsort(hashes, kind="stable")
    ordered = hashes[order]
    first = np.searchsorted(ordered, ordered)
    further = np.arange(len(order)) - first >= SAME_HASH
    pairs = np.stack([order[first[further]], order[further]], 1)
    return np.sort(order[~further]), pairs
