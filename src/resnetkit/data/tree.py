"""A folder with a sub-folder a class -> paths. Opens no picture."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Set
from pathlib import Path

from ..errors import DataError
from ..storage import MARKER
from .paths import SPLITS, LeftOut, Paths, affixed_split, is_image, is_system, label

RUNS = "folder(s) of a run, whose pictures are figures"
OUTPUTS = "folder(s) that resnet wrote"
SYSTEM = "hidden or system file(s)"
OTHER = "file(s) of another kind"
LOOSE = "picture(s) outside a class folder"
LOOP = "link(s) to a folder around them"
BESIDE = "folder(s) beside the splits"


class UndecidedLayout(DataError):
    """Folders that can be read in two ways: a question that names both."""


def read(
    root: Path, left_out: LeftOut, notes: list[str], known: Collection[str] = ()
) -> dict[str, dict[str, Paths]]:
    """{split: {class: paths relative to root, sorted}}; ``all`` where there are no splits.

    Args:
        left_out: counts what is not taken, by reason.
        notes: gets a line for everything that could be read in another way too.
        known: the classes of a trained network: folders of these names are classes.

    Raises:
        UndecidedLayout: two folders that mean the same split or class, one split inside another,
            or folders that could be splits as well as classes.
    """
    folders = _folders(root, left_out)
    splits = _find_splits(root, folders, notes, known)
    if not splits:
        found = {"all": _read_classes(root, root, "", left_out)}
        if not set(found["all"]) <= set(known):
            _refuse_same_folders(root, found["all"])
        return found
    for name in folders:
        if name not in splits:
            left_out.add(BESIDE, name)
    return {
        split: _read_classes(root, *_descend(root, name), left_out)
        for name, split in splits.items()
    }


def read_undecided(root: Path, left_out: LeftOut) -> dict[str, Paths]:
    """{folder in ``root``: paths relative to root, sorted} of all pictures, without a judgement on
    what the folders mean. Those in no folder are under ``.``."""
    found: dict[str, Paths] = {}
    for path in sorted(_walk(str(root), ".", left_out, set())):
        folder, _, inside = path.removeprefix("./").partition("/")
        found.setdefault(folder if inside else ".", Paths()).append(path.removeprefix("./"))
    return found


def _folders(folder: Path, left_out: LeftOut) -> list[str]:
    """Names of the folders that may be classes or splits, sorted; the rest is counted."""
    names = []
    for entry in entries(folder):
        if is_system(entry.name):
            left_out.add(SYSTEM, entry.name)
        elif leads_to(entry.is_dir):
            names.append(entry.name)
        else:
            left_out.add(LOOSE if is_image(entry.name) else OTHER, entry.name)
    return names


def _find_splits(
    root: Path, folders: list[str], notes: list[str], known: Collection[str]
) -> dict[str, str]:
    """{folder: split}, empty where the folders are classes.

    Names alone decide nothing: `train` may be a class, beside `bus` and `car`. The folders are
    splits where nothing else is there, or where two of them or more hold class folders.
    """
    named = _named_splits(root, folders)
    if not named:
        return {}
    labelled = [name for name in named if _is_labelled(_descend(root, name)[0])]
    others = [name for name in folders if name not in named and _holds_images(root / name)]
    if others and {label(name) for name in named} <= set(known):
        return {}
    loose = [name for name in named if name not in labelled and _holds_images(root / name)]
    certain = len({named[name] for name in labelled}) > 1
    if (others and not certain) or (loose and not labelled):
        _ask(root, list(named), others)
    splits = {name: named[name] for name in labelled}
    twice = [split for split, count in Counter(splits.values()).items() if count > 1]
    if twice:
        same = [name for name, split in splits.items() if split in twice]
        raise UndecidedLayout(
            f"{root} has {' and '.join(same)}, which mean the same; keep one of them"
        )
    for name in named:
        if labelled and name not in labelled:
            what = "has images, but no class folders" if name in loose else "has no images"
            made = " (a validation split is made instead)" if named[name] == "val" else ""
            notes.append(f"{name} {what}, so it is not used{made}")
    unusual = [f"{name} as {split}" for name, split in splits.items() if name.lower() not in _USUAL]
    if unusual:
        notes.append(
            f"taken for splits, not classes: {', '.join(unusual)}; if they are classes, put them "
            f"into {root / 'train'}"
        )
    return splits


_USUAL = ("train", "val", "valid", "validation", "test")


def _named_splits(root: Path, folders: list[str]) -> dict[str, str]:
    """{folder: split} of the folders that are called like splits: ``train``, ``Testing``; or, with
    the same words around, ``seg_train`` and ``seg_test``."""
    named = {name: SPLITS[name.lower()] for name in folders if name.lower() in SPLITS}
    if "train" in named.values():
        return named
    around: dict[tuple[str, str], dict[str, str]] = {}
    for name in folders:
        found = affixed_split(name)
        if found is not None:
            around.setdefault(found[1], {})[name] = found[0]
    sets = [s for s in around.values() if "train" in s.values() and len(set(s.values())) > 1]
    if len(sets) > 1:
        _ask(root, [name for group in sets for name in group], [])
    return sets[0] if sets else named


def _ask(root: Path, named: list[str], others: list[str]) -> None:
    beside = f", beside {_some(others)}" if others else ""
    raise UndecidedLayout(
        f"{root}: is {_some(named, ' or ')}{beside} a split or a class? If a split, put a folder "
        f"for each class into it, and the other class folders into {root / 'train'}. If a class, "
        f"put all class folders, it too, into {root / 'train'}. If neither, move it out of "
        f"{root}. A CSV file with the columns path,label[,split] decides it as well."
    )


def _some(names: list[str], word: str = ", ") -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return word.join(map(repr, names[:5])) + more


def _refuse_same_folders(root: Path, classes: dict[str, Paths]) -> None:
    """Two classes or more that hold the same folders, and nothing else, are perhaps no classes."""
    inside: set[str] | None = None
    for paths in classes.values():
        here = set()
        for path in paths:
            pieces = path.split("/", 2)
            if len(pieces) < 3:
                return
            here.add(pieces[1])
        if len(here) < 2 or (inside is not None and here != inside):
            return
        inside = here
    if inside is not None and len(classes) > 1:
        raise UndecidedLayout(
            f"{root}: {_some(sorted(classes))} hold the same folders, {_some(sorted(inside))}: "
            f"which are the classes? If the outer ones, put them into {root / 'train'}. If the "
            "inner ones, name the outer ones train, val and test, or put the images of each class "
            "together. A CSV file with the columns path,label[,split] decides it as well."
        )


def _descend(root: Path, name: str) -> tuple[Path, str]:
    """The folder of a split, and what stands before the paths in it: in ``seg_train/seg_train/`` it
    is the inner one."""
    folder, prefix = root / name, f"{name}/"
    inside = [entry for entry in entries(folder) if not is_system(entry.name)]
    if len(inside) == 1 and inside[0].name == name and leads_to(inside[0].is_dir):
        return folder / name, f"{prefix}{name}/"
    return folder, prefix


def _is_labelled(folder: Path) -> bool:
    """Whether a folder holds class folders with pictures."""
    unused = LeftOut()
    return any(_holds_images(folder / name) for name in _folders(folder, unused))


def _holds_images(folder: Path) -> bool:
    return next(_walk(str(folder), "", LeftOut(), set()), None) is not None


def _read_classes(root: Path, folder: Path, prefix: str, left_out: LeftOut) -> dict[str, Paths]:
    classes: dict[str, Paths] = {}
    names: dict[str, str] = {}
    # What lies in the root itself is counted already.
    for name in _folders(folder, LeftOut() if folder == root else left_out):
        _refuse_split(root, folder, name)
        outputs = left_out[RUNS] + left_out[OUTPUTS]
        found = sorted(_walk(str(folder / name), f"{prefix}{name}", left_out, {identity(folder)}))
        if not found and left_out[RUNS] + left_out[OUTPUTS] > outputs:
            continue
        if label(name) in names:
            raise UndecidedLayout(
                f"{folder} has two folders called {label(name)}, which are written with other "
                f"characters ({names[label(name)]!a} and {name!a}): are they one class? Move "
                "their images into one of them, or rename one"
            )
        names[label(name)] = name
        classes[label(name)] = Paths(found)
    return classes


def _refuse_split(root: Path, folder: Path, name: str) -> None:
    """A folder called val with folders in it, itself in the folder train, is no class."""
    if folder == root or name.lower() not in SPLITS:
        return
    if any(not is_system(e.name) and leads_to(e.is_dir) for e in entries(folder / name)):
        raise UndecidedLayout(
            f"{folder / name} lies inside the split {folder.name}; move it beside it: {root / name}"
        )


def _walk(
    folder: str, prefix: str, left_out: LeftOut, above: Set[tuple[int, int]]
) -> Iterator[str]:
    """Paths of the pictures under ``folder``, each with ``prefix`` for the folder itself; without
    links to one of the folders ``above`` it, which would lead round in circles."""
    own = identity(folder)
    if own in above:
        left_out.add(LOOP, prefix)
        return
    if wrote := output(folder):
        left_out.add(wrote, prefix)
        return
    for entry in entries(folder):
        name = entry.name
        if is_system(name):
            left_out.add(SYSTEM, f"{prefix}/{name}")
        elif leads_to(entry.is_dir):
            yield from _walk(entry.path, f"{prefix}/{name}", left_out, above | {own})
        elif is_image(name):
            yield f"{prefix}/{name}"
        else:
            left_out.add(OTHER, f"{prefix}/{name}")


def entries(folder: str | os.PathLike[str]) -> list[os.DirEntry[str]]:
    """What lies in a folder, in the order of the names: that of a listing is another on each disk.

    Raises:
        DataError: it cannot be read.
    """
    try:
        with os.scandir(folder) as found:
            return sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{os.fspath(folder)} cannot be read: {error.strerror}") from error


def output(folder: str) -> str | None:
    """What a folder is that a command of ours filled: `RUNS` or `OUTPUTS`; None for any other."""
    if is_run(folder):
        return RUNS
    return OUTPUTS if os.path.lexists(f"{folder}/{MARKER}") else None


def is_run(folder: str | os.PathLike[str]) -> bool:
    """Return whether this is a run folder, finished or not."""
    return all(
        os.path.exists(os.path.join(folder, name)) for name in ("environment.json", "recipe.yaml")
    )


def identity(folder: str | os.PathLike[str]) -> tuple[int, int]:
    """What is the same for every way that leads to a folder."""
    found = os.stat(folder)
    return found.st_dev, found.st_ino


def leads_to(kind: Callable[[], bool]) -> bool:
    """``entry.is_dir`` or ``entry.is_file``; False for a link that leads to itself."""
    try:
        return kind()
    except OSError:  # reading it says what is wrong
        return False
