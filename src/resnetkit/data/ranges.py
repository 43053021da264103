"""Which numbers are black and white in images of 16 or 32 bits of grey: one rule for a dataset.

Cameras, microscopes and scanners put 8, 10 or 12 bits into files of 16, or write fractions, and no
file says so. The training images together do.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import DataError, ImageError
from ..prefetch import prefetch_map
from .decode import Depth, depth
from .folder import Split

BITS = (8, 10, 12, 14, 16, 24, 32)
"""Of integers: the first into which all of them fit says what is white."""


def find(splits: Sequence[Split], workers: int) -> tuple[float, float] | None:
    """Read the images of ``parts``, and `settle` which numbers become black and white.

    Args:
        parts: the training images first.
        workers: threads that read images.

    Raises:
        DataError: images of several kinds, so that no one rule is right.
    """
    return settle([_depths(split, workers) for split in splits])


def settle(seen: Sequence[Sequence[Depth | None]]) -> tuple[float, float] | None:
    """Find the numbers that become black and white, from all images of the first part.

    - 16 bits, and 32 bits without negative numbers: 0 to the greatest number of 8, 10, 12, 14, 16,
      24 or 32 bits that none exceeds.
    - 32 bits with negative numbers: the least to the greatest number of all images.
    - Fractions: 0 to 1 where they lie there, else from 0 or the least to 1 or the greatest.

    Args:
        seen: of each part what its images are; the training images first. The others only have
            to be of the same kind. None stands for 8 bits.

    Returns:
        None where no image needs it: 8 bits, or all of the 16 bits.

    Raises:
        DataError: images of several kinds, so that no one rule is right.
    """
    deep = [found for found in seen[0] if found is not None]
    span = limits(deep) if deep else None
    kinds = {found.kind if found else "8-bit" for found in _all(seen)}
    agree = len(kinds) < 2 or (kinds == {"8-bit", "16-bit"} and deep and span is None)
    if not agree:
        raise DataError(_question(seen, span))
    return span


def limits(deep: Sequence[Depth]) -> tuple[float, float] | None:
    """The numbers that become black and white in images of one kind; see `find`."""
    kind = deep[0].kind
    low, high = min(one.low for one in deep), max(one.high for one in deep)
    if kind == "float":
        return min(0.0, low), max(1.0, high)
    if low < 0:
        return low, max(high, low + 1)
    white = next(2.0**bits - 1 for bits in BITS if high < 2**bits)
    return None if (kind, white) == ("16-bit", 65535) else (0.0, white)


def _all(seen: Sequence[Sequence[Depth | None]]) -> list[Depth | None]:
    return [found for one in seen for found in one]


def _depths(split: Split, workers: int) -> list[Depth | None]:
    """Of every image that can be read; reading the pixels names the others."""

    def one(index: int) -> tuple[Depth | None] | None:
        try:
            return (depth(split.path(index)),)
        except ImageError:
            return None

    found = prefetch_map(one, range(len(split)), workers)
    return [item[0] for item in found if item is not None]


def _question(seen: Sequence[Sequence[Depth | None]], span: tuple[float, float] | None) -> str:
    kinds: dict[str, list[Depth | None]] = {}
    for found in _all(seen):
        kinds.setdefault(found.kind if found else "8-bit", []).append(found)
    words = []
    for kind, members in sorted(kinds.items()):
        deep = [one for one in members if one is not None]
        between = ""
        if deep:
            least, most = min(one.low for one in deep), max(one.high for one in deep)
            between = f" ({least:g} to {most:g})"
        words.append(f"{len(members):,} {kind}{between}")
    low, high = span or (0, 65535)
    return (
        f"The images are of several kinds: {', '.join(words)}. Which numbers are black and white "
        f"in those of more than 8 bits? Say so with --set value_range=[{low:g},{high:g}], or make "
        "all images alike"
    )
