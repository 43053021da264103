"""The data of a run: read once, checked, split where no validation part is given."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

from ..ahead import map_ahead
from ..data.cache import Pictures, Scan, check_readable, digest, scan
from ..data.decode import DIM, is_dim_colour
from ..data.folder import DataSet, Part, split
from ..data.likeness import keep_together, look
from ..errors import DataError
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

    data: DataSet
    train: Pictures
    val: Pictures
    digests: dict[str, list[str]]  # of train and val, in the order of their pictures
    made_split: bool
    skipped: tuple[str, ...]
    conflicting: tuple[str, ...]  # pictures whose exact copies have another label
    notes: tuple[str, ...] = ()


def prepare(data: DataSet, recipe: Recipe, workers: int) -> Prepared:
    """Read every picture of the training and validation parts once, and split where needed.

    Raises:
        DataError: pictures that cannot be read (all of them named), or too few of a class.
    """
    names: list[str] = [name for name in ("train", "all", "val") if name in data.parts]
    evaluated = recipe.preprocessing()
    trained = replace(evaluated, resize_size=recipe.decode_size or evaluated.resize_size)
    scans: dict[str, Scan] = {}
    total = sum(len(data.parts[name]) for name in names)
    with bar("reading pictures", total) as advance:
        for name in names:
            preset = evaluated if name == "val" else trained
            scans[name] = scan(data.parts[name], preset, workers, advance)
    if recipe.on_error == "fail":
        check_readable(scans)
    skipped = tuple(text for found in scans.values() for text in found.unreadable.values())

    parts: dict[str, Part] = {}
    digests: dict[str, list[str]] = {}
    pictures: dict[str, Pictures] = {}
    for name, found in scans.items():
        readable = [i for i in range(len(found.digests)) if i not in found.unreadable]
        parts[name] = data.parts[name].select(readable)
        _check_left(data, name, parts[name], found)
        digests[name] = [found.digests[i] for i in readable]
        pictures[name] = found.pictures.select(parts[name])
    made_split = "val" not in parts
    if not made_split:
        both = (pictures["train"], pictures["val"])
        notes = _shared(parts["train"], parts["val"], digests) + _dim(parts["train"])
        return Prepared(data, *both, digests, False, skipped, _conflicting(parts, digests), notes)

    conflicting = _conflicting(parts, digests)
    whole: str = "all" if "all" in parts else "train"
    together, notes = _keep_together(pictures[whole], digests[whole], workers)
    notes += _dim(parts[whole])
    divided = split(parts[whole], data.classes, together, recipe.val_split, recipe.seed)
    by_path = dict(zip(parts[whole].paths, digests[whole], strict=True))
    digests = {name: [by_path[path] for path in part.paths] for name, part in divided.items()}
    rest = {name: part for name, part in data.parts.items() if name != whole}
    data = DataSet(data.root, data.classes, {**divided, **rest}, data.left_out, data.notes)
    train, val = (pictures[whole].select(divided[name]) for name in ("train", "val"))
    if trained != evaluated:  # validation pictures have the pixels that `evaluate` will give them
        with bar("reading validation pictures", len(val)) as advance:
            val = scan(val.part, evaluated, workers, advance).pictures
    return Prepared(data, train, val, digests, True, skipped, conflicting, notes)


def _dim(part: Part) -> tuple[str, ...]:
    """Say how many of some training images are much darker than their authors saw them."""
    chosen = range(0, len(part), max(1, len(part) // LOOKED_AT))[:LOOKED_AT]
    named = (".png", ".tif", ".tiff")
    dim = [part.paths[i] for i in chosen if part.paths[i].lower().endswith(named)]
    dim = [path for path in dim if is_dim_colour(part.root / path)]
    if not dim:
        return ()
    return (
        f"{len(dim):,} of {len(chosen):,} training images looked at, such as {dim[0]}, are {DIM}",
    )


def _shared(train: Part, val: Part, digests: dict[str, list[str]]) -> tuple[str, ...]:
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
    pictures: Pictures, digests: list[str], workers: int
) -> tuple[list[str], tuple[str, ...]]:
    """What a split keeps on one side: copies, and images of a class that look the same."""
    if len(pictures) > MOST_COMPARED:
        return digests, (
            f"images that look nearly the same were not looked for among {len(pictures):,} (only "
            f"up to {MOST_COMPARED:,}): some may be in both splits",
        )
    looks = map_ahead(lambda i: look(pictures[i]), range(len(pictures)), workers)
    together, count = keep_together(pictures.part.labels, digests, looks)
    note = f"{count:,} images look nearly the same as another of their class; they stay on one side"
    return together, (f"{note} of the split",) if count else ()


def _check_left(data: DataSet, name: str, left: Part, found: Scan) -> None:
    """Make sure that what could be read of a part is enough to go on with.

    Raises:
        DataError: nothing, or nothing of a class that is to be trained.
    """
    if not found.unreadable:
        return
    first = next(iter(found.unreadable.values()))
    if not len(left):
        raise DataError(f"Not one picture of {name} can be read; the first: {first}")
    before, now = (part.counts(len(data.classes)) for part in (data.parts[name], left))
    lost = [c for c, had, has in zip(data.classes, before, now, strict=True) if had > has == 0]
    if lost and name != "val":
        raise DataError(
            f"Not one picture of class {', '.join(map(repr, lost))} can be read. Mend or remove "
            f"them, or the class; the first that cannot: {first}"
        )


def _conflicting(parts: dict[str, Part], digests: dict[str, list[str]]) -> tuple[str, ...]:
    labels: dict[str, set[int]] = {}
    for name, part in parts.items():
        for digest_, label in zip(digests[name], part.labels, strict=True):
            labels.setdefault(digest_, set()).add(int(label))
    return tuple(
        part.paths[i]
        for name, part in parts.items()
        for i, digest_ in enumerate(digests[name])
        if len(labels[digest_]) > 1
    )


def identity_of(prepared: Prepared, recipe: Recipe) -> dict[str, Any]:
    """What makes a run this run: a resumed one must have the same."""
    data: dict[str, Any] = {"classes": list(prepared.data.classes)}
    for name, digests in prepared.digests.items():
        data[f"{name} pictures"] = len(digests)
        data[f"{name} contents"] = digest("".join(digests).encode())
    for name, pictures in (("train", prepared.train), ("val", prepared.val)):
        data[f"{name} labels"] = digest(pictures.part.labels.astype("<i4").tobytes())
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
