"""A CSV manifest, with the columns ``path,label[,split]``, -> paths."""

from __future__ import annotations

import csv
import json
import os
import unicodedata
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from ..errors import DataError
from ..storage import csv_text
from . import tree
from .paths import SPLITS, LeftOut, Paths, is_image, is_system, spelling


def base(file: Path, notes: list[str]) -> Path:
    """What the paths in a manifest are relative to: its folder. The ``split.csv`` of a run names
    the photos that the run was begun with, where they still are."""
    recorded = file.parent / "environment.json"
    if file.name == "split.csv" and tree.is_run(str(file.parent)):
        data = Path(json.loads(recorded.read_text(encoding="utf-8"))["data"])
        photos = data.parent if data.suffix.lower() == ".csv" else data
        if photos.is_dir():
            notes.append(f"the paths in {file} are relative to {photos}, as its run recorded")
            return photos
    return file.parent


def read(
    file: Path, base: Path, left_out: LeftOut, notes: list[str]
) -> dict[str, dict[str, Paths]]:
    """{split: {class: paths}}, in the order of the file; ``all`` where it names no splits.

    Args:
        base: what its paths are relative to.
        left_out: counts the rows that are not taken, by reason.
        notes: gets a line for everything that could be read in another way too.

    Raises:
        DataError: no UTF-8 text, or columns or values that a manifest cannot have; the message
            names the line.
    """
    if is_image(file.name):
        raise DataError(f"{file} is one picture; expected a folder with a sub-folder a class")
    # A path may be no text; what else is none is refused.
    with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as lines:
        found = _parse(
            file, csv.reader(lines, skipinitialspace=True), _Files(base), left_out, notes
        )
    return _merge_spellings(file, found, notes)


def _parse(
    file: Path, rows: Iterator[list[str]], files: _Files, left_out: LeftOut, notes: list[str]
) -> dict[str, dict[str, Paths]]:
    found: dict[str, dict[str, Paths]] = {}
    columns = [name.strip() for name in next(rows, [])]
    _check_text(file, "".join(columns))
    if not {"path", "label"} <= set(columns):
        hint = "; separate them by commas, not semicolons" if ";" in "".join(columns) else ""
        raise DataError(
            f"{file} has the columns {', '.join(columns) or '(none)'}; "
            f"expected path,label and optionally split{hint}"
        )
    places = [columns.index(name) for name in ("path", "label")]
    place = columns.index("split") if "split" in columns else len(columns)
    for row in rows:
        if not row:
            continue  # an empty line
        where = f"{file}, line {rows.line_num}"  # type: ignore[attr-defined]
        row = [csv_text(value.strip()) for value in row] + [""] * (len(columns) + 1 - len(row))
        path, label, split = row[places[0]], row[places[1]], row[place].lower() or "all"
        if not path or not label:
            raise DataError(f"{where}: path or label is empty")
        if split != "all" and split not in SPLITS:
            raise DataError(f"{where}: split is train, val or test; got {split}")
        if not (path.isascii() and label.isascii()):
            path = os.fsdecode(path.encode("utf-8", "surrogateescape"))
            if not files.exists(path):
                _check_text(file, path + label)
            elif _is_text(path):
                _check_text(file, label)
            label = unicodedata.normalize("NFC", label)
        named = path if is_image(path) and "\\" not in path else files.find(path, where)
        if named is None:
            left_out.add(tree.SYSTEM if is_system(os.path.basename(path)) else tree.OTHER, path)
            continue
        by_class = found.setdefault(SPLITS.get(split, "all"), {})
        if label not in by_class:
            by_class[label] = Paths()
        by_class[label].append(named)
    if "all" in found and len(found) > 1:
        raise DataError(f"{file}: some rows have a split and some have none; give all or none")
    if files.found:
        example = next(iter(files.found.items()))
        notes.append(
            f"{len(files.found):,} paths in {file} are not written as the files are called: "
            f"found by the rest of their names, such as {example[0]} -> {example[1]}"
        )
    return found


def _is_text(value: str) -> bool:
    try:
        os.fsencode(value).decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _check_text(file: Path, value: str) -> None:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(f"{file} is no UTF-8 text; save it as CSV in UTF-8") from error


class _Files:
    """The files that rows name, also where a row leaves the extension out."""

    def __init__(self, base: Path) -> None:
        self._base = str(base)
        self._listed: dict[str, dict[str, list[str]]] = {}
        self.found: dict[str, str] = {}  # what a row says -> what the file is called

    def exists(self, path: str) -> bool:
        return os.path.lexists(os.path.join(self._base, path))

    def find(self, path: str, where: str) -> str | None:
        """The path of the file that a row means; None where that is no picture.

        Raises:
            DataError: it could be several files.
        """
        slashed = path.replace("\\", "/")  # as on Windows
        name = path if self.exists(path) else slashed
        if not is_image(name):
            folder, stem = os.path.split(name)
            names = self._stems(folder).get(stem, [])
            if len(names) > 1:
                raise DataError(
                    f"{where}: {path} could be {' or '.join(names)}; write its extension too"
                )
            if names:
                name = os.path.join(folder, names[0])
            elif is_system(stem) or os.path.splitext(stem)[1].strip(".0123456789"):
                return None  # of another kind
        if name != path:
            self.found[path] = name
        return name

    def _stems(self, folder: str) -> dict[str, list[str]]:
        """{name without extension: names} of the pictures in a folder."""
        if folder not in self._listed:
            stems: dict[str, list[str]] = {}
            path = os.path.join(self._base, folder)
            for entry in tree.entries(path) if os.path.isdir(path) else []:
                if is_image(entry.name):
                    stems.setdefault(os.path.splitext(entry.name)[0], []).append(entry.name)
            self._listed[folder] = stems
        return self._listed[folder]


def _merge_spellings(
    file: Path, found: dict[str, dict[str, Paths]], notes: list[str]
) -> dict[str, dict[str, Paths]]:
    """Take labels that differ only in how a spreadsheet or a person writes them for one class,
    called as most of its rows are (of equally many, as the first)."""
    counts: Counter[str] = Counter()
    for by_class in found.values():
        for label, paths in by_class.items():
            counts[label] += len(paths)
    same: dict[str, list[str]] = {}
    for label in counts:
        same.setdefault(spelling(label), []).append(label)
    called: dict[str, str] = {}
    for labels in same.values():
        name = max(labels, key=counts.__getitem__)
        called |= dict.fromkeys(labels, name)
        if len(labels) > 1:
            notes.append(
                f"the labels {', '.join(map(repr, labels))} in {file} are taken for one class, "
                f"{name!r}; if they are not, give them names that differ in more than case and "
                "the writing of a number"
            )
    merged: dict[str, dict[str, Paths]] = {}
    for split, by_class in found.items():
        into = merged.setdefault(split, {})
        for label, paths in by_class.items():
            if called[label] in into:
                into[called[label]].extend(paths)
            else:
                into[called[label]] = paths
    return merged
