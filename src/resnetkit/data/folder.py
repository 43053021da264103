"""A directory or a CSV manifest -> paths, classes, splits. Opens no images.

There are three layouts::

    data/train/<class>/...  with val/<class>/... or test/<class>/... next to it, or both
    data/<class>/...                              (a flat folder; training makes the split)
    data.csv with the columns path,label[,split]  (paths relative to the file)
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from ..errors import DataError, did_you_mean, sentences
from . import manifest, shards, tree
from .object_store import ObjectNotFound, list_objects
from .paths import EXTENSIONS, LeftOut, Paths, object_url, spelling

LAYOUTS = (
    "train/<class>/photo.jpg with val/<class>/... next to it, "
    "<class>/photo.jpg, or a CSV file with the columns path,label[,split]"
)
"""The layouts, as listed in error messages."""

UNDECIDED = "undecided"
"""Name of the only split if it is unclear which folders are splits and which are classes."""


@dataclass(frozen=True)
class Split:
    """Images in a dataset: ``paths[i]``, relative to ``root``, has class ``labels[i]``."""

    root: Path
    paths: Sequence[str]
    labels: np.ndarray  # (n,) int32, indices into the dataset's classes

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def is_remote(self) -> bool:
        """Whether the images are in an object store."""
        return object_url(self.root) is not None

    def path(self, index: int) -> Path:
        """Return the path of an image, including ``root``."""
        return self.root / self.paths[index]

    def select(self, indices: Sequence[int] | np.ndarray) -> Split:
        """Return the images at ``indices``, in that order."""
        paths = Paths(self.paths[i] for i in indices)
        return replace(self, paths=paths, labels=self.labels[indices])

    def counts(self, classes: int) -> list[int]:
        """Return the number of images in each class."""
        return [int(n) for n in np.bincount(self.labels, minlength=classes)]


@dataclass(frozen=True)
class Dataset:
    """Classes, and the images in each split. A flat folder has one split, called ``all``.

    ``left_out`` counts the files that were left out, by reason. ``notes`` explain how ambiguous
    folders and files were read.
    """

    root: Path
    classes: tuple[str, ...]
    splits: dict[str, Split]
    left_out: LeftOut = field(default_factory=LeftOut)
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Name of the folder, or of the manifest without its extension; shards record the name."""
        if tree.is_sharded(self.root):
            return shards.open_shards(self.root).manifest.name
        name = os.path.basename(os.path.abspath(self.root))
        return name if self.root.is_dir() else os.path.splitext(name)[0]

    @property
    def remarks(self) -> tuple[str, ...]:
        """Lines that say what was left out, followed by the notes."""
        return (*(f"left out: {line}" for line in self.left_out.lines()), *self.notes)


def pool_validation(dataset: Dataset) -> Dataset:
    """Return the dataset with the images from ``val`` moved to ``train``, if it has both."""
    if not {"train", "val"} <= dataset.splits.keys():
        return dataset
    train = dataset.splits["train"]
    val = dataset.splits["val"]
    paths = Paths(train.paths)
    paths.extend(Paths(val.paths))
    pooled = replace(train, paths=paths, labels=np.concatenate([train.labels, val.labels]))
    others = {name: split for name, split in dataset.splits.items() if name not in ("train", "val")}
    return replace(dataset, splits={"train": pooled, **others})


def read_dataset(
    data: str | os.PathLike[str],
    classes: Sequence[str] | None = None,
    aliases: Mapping[str, int] | None = None,
) -> Dataset:
    """List the images in a folder or manifest.

    Args:
        data: the folder, or the CSV file.
        classes: the classes of a trained network, to list images for it. By default, the classes
            of the training split or of the flat folder, sorted.
        aliases: alternative folder names, with the indices into ``classes`` that they stand for.

    Raises:
        DataError: ``data`` does not exist or has no images; a class is empty; there are fewer than
            two classes; or a class is not in the training split (or in ``classes``).
    """
    return _assemble(survey(data, classes or ()), classes, aliases or {})


@dataclass(frozen=True)
class Survey:
    """The contents of a folder or manifest, whether or not they are valid for training.

    ``splits`` is ``{split: {class: paths relative to base}}``, including classes without images. If
    the layout is ambiguous, ``question`` says so, the only split is `UNDECIDED`, and the folders in
    ``root`` take the place of classes.
    """

    root: Path
    base: Path
    splits: dict[str, dict[str, Paths]]
    left_out: LeftOut
    notes: tuple[str, ...]
    question: str = ""


def survey(data: str | os.PathLike[str], known: Collection[str] = (), ask: bool = True) -> Survey:
    """List the contents of a folder or manifest without checking the classes.

    Args:
        data: the folder, or the CSV file.
        known: the classes of a trained network; a folder with one of these names is a class.
        ask: whether to raise an error if the layout is ambiguous. If False, the result contains
            the question and all images.

    Raises:
        DataError: ``data`` does not exist or has no images, two folders stand for the same split,
            or folders could be either splits or classes.
    """
    root = Path(data)
    url = object_url(root)
    if url is None and not root.exists():
        if root.is_symlink():
            raise DataError(f"{root} is a link to {os.readlink(root)}, which does not exist")
        missing = f"{root} does not exist (searched in {Path.cwd()})."
        raise DataError(sentences(missing, _suggest_path(root)))
    left_out = LeftOut()
    notes: list[str] = []
    question = ""
    if url is None and root.is_file():
        base = manifest.base_folder(root, notes)
        splits = manifest.read_manifest(root, base, left_out=left_out, notes=notes)
    elif tree.is_sharded(root):
        base = root
        packed = shards.open_shards(root) if url is None else _open_remote(url)
        packed.check_sizes()
        splits = packed.splits()
    else:
        base = root
        try:
            splits = tree.read_tree(root, left_out, notes=notes, known=known)
            notes += _notes_on_similar_names(splits)
        except tree.UndecidedLayout as error:
            if ask:
                raise
            left_out = LeftOut()
            notes = []
            question = str(error)
            splits = {UNDECIDED: tree.read_undecided(root, left_out)}
    if not any(paths for by_class in splits.values() for paths in by_class.values()):
        skipped = "; ".join(left_out.lines())
        raise DataError(
            f"No images in {root}{f' (left out: {skipped})' if skipped else ''}. "
            f"{_tar_hint(left_out)}"
            f"Known layouts: {LAYOUTS}. Known formats: {' '.join(sorted(EXTENSIONS))}"
        )
    return Survey(
        root=root,
        base=base,
        splits=splits,
        left_out=left_out,
        notes=tuple(notes),
        question=question,
    )


def _open_remote(url: str) -> shards.Shards:
    """Return the shards under a prefix in an object store.

    Raises:
        DataError: there are no shards; the message says what was found instead.
    """
    try:
        return shards.open_shards(Path(url))
    except ObjectNotFound:
        names = sorted(name for name, _ in list_objects(url))
    found = f"it has {names[0]}, for example" if names else "there is nothing under this prefix"
    raise DataError(
        f"{url} has no {tree.SHARDS} ({found}). Expected a dataset written by "
        f"resnet shard. Check the prefix, or run: resnet shard FOLDER {url}"
    )


def _tar_hint(left_out: LeftOut) -> str:
    """Return a sentence about tar files, if some were left out."""
    if not any(example.endswith(".tar") for example in left_out.examples.values()):
        return ""
    return "Tar files need the index that resnet shard writes. "


def _notes_on_similar_names(splits: dict[str, dict[str, Paths]]) -> list[str]:
    """Return a note on each set of classes whose names differ only in case or number format."""
    same: dict[str, list[str]] = {}
    for name in sorted({name for by_class in splits.values() for name in by_class}):
        same.setdefault(spelling(name), []).append(name)
    return [
        f"{', '.join(map(repr, names))} are separate classes; if they are one, put their images "
        "into one folder"
        for names in same.values()
        if len(names) > 1
    ]


def _assemble(survey: Survey, classes: Sequence[str] | None, aliases: Mapping[str, int]) -> Dataset:
    """Check the classes, and number them."""
    leading = next(split for split in ("train", "all", "val", "test") if split in survey.splits)
    names = tuple(sorted(survey.splits[leading])) if classes is None else tuple(classes)
    if classes is None:
        _check_classes(survey.root, survey.splits[leading])
    index = {**aliases, **{name: i for i, name in enumerate(names)}}
    index = {unicodedata.normalize("NFC", name): i for name, i in index.items()}
    splits = {}
    notes = list(survey.notes)
    for split, by_class in survey.splits.items():
        unknown = sorted(set(by_class) - set(index))
        if unknown:
            owner = "the training images do" if classes is None else "the model does"
            _raise_unknown(survey.root, split, unknown=unknown, names=names, owner=owner)
        present = {index[name] for name, paths in by_class.items() if paths}
        absent = [name for i, name in enumerate(names) if i not in present]
        if absent:
            more = f" and {len(absent) - 10} more" if len(absent) > 10 else ""
            notes.append(f"{split} has no images of: {', '.join(absent[:10])}{more}")
        ordered = sorted(by_class, key=index.__getitem__)
        numbers = np.array([index[name] for name in ordered], np.int32)
        labels = np.repeat(numbers, [len(by_class[name]) for name in ordered])
        paths = Paths()
        for name in ordered:
            paths.extend(by_class.pop(name))  # pop, so that no path is in memory twice
        splits[split] = Split(survey.base, paths, labels=labels)
    return Dataset(
        root=survey.root,
        classes=names,
        splits=splits,
        left_out=survey.left_out,
        notes=tuple(notes),
    )


def _check_classes(root: Path, by_class: Mapping[str, Paths]) -> None:
    """Check that there are at least two classes, none of them empty.

    Raises:
        DataError: a class is empty, or there is only one.
    """
    names = sorted(by_class)
    empty = [name for name in names if not by_class[name]]
    if empty:
        raise DataError(
            f"Class folders without images in {root}: {', '.join(empty)}. Fill or remove them."
        )
    if len(names) < 2:
        advice = inner_folder_advice(root, by_class) or f"Known layouts: {LAYOUTS}"
        raise DataError(
            f"{root} has only one class, {names[0]!r}; a classifier needs two or more. {advice}"
        )


def inner_folder_advice(root: Path, by_class: Mapping[str, Paths]) -> str:
    """Return advice to pass the only folder in ``root`` if it holds several folders, else "".

    Unpacking an archive often wraps a dataset in an extra folder.
    """
    if len(by_class) != 1 or not root.is_dir():
        return ""
    (paths,) = by_class.values()
    parents = {tuple(path.split("/")[:2]) for path in paths if path.count("/") > 1}
    folder = next(iter(parents), ("",))[0]
    if len(parents) < 2 or any(path.count("/") == 1 for path in paths):
        return ""
    inside = ", ".join(repr(name) for _, name in sorted(parents)[:5])
    more = ", ..." if len(parents) > 5 else ""
    advice = f"To use these as splits or classes, pass {root / folder}"
    return f"It holds the folders {inside}{more}. {advice}"


def _raise_unknown(
    root: Path, split: str, *, unknown: list[str], names: tuple[str, ...], owner: str
) -> None:
    def with_suggestion(name: str) -> str:
        question = did_you_mean(name, names)
        return f"{name!r} (d{question[1:]})" if question else repr(name)

    raise DataError(
        f"{root}: {split} has classes that {owner} not have: "
        f"{', '.join(map(with_suggestion, unknown))}. Known: {', '.join(names[:20])}"
        f"{', ...' if len(names) > 20 else ''}. Rename or remove those folders."
    )


def _suggest_path(path: Path) -> str:
    if not path.parent.is_dir():
        return f"{path.parent} does not exist either."
    names = [entry.name for entry in os.scandir(path.parent)]
    return did_you_mean(path.name, names)
