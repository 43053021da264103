"""A directory or a CSV manifest -> samples, classes, splits. Opens no picture.

Three layouts are known::

    data/train/<class>/...  with val/<class>/... and test/<class>/... beside it, or one of them
    data/<class>/...                                       (one flat folder, split on the way)
    data.csv with the columns path,label[,split]           (paths relative to the file)
"""

from __future__ import annotations

import difflib
import os
import random
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from ..errors import DataError
from ..randomness import derive
from . import manifest, tree
from .paths import EXTENSIONS, LeftOut, Paths, spelling

LAYOUTS = (
    "train/<class>/picture.jpg with val/<class>/... beside it, "
    "<class>/picture.jpg, or a CSV file with the columns path,label[,split]"
)


@dataclass(frozen=True)
class Split:
    """Some of the pictures: ``paths[i]``, relative to ``root``, has class ``labels[i]``."""

    root: Path
    paths: Sequence[str]
    labels: np.ndarray  # (n,) int32, indices into the data set's classes

    def __len__(self) -> int:
        return len(self.paths)

    def path(self, index: int) -> Path:
        return self.root / self.paths[index]

    def select(self, indices: Sequence[int] | np.ndarray) -> Split:
        """The pictures at ``indices``, in that order."""
        chosen = Paths(self.paths[i] for i in indices)
        return replace(self, paths=chosen, labels=self.labels[indices])

    def counts(self, classes: int) -> list[int]:
        """Pictures in each class."""
        return [int(n) for n in np.bincount(self.labels, minlength=classes)]


@dataclass(frozen=True)
class Dataset:
    """Classes, and the pictures of each split. A flat folder has one split, called ``all``.

    ``left_out`` counts the files that were not taken, by reason; ``notes`` say what was decided
    where a folder or file can be read in more than one way.
    """

    root: Path
    classes: tuple[str, ...]
    splits: dict[str, Split]
    left_out: LeftOut = field(default_factory=LeftOut)
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        name = os.path.basename(os.path.abspath(self.root))
        return name if self.root.is_dir() else os.path.splitext(name)[0]

    @property
    def remarks(self) -> tuple[str, ...]:
        """What was left out, and the notes: a line each."""
        return (*(f"left out: {line}" for line in self.left_out.lines()), *self.notes)


def read(
    data: str | os.PathLike[str],
    classes: Sequence[str] | None = None,
    aliases: Mapping[str, int] | None = None,
) -> Dataset:
    """List what is in a folder or manifest.

    Args:
        data: the folder, or the CSV file.
        classes: those of a trained network, to list pictures for it; by default the classes are
            those of the training split (of the folder, where it is flat), sorted.
        aliases: what else folders may be called, and which of ``classes`` that is.

    Raises:
        DataError: nothing there, no picture, an empty class, fewer than two classes, or a class
            that the training split (or ``classes``) does not have.
    """
    return _assemble(survey(data, classes or ()), classes, aliases or {})


@dataclass(frozen=True)
class Survey:
    """What lies in a folder or manifest, whether or not one can train on it.

    ``splits`` is ``{split: {class: paths relative to base}}``, also of classes without a picture.
    Where ``question`` says that the layout can be read in two ways, the only split is `UNDECIDED`,
    and folders stand for classes.
    """

    root: Path
    base: Path
    splits: dict[str, dict[str, Paths]]
    left_out: LeftOut
    notes: tuple[str, ...]
    question: str = ""


UNDECIDED = "undecided"


def survey(data: str | os.PathLike[str], known: Collection[str] = (), ask: bool = True) -> Survey:
    """List what is there without a judgement on its classes.

    Args:
        known: the classes of a trained network, which decide what a folder of such a name is.
        ask: raise a question about the layout; if False, the result has it, and all images.

    Raises:
        DataError: nothing there, no picture, splits that mean the same, or folders that could be
            splits as well as classes.
    """
    root = Path(data)
    if not root.exists():
        looked = f"{root} does not exist (looked from {Path.cwd()}). {_nearest(root)}"
        raise DataError(looked.rstrip())
    left_out, notes, question = LeftOut(), list[str](), ""
    if root.is_file():
        base = manifest.base(root, notes)
        found = manifest.read(root, base, left_out, notes)
    else:
        base = root
        try:
            found = tree.read(root, left_out, notes, known)
            notes += _notes_on_twins(found)
        except tree.UndecidedLayout as error:
            if ask:
                raise
            left_out, notes, question = LeftOut(), [], str(error)
            found = {UNDECIDED: tree.read_undecided(root, left_out)}
    if not any(paths for split in found.values() for paths in split.values()):
        skipped = "; ".join(left_out.lines())
        raise DataError(
            f"No pictures in {root}{f' (left out: {skipped})' if skipped else ''}. "
            f"Known layouts: {LAYOUTS}. Known formats: {' '.join(sorted(EXTENSIONS))}"
        )
    return Survey(root, base, found, left_out, tuple(notes), question)


def _notes_on_twins(found: dict[str, dict[str, Paths]]) -> list[str]:
    """Class folders whose names differ in case or in the writing of a number only."""
    same: dict[str, list[str]] = {}
    for name in sorted({name for by_class in found.values() for name in by_class}):
        same.setdefault(spelling(name), []).append(name)
    return [
        f"{', '.join(map(repr, names))} are different classes; if they are one, put their images "
        "into one folder"
        for names in same.values()
        if len(names) > 1
    ]


def _assemble(
    surveyed: Survey, classes: Sequence[str] | None, aliases: Mapping[str, int]
) -> Dataset:
    root, found = surveyed.root, surveyed.splits
    leading = next(split for split in ("train", "all", "val", "test") if split in found)
    own = sorted(found[leading])
    if classes is None:
        empty = [name for name in own if not found[leading][name]]
        if empty:
            raise DataError(
                f"Class folders without a picture in {root}: {', '.join(empty)}. "
                "Fill them or remove them."
            )
        if len(own) < 2:
            raise DataError(
                f"{root} has only one class, {own[0]!r}; a classifier needs two or more. "
                f"Known layouts: {LAYOUTS}"
            )
    names = tuple(own if classes is None else classes)
    index = {**aliases, **{name: i for i, name in enumerate(names)}}
    index = {unicodedata.normalize("NFC", name): i for name, i in index.items()}
    splits, notes = {}, list(surveyed.notes)
    for split, by_class in found.items():
        unknown = sorted(set(by_class) - set(index))
        if unknown:
            _raise_unknown(root, split, unknown, names)
        there = {index[name] for name, paths in by_class.items() if paths}
        absent = [name for i, name in enumerate(names) if i not in there]
        if absent:
            more = f" and {len(absent) - 10} more" if len(absent) > 10 else ""
            notes.append(f"{split} has no pictures of: {', '.join(absent[:10])}{more}")
        present = sorted(by_class, key=index.__getitem__)
        numbers = np.array([index[name] for name in present], np.int32)
        labels = np.repeat(numbers, [len(by_class[name]) for name in present])
        paths = Paths()
        for name in present:
            paths.extend(by_class.pop(name))  # one after the other, so that none is there twice
        splits[split] = Split(surveyed.base, paths, labels)
    return Dataset(root, names, splits, surveyed.left_out, tuple(notes))


def _raise_unknown(root: Path, split: str, unknown: list[str], names: tuple[str, ...]) -> None:
    def suggestion(name: str) -> str:
        close = difflib.get_close_matches(name, names, n=1)
        return f"{name!r} (did you mean {close[0]!r}?)" if close else repr(name)

    raise DataError(
        f"{root}: {split} has classes that the training pictures have not: "
        f"{', '.join(map(suggestion, unknown))}. Known: {', '.join(names[:20])}"
        f"{', ...' if len(names) > 20 else ''}. Rename or remove those folders."
    )


def split_dataset(
    whole: Split, classes: Sequence[str], digests: Sequence[str], fraction: float, seed: int
) -> dict[str, Split]:
    """Split a part into ``train`` and ``val``: stratified, f(seed, contents).

    Exact duplicates stay together, so that no picture is in both parts.

    Args:
        digests: a hash of the contents of each picture of ``whole``; the same for pictures that
            are to stay together.
        fraction: of each class that goes to ``val``, in (0, 1); at least one picture does, and
            at least one stays.

    Raises:
        DataError: a class has fewer than two different pictures.
    """
    groups: dict[str, list[int]] = {}  # duplicates, under the class of the first of them
    for i, digest in enumerate(digests):
        groups.setdefault(digest, []).append(i)
    by_class: dict[int, list[list[int]]] = {}
    for members in groups.values():
        by_class.setdefault(int(whole.labels[members[0]]), []).append(members)

    validation: list[int] = []
    for label, name in enumerate(classes):
        here = by_class.get(label, [])
        if not here:
            raise DataError(
                f"Class {name!r} has no picture of its own: each is an exact copy of one in "
                "another class. Sort them out or remove the class."
            )
        if len(here) < 2:
            raise DataError(
                f"Class {name!r} has only one picture (apart from copies); two are needed, one "
                "for training and one for validation. Add pictures or remove the class."
            )
        random.Random(derive(seed, "split", name)).shuffle(here)
        wanted = min(max(1, round(fraction * sum(map(len, here)))), sum(map(len, here)) - 1)
        taken: list[int] = []
        # A group larger than the whole validation split stays in training.
        for members in [m for m in here if len(m) <= wanted] or [min(here, key=len)]:
            if len(taken) + len(members) <= wanted or not taken:
                taken += members
            if len(taken) >= wanted:
                break
        validation += taken
    chosen = np.zeros(len(whole), dtype=bool)
    chosen[validation] = True
    return {
        "train": whole.select(np.flatnonzero(~chosen)),
        "val": whole.select(np.flatnonzero(chosen)),
    }


def _nearest(path: Path) -> str:
    if not path.parent.is_dir():
        return f"{path.parent} does not exist either."
    names = [entry.name for entry in os.scandir(path.parent)]
    close = difflib.get_close_matches(path.name, names, n=1)
    return f"Did you mean {path.parent / close[0]}?" if close else ""
