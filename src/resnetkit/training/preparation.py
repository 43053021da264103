"""The data of a run: read once, checked, split where no validation part is given."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

from ..data.cache import Scan, check_readable, scan
from ..data.dataset import Images
from ..data.decode import DIM, is_dim_colour
from ..data.files import digest
from ..data.folder import Dataset, Split
from ..data.near_duplicates import keep_together, signature
from ..data.split import split_dataset
from ..errors import DataError
from ..prefetch import prefetch_map
from ..progress import bar
from ..randomness import derive
from ..runtime import Runtime
from .recipe import Recipe

LOOKED_AT = 64
"""Training images of which it is looked at how many bits of each colour they use."""

MOST_COMPARED = 100_000
"""Images among which those that look the same are found: a third of a millisecond each."""


@dataclass(frozen=True)
class Prepared:
    """The data of a run, read and split: pictures to train on, pictures to validate on."""

    data: Dataset
    train: Images
    val: Images
    digests: dict[str, list[str]]  # of train and val, in the order of their pictures
    made_split: bool
    skipped: tuple[str, ...]
    conflicting: tuple[str, ...]  # pictures whose exact copies have another label
    notes: tuple[str, ...] = ()


def prepare(data: Dataset, recipe: Recipe, workers: int) -> Prepared:
    """Read every picture of the training and validation parts once, and split where needed.

    Raises:
        DataError: pictures that cannot be read (all of them named), or too few of a class.
    """
    names: list[str] = [name for name in ("train", "all", "val") if name in data.splits]
    evaluated = recipe.preprocessing()
    trained = replace(evaluated, resize_size=recipe.decode_size or evaluated.resize_size)
    scans: dict[str, Scan] = {}
    total = sum(len(data.splits[name]) for name in names)
    with bar("reading pictures", total) as advance:
        for name in names:
            preset = evaluated if name == "val" else trained
            scans[name] = scan(data.splits[name], preset, workers, advance)
    if recipe.on_error == "fail":
        check_readable(scans)
    skipped = tuple(text for found in scans.values() for text in found.unreadable.values())

    splits: dict[str, Split] = {}
    digests: dict[str, list[str]] = {}
    images: dict[str, Images] = {}
    for name, found in scans.items():
        readable = [i for i in range(len(found.digests)) if i not in found.unreadable]
        splits[name] = data.splits[name].select(readable)
        _check_left(data, name, splits[name], found)
        digests[name] = [found.digests[i] for i in readable]
        images[name] = found.images.select(splits[name])
    made_split = "val" not in splits
    if not made_split:
        both = (images["train"], images["val"])
        notes = _shared(splits["train"], splits["val"], digests) + _dim(splits["train"])
        return Prepared(data, *both, digests, False, skipped, _conflicting(splits, digests), notes)

    conflicting = _conflicting(splits, digests)
    whole: str = "all" if "all" in splits else "train"
    together, notes = _keep_together(images[whole], digests[whole], workers)
    notes += _dim(splits[whole])
    divided = split_dataset(splits[whole], data.classes, together, recipe.val_split, recipe.seed)
    by_path = dict(zip(splits[whole].paths, digests[whole], strict=True))
    digests = {name: [by_path[path] for path in split.paths] for name, split in divided.items()}
    rest = {name: split for name, split in data.splits.items() if name != whole}
    data = Dataset(data.root, data.classes, {**divided, **rest}, data.left_out, data.notes)
    train, val = (images[whole].select(divided[name]) for name in ("train", "val"))
    if trained != evaluated:  # validation pictures have the pixels that `evaluate` will give them
        with bar("reading validation pictures", len(val)) as advance:
            val = scan(val.split, evaluated, workers, advance).images
    return Prepared(data, train, val, digests, True, skipped, conflicting, notes)


def _dim(split: Split) -> tuple[str, ...]:
    """Say how many of some training images are much darker than their authors saw them."""
    chosen = range(0, len(split), max(1, len(split) // LOOKED_AT))[:LOOKED_AT]
    named = (".png", ".tif", ".tiff")
    dim = [split.paths[i] for i in chosen if split.paths[i].lower().endswith(named)]
    dim = [path for path in dim if is_dim_colour(split.root / path)]
    if not dim:
        return ()
    return (
        f"{len(dim):,} of {len(chosen):,} training images looked at, such as {dim[0]}, are {DIM}",
    )


def _shared(train: Split, val: Split, digests: dict[str, list[str]]) -> tuple[str, ...]:
    """Say how many validation images are exact copies of training images, with an example."""
    first = dict(zip(reversed(digests["train"]), reversed(range(len(train))), strict=True))
    copies = [i for i, digest_ in enumerate(digests["val"]) if digest_ in first]
    if not copies:
        return ()
    example = f"{val.paths[copies[0]]} = {train.paths[first[digests['val'][copies[0]]]]}"
    return (
        f"{len(copies):,} of the {len(val):,} validation images are training images too "
        f"({example}): the accuracy will be too good. `resnet check` names them",
    )


def _keep_together(
    images: Images, digests: list[str], workers: int
) -> tuple[list[str], tuple[str, ...]]:
    """What a split keeps on one side: copies, and images of a class that look the same."""
    if len(images) > MOST_COMPARED:
        return digests, (
            f"images that look nearly the same were not looked for among {len(images):,} (only "
            f"up to {MOST_COMPARED:,}): some may be in both splits",
        )
    signatures = prefetch_map(lambda i: signature(images[i]), range(len(images)), workers)
    together, count = keep_together(images.split.labels, digests, signatures)
    note = f"{count:,} images look nearly the same as another of their class; they stay on one side"
    return together, (f"{note} of the split",) if count else ()


def _check_left(data: Dataset, name: str, left: Split, found: Scan) -> None:
    """Make sure that what could be read of a part is enough to go on with.

    Raises:
        DataError: nothing, or nothing of a class that is to be trained.
    """
    if not found.unreadable:
        return
    first = next(iter(found.unreadable.values()))
    if not len(left):
        raise DataError(f"Not one picture of {name} can be read; the first: {first}")
    before, now = (split.counts(len(data.classes)) for split in (data.splits[name], left))
    lost = [c for c, had, has in zip(data.classes, before, now, strict=True) if had > has == 0]
    if lost and name != "val":
        raise DataError(
            f"Not one picture of class {', '.join(map(repr, lost))} can be read. Mend or remove "
            f"them, or the class; the first that cannot: {first}"
        )


def _conflicting(splits: dict[str, Split], digests: dict[str, list[str]]) -> tuple[str, ...]:
    labels: dict[str, set[int]] = {}
    for name, split in splits.items():
        for digest_, label in zip(digests[name], split.labels, strict=True):
            labels.setdefault(digest_, set()).add(int(label))
    return tuple(
        split.paths[i]
        for name, split in splits.items()
        for i, digest_ in enumerate(digests[name])
        if len(labels[digest_]) > 1
    )


def identity_of(prepared: Prepared, recipe: Recipe) -> dict[str, Any]:
    """What makes a run this run: a resumed one must have the same."""
    data: dict[str, Any] = {"classes": list(prepared.data.classes)}
    for name, digests in prepared.digests.items():
        data[f"{name} pictures"] = len(digests)
        data[f"{name} contents"] = digest("".join(digests).encode())
    for name, images in (("train", prepared.train), ("val", prepared.val)):
        data[f"{name} labels"] = digest(images.split.labels.astype("<i4").tobytes())
    return {"recipe": recipe.model_dump(mode="json"), "data": data}


def check_equal(identity: dict[str, Any], runtime: Runtime) -> None:
    """Make sure that all ranks are about to do the same: each has read the pictures for itself.

    Raises:
        DataError: another one has other pictures, or another recipe.
    """
    seen = runtime.gather([derive(json.dumps(identity, sort_keys=True)) >> 11])  # 52 bits: exact
    if any(other != seen[0] for other in seen):
        ranks = ", ".join(str(rank) for rank, other in enumerate(seen) if other != seen[0])
        raise DataError(
            f"rank {ranks} has read other pictures or another recipe than rank 0: every machine "
            "needs the same files, and the same command"
        )
