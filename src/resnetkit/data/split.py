"""One split -> train and val: stratified, f(seed, contents, order). Opens no images."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np

from ..errors import DataError
from ..randomness import derive
from .folder import Split


def split_dataset(
    whole: Split, classes: Sequence[str], digests: Sequence[str], fraction: float, seed: int
) -> dict[str, Split]:
    """Divide a split into ``train`` and ``val``: stratified, f(seed, contents, order of paths).

    Exact duplicates stay together, so no image is in both.

    Args:
        whole: the images to divide.
        classes: names of the classes.
        digests: a hash of each image's contents. Images with equal hashes stay together.
        fraction: share of each class that goes to ``val``, in (0, 1). At least one image of each
            class goes to ``val`` and at least one stays in ``train``.
        seed: seed for the random choice.

    Raises:
        DataError: a class has fewer than two different images.
    """
    duplicates: dict[str, list[int]] = {}
    for i, digest in enumerate(digests):
        duplicates.setdefault(digest, []).append(i)
    groups_by_class: dict[int, list[list[int]]] = {}
    for group in duplicates.values():  # the first image gives the group its class
        groups_by_class.setdefault(int(whole.labels[group[0]]), []).append(group)

    is_validation = np.zeros(len(whole), dtype=bool)
    for label, name in enumerate(classes):
        groups = groups_by_class.get(label, [])
        if not groups:
            raise DataError(
                f"Class {name!r} has no images of its own: each is an exact copy of one in "
                "another class. Move or remove the copies, or remove the class."
            )
        if len(groups) < 2:
            raise DataError(
                f"Class {name!r} has only one image (apart from copies). Two are needed: one for "
                "training and one for validation. Add images or remove the class."
            )
        random.Random(derive(seed, "split", name)).shuffle(groups)
        is_validation[_validation_images(groups, fraction)] = True
    return {
        "train": whole.select(np.flatnonzero(~is_validation)),
        "val": whole.select(np.flatnonzero(is_validation)),
    }


def _validation_images(groups: list[list[int]], fraction: float) -> list[int]:
    """Return the validation images for one class, given its shuffled groups of duplicates."""
    count = sum(map(len, groups))
    wanted = min(max(1, round(fraction * count)), count - 1)
    # A group larger than the whole validation split stays in training.
    fitting = [group for group in groups if len(group) <= wanted]
    taken: list[int] = []
    for group in fitting or [min(groups, key=len)]:
        if len(taken) + len(group) <= wanted or not taken:
            taken += group
        if len(taken) >= wanted:
            break
    return taken
