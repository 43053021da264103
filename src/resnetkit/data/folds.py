"""Images -> folds for cross-validation: stratified, copies in one fold, f(seed, contents)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..errors import DataError
from ..randomness import derive
from .folder import Split

TABLE = 1 << 20
"""Maximum number of entries of the groups-by-classes table that are held in memory at once."""


def merge_groups(digests: Sequence[str], together: Sequence[str]) -> list[str]:
    """Return the group of each image: exact and near duplicates are in the same group.

    A group is named after its smallest digest, so names do not depend on the order of the images.

    >>> merge_groups(["b", "a", "c", "b", "d"], ["b", "b", "c", "b", "c"])
    ['a', 'a', 'c', 'a', 'c']

    Args:
        digests: the digest of each image's contents.
        together: for each image, the digest of an image that it belongs with; see
            `near_duplicates.keep_together`, which looks at one class at a time.
    """
    parent = {digest: digest for digest in digests}  # a union-find forest; roots are the smallest

    def find_root(digest: str) -> str:
        while parent[digest] != digest:
            parent[digest] = digest = parent[parent[digest]]
        return digest

    for pair in zip(digests, together, strict=True):
        smaller, larger = sorted(map(find_root, pair))
        parent[larger] = smaller
    return [find_root(digest) for digest in digests]


def assign_folds(
    labels: np.ndarray, groups: Sequence[str], classes: Sequence[str], folds: int, seed: int
) -> np.ndarray:
    """Return the fold of each image, ``(n,)`` int64 in [1, folds].

    Each fold holds about the same share of every class, and no group is in two folds. The result is
    f(seed, groups, labels): the order of the images does not change it. The folds are the same as
    those from scikit-learn's ``StratifiedGroupKFold``, but are found without its table of all
    groups by all classes.

    Args:
        labels: ``(n,)`` indices into ``classes``.
        groups: the group of each image.
        classes: names of the classes.
        folds: number of folds, at least 2.
        seed: seed for the random choices.

    Raises:
        DataError: a class has fewer groups than there are folds.
    """
    names, numbers = np.unique(np.asarray(groups, dtype=object), return_inverse=True)
    _check_enough_groups(labels, numbers, classes, folds)
    # Groups are assigned in order of the spread of their classes; ties are broken by group number,
    # which is random here.
    rng = np.random.Generator(np.random.PCG64(derive(seed, "folds")))
    numbers = rng.permutation(len(names))[numbers]
    order = np.argsort(numbers, kind="stable")
    sizes = np.bincount(numbers)
    fold_of = _assign_groups(labels[order], sizes, classes=len(classes), folds=folds)[numbers]
    _check_trainable(labels, fold_of, classes)
    return fold_of


def _assign_groups(
    labels: np.ndarray, sizes: np.ndarray, *, classes: int, folds: int
) -> np.ndarray:
    """Return the fold of each group, from 1; groups with the largest spread of classes come first.

    Each group goes to the fold that makes the folds' shares of each class most equal. Ties go to
    the fold with the fewest images.

    Args:
        labels: the labels of all images, one group after the other.
        sizes: number of images in each group.
        classes: number of classes.
        folds: number of folds.
    """
    ends = np.cumsum(sizes)

    def count_classes(group: int) -> np.ndarray:
        return np.bincount(labels[ends[group] - sizes[group] : ends[group]], minlength=classes)

    at_once = max(1, TABLE // classes)
    spread = np.concatenate(
        [
            np.std([count_classes(group) for group in range(len(sizes))[start:][:at_once]], axis=1)
            for start in range(0, len(sizes), at_once)
        ]
    )
    totals = np.bincount(labels, minlength=classes)
    fold_of = np.zeros(len(sizes), np.int64)
    counts = np.zeros((folds, classes))
    images = np.zeros(folds, np.int64)
    each = np.arange(folds)
    for group in np.argsort(-spread, kind="stable").tolist():
        own = count_classes(group)
        tried = np.repeat(counts[None], folds, axis=0)  # (fold that gets the group, fold, class)
        tried[each, each] += own
        unequal = np.std(tried / totals, axis=1).mean(1).tolist()
        best = 0
        for fold in range(1, folds):
            is_close = abs(unequal[fold] - unequal[best]) <= 1e-8 + 1e-5 * abs(unequal[best])
            if unequal[fold] < unequal[best] or (is_close and images[fold] < images[best]):
                best = fold
        counts[best] += own
        images[best] += sizes[group]
        fold_of[group] = best + 1
    return fold_of


def split_fold(
    whole: Split, classes: Sequence[str], groups: Sequence[str], fold: tuple[int, int], seed: int
) -> dict[str, Split]:
    """Return ``val``, the images in fold ``k`` of ``K``, and ``train``, those in all other folds.

    Args:
        whole: the images to divide.
        classes: names of the classes.
        groups: the group of each image; see `merge_groups`.
        fold: ``(k, K)``, counted from 1.
        seed: see `assign_folds`.

    Raises:
        DataError: a class has fewer groups than there are folds.
    """
    number, count = fold
    is_validation = assign_folds(whole.labels, groups, classes, count, seed) == number
    return {
        "train": whole.select(np.flatnonzero(~is_validation)),
        "val": whole.select(np.flatnonzero(is_validation)),
    }


def _check_enough_groups(
    labels: np.ndarray, numbers: np.ndarray, classes: Sequence[str], folds: int
) -> None:
    """Check that every class has an image for each fold, not counting copies.

    Raises:
        DataError: a class has too few; the message names the smallest class, and gives the largest
            possible number of folds.
    """
    pairs = np.unique(np.stack([labels, numbers]), axis=1)  # one pair per class in each group
    counts = np.bincount(pairs[0], minlength=len(classes))
    smallest = int(counts.argmin())
    most = int(counts[smallest])
    if most >= folds:
        return
    images = int((labels == smallest).sum())
    copies = f" ({images} with exact and near duplicates, which stay in one fold)"
    option = f"Use --folds {most}, or add" if most > 1 else "Add"
    raise DataError(
        f"Class {classes[smallest]!r} has only {most} different "
        f"{'image' if most == 1 else 'images'}{copies if images > most else ''}, too few for "
        f"{folds} folds: each fold needs one of every class. {option} images to it, or remove the "
        "class"
    )


def _check_trainable(labels: np.ndarray, fold_of: np.ndarray, classes: Sequence[str]) -> None:
    """Check that no fold has all the images of a class, which would leave none to train on.

    Raises:
        DataError: a fold has all images of a class. This happens only if several classes contain
            copies of the same image.
    """
    for label, name in enumerate(classes):
        own = np.unique(fold_of[labels == label])
        if len(own) == 1:
            raise DataError(
                f"All images of class {name!r} are in fold {own[0]}, because they are copies of "
                "images in other classes. `resnet check` lists the copies: remove the wrong ones"
            )
