"""The value range of a dataset with more than 8 bits per channel: one range for all its images.

`resnetkit.data.gray` explains the rule; this module reads the images.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import DataError, ImageError
from ..prefetch import prefetch_map
from .decode import read_depth
from .folder import Split
from .gray import FULL_RANGE, Depth, dataset_range
from .remote import in_order


def find_value_range(splits: Sequence[Split], workers: int) -> tuple[float, float] | None:
    """Read the images in ``splits`` and return the values that become black and white.

    Args:
        splits: the splits to read, with the training split first.
        workers: threads that read images.

    Returns:
        The range; None if no image needs one.

    Raises:
        DataError: the images are of different kinds, so no single range fits.
    """
    return resolve_value_range([_read_depths(split, workers) for split in splits])


def resolve_value_range(
    depths_by_split: Sequence[Sequence[Depth | None]],
) -> tuple[float, float] | None:
    """Return the `dataset_range` of the training images; all images must be of the same kind.

    Args:
        depths_by_split: the depths of each split's images, training images first; None means 8
            bits.

    Returns:
        The range; None if all images have 8 bits or use the full 16 bits, and so need none.

    Raises:
        DataError: the images are of different kinds, so no single range fits.
    """
    deep = [depth for depth in depths_by_split[0] if depth is not None]
    value_range = dataset_range(deep) if deep else None
    depths = [depth for split in depths_by_split for depth in split]
    kinds = {_kind(depth) for depth in depths}
    # The full 16 bits and 8 bits agree: the upper 8 bits of the 16 are kept.
    full_16_bits = kinds == {"8-bit", "16-bit"} and deep and value_range is None
    if len(kinds) > 1 and not full_16_bits:
        raise DataError(_several_kinds(depths, value_range))
    return value_range


def _kind(depth: Depth | None) -> str:
    return depth.kind if depth else "8-bit"


def _read_depths(split: Split, workers: int) -> list[Depth | None]:
    """Return the depths of all readable images; decoding reports the unreadable ones."""

    def read_or_none(index: int) -> tuple[Depth | None] | None:
        try:
            return (read_depth(split.path(index)),)
        except ImageError:
            return None

    results = prefetch_map(read_or_none, in_order(split), workers)
    return [result[0] for result in results if result is not None]


def _several_kinds(depths: Sequence[Depth | None], value_range: tuple[float, float] | None) -> str:
    by_kind: dict[str, list[Depth | None]] = {}
    for depth in depths:
        by_kind.setdefault(_kind(depth), []).append(depth)
    parts = []
    for kind, members in sorted(by_kind.items()):
        deep = [depth for depth in members if depth is not None]
        between = ""
        if deep:
            low = min(depth.low for depth in deep)
            high = max(depth.high for depth in deep)
            between = f" ({low:g} to {high:g})"
        parts.append(f"{len(members):,} {kind}{between}")
    low, high = value_range or FULL_RANGE
    return (
        f"The images are of several kinds: {', '.join(parts)}. Which values are black and white "
        f"in those with more than 8 bits? Set them with --set value_range=[{low:g},{high:g}], or "
        "convert all images to one kind"
    )
