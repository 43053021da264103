"""A folder with a sub-folder a class -> paths. Opens no picture."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Set
from pathlib import Path

from ..errors import DataError
from .paths import SPLITS, Paths, is_picture

RUNS = "folder(s) of a run, whose pictures are figures"


def read(root: Path, left_out: Counter[str]) -> dict[str, dict[str, Paths]]:
    """{split: {class: paths relative to root, sorted}}; ``all`` where there are no splits.

    Args:
        left_out: counts what is not taken, by reason.

    Raises:
        DataError: two folders that mean the same split, or one split inside another.
    """
    folders = sorted(entry.name for entry in os.scandir(root) if _is_class_folder(entry))
    splits = {name: SPLITS[name.lower()] for name in folders if name.lower() in SPLITS}
    if "train" not in splits.values():
        # A flat folder; or, where all there is are val and test, these without a training part.
        if splits and len(splits) == len(folders):
            pass
        else:
            return {"all": _read_classes(root, root, left_out)}
    twice = [name for name, count in Counter(splits.values()).items() if count > 1]
    if twice:
        same = [name for name, split in splits.items() if split in twice]
        raise DataError(f"{root} has {' and '.join(same)}, which mean the same; keep one of them")
    for other in folders:
        if other not in splits:
            left_out[f"folder(s) beside the splits: {other}"] += 1
    return {split: _read_classes(root, root / name, left_out) for name, split in splits.items()}


def _read_classes(root: Path, folder: Path, left_out: Counter[str]) -> dict[str, Paths]:
    classes: dict[str, Paths] = {}
    prefix = "" if folder == root else f"{folder.name}/"
    with os.scandir(folder) as entries:
        for entry in entries:
            if _is_class_folder(entry):
                _refuse_split(root, folder, entry)
                runs = left_out[RUNS]
                found = sorted(
                    _walk(entry.path, f"{prefix}{entry.name}", left_out, {identity(folder)})
                )
                if found or left_out[RUNS] == runs:
                    classes[entry.name] = Paths(found)
            elif is_picture(entry.name) and leads_to(entry.is_file):
                left_out["picture(s) outside a class folder"] += 1
    return classes


def _refuse_split(root: Path, folder: Path, entry: os.DirEntry[str]) -> None:
    """A folder called val with folders in it, itself in the folder train, is no class."""
    if folder == root or entry.name.lower() not in SPLITS:
        return
    with os.scandir(entry.path) as inside:
        if any(_is_class_folder(other) for other in inside):
            raise DataError(
                f"{folder / entry.name} lies inside the split {folder.name}; "
                f"move it beside it: {root / entry.name}"
            )


def _walk(
    folder: str, prefix: str, left_out: Counter[str], above: Set[tuple[int, int]]
) -> Iterator[str]:
    """Paths of the pictures under ``folder``, each with ``prefix`` for the folder itself; without
    links to one of the folders ``above`` it, which would lead round in circles."""
    own = identity(folder)
    if own in above:
        left_out["link(s) to a folder around them"] += 1
        return
    if all(os.path.exists(f"{folder}/{name}") for name in ("environment.json", "recipe.yaml")):
        left_out[RUNS] += 1
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            name = entry.name
            if name.startswith(".") or name in ("Thumbs.db", "__MACOSX"):
                left_out["hidden or system file(s)"] += 1
            elif leads_to(entry.is_dir):
                yield from _walk(entry.path, f"{prefix}/{name}", left_out, above | {own})
            elif is_picture(name):
                yield f"{prefix}/{name}"
            else:
                left_out["file(s) of another kind"] += 1


def identity(folder: str | os.PathLike[str]) -> tuple[int, int]:
    """What is the same for every way that leads to a folder."""
    found = os.stat(folder)
    return found.st_dev, found.st_ino


def _is_class_folder(entry: os.DirEntry[str]) -> bool:
    hidden = entry.name.startswith(".") or entry.name == "__MACOSX"
    return not hidden and leads_to(entry.is_dir)


def leads_to(kind: Callable[[], bool]) -> bool:
    """``entry.is_dir`` or ``entry.is_file``; False for a link that leads to itself."""
    try:
        return kind()
    except OSError:  # reading it says what is wrong
        return False
