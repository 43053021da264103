"""The images of a run: read once, checked, and split if there is no validation split."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from ..data.cache import Scan, check_readable, scan
from ..data.corrections import Corrections
from ..data.dataset import Images
from ..data.files import digest
from ..data.folder import Dataset, Split, pool_validation
from ..data.folds import merge_groups, split_fold
from ..data.near_duplicates import keep_together, signature
from ..data.split import split_dataset
from ..errors import DataError
from ..prefetch import prefetch_map
from ..progress import bar
from .recipe import Recipe

MAX_COMPARED = 100_000
"""Maximum number of images searched for near duplicates, at a third of a millisecond each."""


@dataclass(frozen=True)
class PreparedData:
    """The images of a run, read and split.

    Args:
        dataset: the classes and all splits.
        train: the images to train on.
        val: the images to validate on; empty if ``val_split`` is 0.
        digests: the digest of each image in ``train`` and ``val``, in the same order.
        made_split: whether `prepare` made the validation split.
        skipped: messages about images that were skipped because they cannot be read.
        conflicting: paths of images with an exact copy in another class.
        notes: other remarks for the user.
        corrections: the changes that `correct` made; None if there are none.
    """

    dataset: Dataset
    train: Images
    val: Images
    digests: dict[str, list[str]]
    made_split: bool
    skipped: tuple[str, ...]
    conflicting: tuple[str, ...]
    notes: tuple[str, ...] = ()
    groups: dict[str, str] = field(default_factory=dict)
    """The group of each path, if the recipe sets a fold; see `folds.merge_groups`."""
    corrections: Corrections | None = None


def prepare(dataset: Dataset, recipe: Recipe, workers: int) -> PreparedData:
    """Read every image of the training and validation splits once, and make the split if needed.

    If ``fold`` is set or ``val_split`` is 0, the training and validation splits are pooled, so the
    run also trains on images from the dataset's validation split.

    Raises:
        DataError: images cannot be read (the message names them all), or a class has too few.
    """
    if recipe.fold is not None or not recipe.val_split:
        dataset = pool_validation(dataset)
    names: list[str] = [name for name in ("train", "all", "val") if name in dataset.splits]
    val_preset = recipe.preprocessing()
    train_preset = replace(val_preset, resize_size=recipe.decode_size or val_preset.resize_size)
    scans: dict[str, Scan] = {}
    total = sum(len(dataset.splits[name]) for name in names)
    with bar("reading images", total) as advance:
        for name in names:
            preset = val_preset if name == "val" else train_preset
            scans[name] = scan(dataset.splits[name], preset, workers, advance)
    if recipe.on_error == "fail":
        check_readable(scans)
    skipped = tuple(text for found in scans.values() for text in found.unreadable.values())

    splits: dict[str, Split] = {}
    digests: dict[str, list[str]] = {}
    images: dict[str, Images] = {}
    for name, found in scans.items():
        readable = [i for i in range(len(found.digests)) if i not in found.unreadable]
        splits[name] = dataset.splits[name].select(readable)
        _check_enough_left(dataset, name, splits[name], found=found)
        digests[name] = [found.digests[i] for i in readable]
        images[name] = found.images.select(splits[name])
    conflicting = _conflicting_paths(splits, digests)
    if "val" in splits:
        return PreparedData(
            dataset=dataset,
            train=images["train"],
            val=images["val"],
            digests=digests,
            made_split=False,
            skipped=skipped,
            conflicting=conflicting,
            notes=_note_shared_images(splits["train"], splits["val"], digests),
        )

    whole: str = "all" if "all" in splits else "train"
    if not recipe.val_split:
        nothing = splits[whole].select([])
        return PreparedData(
            dataset=replace(dataset, splits={**dataset.splits, whole: splits[whole]}),
            train=images[whole],
            val=Images(nothing, val_preset),
            digests={"train": digests[whole]},
            made_split=False,
            skipped=skipped,
            conflicting=conflicting,
        )
    groups, notes = _group_similar_images(
        images[whole], digests[whole], workers, largest=0.5 if recipe.fold is None else 1.0
    )
    group_of = {}
    if recipe.fold is None:
        made = split_dataset(splits[whole], dataset.classes, groups, recipe.val_split, recipe.seed)
    else:
        groups = merge_groups(digests[whole], groups)
        group_of = dict(zip(splits[whole].paths, groups, strict=True))
        made = split_fold(splits[whole], dataset.classes, groups, recipe.fold, recipe.seed)
    digest_of = dict(zip(splits[whole].paths, digests[whole], strict=True))
    digests = {name: [digest_of[path] for path in split.paths] for name, split in made.items()}
    others = {name: split for name, split in dataset.splits.items() if name != whole}
    dataset = Dataset(
        dataset.root, dataset.classes, {**made, **others}, dataset.left_out, dataset.notes
    )
    train = images[whole].select(made["train"])
    val = images[whole].select(made["val"])
    if train_preset != val_preset:  # validation images get the pixels that `evaluate` will read
        with bar("reading validation images", len(val)) as advance:
            val = scan(val.split, val_preset, workers, advance).images
    return PreparedData(
        dataset=dataset,
        train=train,
        val=val,
        digests=digests,
        made_split=True,
        skipped=skipped,
        conflicting=conflicting,
        notes=notes,
        groups=group_of,
    )


def correct(prepared: PreparedData, corrections: Corrections) -> PreparedData:
    """Relabel and drop images.

    The split has already been made, so runs with and without corrections validate on the same
    images, except for dropped ones.

    Raises:
        DataError: a class has no training image left, or no validation image is left.
    """
    dataset = prepared.dataset
    splits = {name: corrections.apply(split) for name, split in dataset.splits.items()}
    train = prepared.train.select(corrections.apply(prepared.train.split))
    val = prepared.val.select(corrections.apply(prepared.val.split))
    counts = train.split.counts(len(dataset.classes))
    empty = [name for name, count in zip(dataset.classes, counts, strict=True) if not count]
    if empty:
        raise DataError(
            f"With {corrections.file}, no training image of class {', '.join(map(repr, empty))} is "
            "left. Keep some of its images, or remove the class from the data"
        )
    if len(prepared.val) and not len(val):
        raise DataError(f"With {corrections.file}, no validation image is left. Keep some of them")
    after = {"train": train.split, "val": val.split}
    before = {"train": prepared.train.split, "val": prepared.val.split}
    digests = {
        name: [
            image_digest
            for path, image_digest in zip(split.paths, prepared.digests[name], strict=True)
            if path not in corrections.dropped
        ]
        for name, split in before.items()
        if name in prepared.digests
    }
    return replace(
        prepared,
        dataset=replace(dataset, splits=splits),
        train=train,
        val=val,
        digests=digests,
        conflicting=_conflicting_paths({name: after[name] for name in digests}, digests),
        corrections=corrections,
    )


def _note_shared_images(train: Split, val: Split, digests: dict[str, list[str]]) -> tuple[str, ...]:
    """Return a note if validation images are exact copies of training images."""
    first_index = dict(zip(reversed(digests["train"]), reversed(range(len(train))), strict=True))
    copies = [i for i, image_digest in enumerate(digests["val"]) if image_digest in first_index]
    if not copies:
        return ()
    original = first_index[digests["val"][copies[0]]]
    example = f"{val.paths[copies[0]]} = {train.paths[original]}"
    return (
        f"{len(copies):,} of the {len(val):,} validation images are also training images "
        f"({example}), so the measured accuracy will be too high. `resnet check` lists them",
    )


def _group_similar_images(
    images: Images, digests: list[str], workers: int, *, largest: float
) -> tuple[list[str], tuple[str, ...]]:
    """Return the group of each image, and notes. Splitting never divides a group.

    A group holds exact copies, and images of one class that look nearly the same. See
    `keep_together` for ``largest``.
    """
    if len(images) > MAX_COMPARED:
        return digests, (
            f"with {len(images):,} images (more than {MAX_COMPARED:,}), near duplicates were not "
            "searched for: some may be in both splits",
        )
    fingerprints = prefetch_map(lambda i: signature(images[i]), range(len(images)), workers)
    groups, count = keep_together(images.split.labels, digests, fingerprints, largest=largest)
    if not count:
        return groups, ()
    return groups, (
        f"{count:,} images look nearly the same as another image of their class; such images stay "
        "in one split",
    )


def _check_enough_left(dataset: Dataset, name: str, readable: Split, *, found: Scan) -> None:
    """Check that a split has enough readable images to continue.

    Raises:
        DataError: no image of the split, or of a class to train on, can be read.
    """
    if not found.unreadable:
        return
    first = next(iter(found.unreadable.values()))
    if not len(readable):
        raise DataError(f"No image in {name} can be read. The first error: {first}")
    counts_before = dataset.splits[name].counts(len(dataset.classes))
    counts_now = readable.counts(len(dataset.classes))
    lost = [
        class_name
        for class_name, before, now in zip(dataset.classes, counts_before, counts_now, strict=True)
        if before > now == 0
    ]
    if lost and name != "val":
        raise DataError(
            f"No image of class {', '.join(map(repr, lost))} can be read. Repair or remove the "
            f"images, or remove the class. The first error: {first}"
        )


def _conflicting_paths(splits: dict[str, Split], digests: dict[str, list[str]]) -> tuple[str, ...]:
    """Return the paths of images with an exact copy in another class."""
    labels: dict[str, set[int]] = {}
    for name, split in splits.items():
        for image_digest, label in zip(digests[name], split.labels, strict=True):
            labels.setdefault(image_digest, set()).add(int(label))
    return tuple(
        split.paths[i]
        for name, split in splits.items()
        for i, image_digest in enumerate(digests[name])
        if len(labels[image_digest]) > 1
    )


def run_identity(prepared: PreparedData, recipe: Recipe) -> dict[str, Any]:
    """Return the values that identify a run; a run can only be resumed with the same values."""
    data: dict[str, Any] = {"classes": list(prepared.dataset.classes)}
    for name, digests in prepared.digests.items():
        data[f"{name} pictures"] = len(digests)
        data[f"{name} contents"] = digest("".join(digests).encode())
    for name, images in (("train", prepared.train), ("val", prepared.val)):
        data[f"{name} labels"] = digest(images.split.labels.astype("<i4").tobytes())
    corrections = prepared.corrections
    data["corrections"] = "none" if corrections is None else corrections.identity()
    return {"recipe": recipe.model_dump(mode="json"), "data": data}
