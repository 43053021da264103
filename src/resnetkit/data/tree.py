"""A folder with one sub-folder per class -> paths. Opens no images."""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from ..errors import DataError
from ..storage import MARKER
from .paths import SPLITS, LeftOut, Paths, affixed_split, is_image, is_system, label, object_url

# Reasons for leaving out files and folders.
RUNS = "folders of a run, whose images are figures"
OUTPUTS = "folders that resnet wrote"
SYSTEM = "hidden or system files"
OTHER = "files of another kind"
LOOSE = "images outside a class folder"
LOOP = "links to a folder that is read anyway"
BESIDE = "folders next to the splits"

RUN_FILES = frozenset(("environment.json", "recipe.yaml"))
"""The files that mark a folder as a run folder."""

SHARDS = "shards.json"
"""The file that marks a folder of shards; see `resnetkit.data.shards`."""


class UndecidedLayout(DataError):
    """An ambiguous folder layout. The message asks which of two meanings is right."""


def read_tree(
    root: Path, left_out: LeftOut, *, notes: list[str], known: Collection[str] = ()
) -> dict[str, dict[str, Paths]]:
    """Return {split: {class: paths relative to root, sorted}}.

    The only split is ``all`` if there are no split folders.

    Args:
        root: the folder.
        left_out: counts the files that are left out, by reason.
        notes: receives a line for each ambiguity.
        known: the classes of a trained network; folders with these names are classes.

    Raises:
        UndecidedLayout: two folders mean the same split or class, one split is inside another, or
            folders could be either splits or classes.
    """
    folders = _folders(root, left_out)
    splits = _find_splits(root, folders, notes=notes, known=known)
    if not splits:
        classes = _read_classes(root, root, prefix="", left_out=left_out)
        if not set(classes) <= set(known):
            _refuse_same_folders(root, classes)
        return {"all": classes}
    for name in folders:
        if name not in splits:
            left_out.add(BESIDE, name)
    found = {}
    for name, split in splits.items():
        folder, prefix = _descend(root, name)
        found[split] = _read_classes(root, folder, prefix=prefix, left_out=left_out)
    return found


def read_undecided(root: Path, left_out: LeftOut) -> dict[str, Paths]:
    """Return {folder in ``root``: paths relative to root, sorted}, whatever the folders mean.

    Images directly in ``root`` are under ``.``.
    """
    found: dict[str, Paths] = {}
    for path in sorted(_walk(str(root), ".", left_out=left_out, seen=set())):
        folder, _, inside = path.removeprefix("./").partition("/")
        found.setdefault(folder if inside else ".", Paths()).append(path.removeprefix("./"))
    return found


def _folders(folder: Path, left_out: LeftOut) -> list[str]:
    """Return the sorted names of possible class and split folders; count all else as left out."""
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
    root: Path, folders: list[str], *, notes: list[str], known: Collection[str]
) -> dict[str, str]:
    """Return {folder: split}; empty if the folders are classes.

    Names alone do not decide: `train` may be a class, next to `bus` and `car`. The folders are
    splits if there are no others, or if at least two different splits contain class folders.
    """
    named = named_splits(root, folders)
    if not named:
        return {}
    labeled = [name for name in named if _is_labeled(_descend(root, name)[0])]
    others = [name for name in folders if name not in named and _holds_images(root / name)]
    if others and {label(name) for name in named} <= set(known):
        return {}
    loose = [name for name in named if name not in labeled and _holds_images(root / name)]
    certain = len({named[name] for name in labeled}) > 1
    if (others and not certain) or (loose and not labeled):
        _raise_split_or_class(root, list(named), others)
    splits = {name: named[name] for name in labeled}
    repeated = [split for split, count in Counter(splits.values()).items() if count > 1]
    if repeated:
        same = [name for name, split in splits.items() if split in repeated]
        raise UndecidedLayout(
            f"{root} has {' and '.join(same)}, which mean the same split; keep only one of them"
        )
    for name in named:
        if labeled and name not in labeled:
            reason = "has images but no class folders" if name in loose else "has no images"
            instead = " (a validation split is created instead)" if named[name] == "val" else ""
            notes.append(f"{name} {reason}, so it is not used{instead}")
    unusual = [f"{name} as {split}" for name, split in splits.items() if name.lower() not in _USUAL]
    if unusual:
        notes.append(
            f"read as splits, not classes: {', '.join(unusual)}; if they are classes, move them "
            f"into {root / 'train'}"
        )
    return splits


_USUAL = ("train", "val", "valid", "validation", "test")
"""Split names that need no note."""


def named_splits(root: Path, folders: list[str]) -> dict[str, str]:
    """Return {folder: split} for folders whose names mean splits.

    They are named like ``train`` and ``Testing``, or with the same text around that word, like
    ``seg_train`` and ``seg_test``.
    """
    named = {name: SPLITS[name.lower()] for name in folders if name.lower() in SPLITS}
    if "train" in named.values():
        return named
    by_affixes: dict[tuple[str, str], dict[str, str]] = {}
    for name in folders:
        found = affixed_split(name)
        if found is not None:
            split, affixes = found
            by_affixes.setdefault(affixes, {})[name] = split
    sets = [s for s in by_affixes.values() if "train" in s.values() and len(set(s.values())) > 1]
    if len(sets) > 1:
        _raise_split_or_class(root, [name for group in sets for name in group], [])
    return sets[0] if sets else named


def _raise_split_or_class(root: Path, named: list[str], others: list[str]) -> None:
    beside = f" (next to {_some(others)})" if others else ""
    raise UndecidedLayout(
        f"{root}: is {_some(named, ' or ')}{beside} a split or a class? If a split, put a folder "
        f"for each class into it, and the other class folders into {root / 'train'}. If a class, "
        f"move all class folders, including this one, into {root / 'train'}. If neither, move it "
        f"out of {root}. A CSV file with the columns path,label[,split] also settles it."
    )


def _some(names: list[str], word: str = ", ") -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return word.join(map(repr, names[:5])) + more


def _refuse_same_folders(root: Path, classes: dict[str, Paths]) -> None:
    """Raise an error if all folders contain the same folders and nothing else.

    The outer folders may be splits instead of classes. Some may lack a few of the inner folders: a
    small split may lack a rare class.
    """
    inside: set[str] = set()
    found: list[set[str]] = []
    for paths in classes.values():
        subfolders = set()
        for path in paths:
            components = path.split("/", 2)
            if len(components) < 3:
                return
            subfolders.add(components[1])
        if len(subfolders) < 2:
            return
        found.append(subfolders)
        inside |= subfolders
    if len(classes) > 1 and inside in found:
        raise UndecidedLayout(
            f"{root}: {_some(sorted(classes))} contain the same folders, {_some(sorted(inside))}. "
            f"Which are the classes? If the outer ones, move them into {root / 'train'}. If the "
            "inner ones, name the outer ones train, val and test, or put the images of each class "
            "together. A CSV file with the columns path,label[,split] also settles it."
        )


def _descend(root: Path, name: str) -> tuple[Path, str]:
    """Return the folder of a split, and the prefix of its paths.

    For ``seg_train/seg_train/`` that is the inner folder.
    """
    folder, prefix = root / name, f"{name}/"
    inside = [entry for entry in entries(folder) if not is_system(entry.name)]
    if len(inside) == 1 and inside[0].name == name and leads_to(inside[0].is_dir):
        return folder / name, f"{prefix}{name}/"
    return folder, prefix


def _is_labeled(folder: Path) -> bool:
    """Return whether a folder contains class folders with images."""
    unused = LeftOut()
    return any(_holds_images(folder / name) for name in _folders(folder, unused))


def _holds_images(folder: Path) -> bool:
    paths = _walk(str(folder), "", left_out=LeftOut(), seen=set())
    return next(paths, None) is not None


def _read_classes(root: Path, folder: Path, *, prefix: str, left_out: LeftOut) -> dict[str, Paths]:
    classes: dict[str, Paths] = {}
    folder_names: dict[str, str] = {}
    # Files directly in the root have been counted already.
    for name in _folders(folder, LeftOut() if folder == root else left_out):
        _refuse_split(root, folder, name)
        outputs = left_out[RUNS] + left_out[OUTPUTS]
        paths = sorted(
            _walk(
                str(folder / name),
                f"{prefix}{name}",
                left_out=left_out,
                seen={identity(folder)},
            )
        )
        if not paths and left_out[RUNS] + left_out[OUTPUTS] > outputs:
            continue
        class_name = label(name)
        if class_name in folder_names:
            raise UndecidedLayout(
                f"{folder} has two folders called {class_name}, written with different characters "
                f"({folder_names[class_name]!a} and {name!a}). Are they one class? Move their "
                "images into one of them, or rename one"
            )
        folder_names[class_name] = name
        classes[class_name] = Paths(paths)
    return classes


def _refuse_split(root: Path, folder: Path, name: str) -> None:
    """Raise an error for a split folder inside a split, such as train/val with sub-folders."""
    if folder == root or name.lower() not in SPLITS:
        return
    if any(not is_system(e.name) and leads_to(e.is_dir) for e in entries(folder / name)):
        raise UndecidedLayout(
            f"{folder / name} is inside the split {folder.name}; move it to {root / name}"
        )


def _walk(
    folder: str, prefix: str, *, left_out: LeftOut, seen: set[tuple[int, int]]
) -> Iterator[str]:
    """Yield the paths of the images under ``folder``, with ``prefix`` in place of the folder.

    Links to folders are followed last, and left out if they lead to a folder in ``seen`` or to one
    that was read already: following them would repeat images, or never end.
    """
    waiting = deque([(folder, prefix)])  # the next folder is at the end
    while waiting:
        folder, prefix = waiting.pop()
        own = identity(folder)
        reason = LOOP if own in seen else output(folder)
        if reason:
            left_out.add(reason, prefix)
            continue
        seen.add(own)
        inside = []
        for entry in entries(folder):
            path = f"{prefix}/{entry.name}"
            if is_system(entry.name):
                left_out.add(SYSTEM, path)
            elif leads_to(entry.is_dir):
                if entry.is_symlink():
                    waiting.appendleft((entry.path, path))
                else:
                    inside.append((entry.path, path))
            elif is_image(entry.name):
                yield path
            else:
                left_out.add(OTHER, path)
        waiting.extend(reversed(inside))


def entries(folder: str | os.PathLike[str]) -> list[os.DirEntry[str]]:
    """Return the entries of a folder sorted by name: file systems return them in any order.

    Raises:
        DataError: the folder cannot be read.
    """
    try:
        with os.scandir(folder) as listing:
            return sorted(listing, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{os.fspath(folder)} cannot be read: {error.strerror}") from error


def output(folder: str) -> str | None:
    """Return `RUNS` or `OUTPUTS` for a folder that resnet wrote; None for any other."""
    if is_run(folder):
        return RUNS
    return OUTPUTS if os.path.lexists(f"{folder}/{MARKER}") else None


def is_run(folder: str | os.PathLike[str]) -> bool:
    """Return whether this is a run folder, finished or not."""
    return all(os.path.exists(os.path.join(folder, name)) for name in RUN_FILES)


def is_sharded(folder: str | os.PathLike[str]) -> bool:
    """Return whether ``resnet shard`` wrote this folder.

    Always true in an object store, where every dataset consists of shards.
    """
    if object_url(folder) is not None:
        return True
    return os.path.isfile(os.path.join(folder, SHARDS))


def identity(folder: str | os.PathLike[str]) -> tuple[int, int]:
    """Return a folder's device and inode, which are the same for every path to it."""
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def leads_to(kind: Callable[[], bool]) -> bool:
    """Return the result of ``entry.is_dir`` or ``entry.is_file``; False for a link to itself."""
    try:
        return kind()
    except OSError:  # reported when the file is read
        return False
