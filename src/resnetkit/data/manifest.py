"""A CSV manifest, with the columns ``path,label[,split]``, -> paths."""

from __future__ import annotations

import codecs
import csv
import json
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from ..errors import DataError
from ..storage import csv_text
from . import tree
from .paths import SPLITS, LeftOut, Paths, is_image, is_system, object_url, shown, spelling

COLUMNS = "path,label and optionally split"
"""The columns of a manifest, as listed in error messages."""


def base_folder(file: Path, notes: list[str]) -> Path:
    """Return the folder that the paths in a manifest are relative to: the manifest's own folder.

    The paths in a run's ``split.csv`` are relative to the photo folder that the run recorded, if
    that folder still exists. In that case, a line is added to ``notes``.

    Raises:
        DataError: the run's ``environment.json`` is damaged.
    """
    recorded = file.parent / "environment.json"
    if _is_of_a_run(file):
        try:
            data = Path(json.loads(recorded.read_text(encoding="utf-8"))["data"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{recorded} is damaged ({error!r}); expected it to say where the photos in "
                f"{file} are. Copy the run folder again"
            ) from error
        photos = base_folder(data, []) if data.suffix.lower() == ".csv" else data
        if photos.is_dir() or object_url(photos) is not None:
            notes.append(
                f"the paths in {file} are relative to {shown(photos)}, as its run recorded"
            )
            return photos
    return file.parent


def _is_of_a_run(file: Path) -> bool:
    return file.name == "split.csv" and tree.is_run(str(file.parent))


def read_manifest(
    file: Path, base: Path, *, left_out: LeftOut, notes: list[str]
) -> dict[str, dict[str, Paths]]:
    """Return {split: {class: paths}}, in file order.

    Spaces around values are ignored, and different spellings of a label are merged, except in a
    run's ``split.csv``, which is not written by hand. The only split is ``all`` if the file names
    no splits.

    Args:
        file: the manifest.
        base: the folder that its paths are relative to.
        left_out: counts the rows that are left out, by reason.
        notes: receives a line for each ambiguity.

    Raises:
        DataError: the file is not UTF-8 text, or has columns or values that a manifest cannot
            have; the message names the line.
    """
    if is_image(file.name):
        raise DataError(
            f"{file} is a single image; expected a folder with one sub-folder per class"
        )
    with file.open("rb") as start:
        encoding = _find_encoding(file, start.read(512))
    is_exact = _is_of_a_run(file)
    # Paths need not be valid UTF-8; everything else must be.
    with file.open(encoding=encoding, errors="surrogateescape", newline="") as lines:
        try:
            delimiter = _find_delimiter(lines)
            # Strict mode, because an unmatched quote would otherwise hide the rows after it.
            rows = csv.reader(
                lines, delimiter=delimiter, skipinitialspace=not is_exact, strict=True
            )
            found = _parse(file, rows, is_exact, files=_Files(base), left_out=left_out, notes=notes)
        except csv.Error as error:
            raise DataError(
                f"{file}, line {rows.line_num}: not valid CSV ({error}). Look for an "
                "unmatched double quote, or text after a closing one, in this line or an earlier "
                "one"
            ) from error
        except UnicodeDecodeError as error:  # only in UTF-16, where invalid bytes are not escaped
            raise DataError(
                f"{file} is damaged: not valid UTF-16 ({error.reason}). Save it again, as CSV in "
                "UTF-8"
            ) from error
    return found if is_exact else _merge_spellings(file, found, notes)


def _find_encoding(file: Path, start: bytes) -> str:
    """Return UTF-8, or UTF-16 if the file begins with a UTF-16 BOM, like Excel's "Unicode Text".

    Raises:
        DataError: the file is not text.
    """
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    if b"\0" in start:
        what = "an Excel workbook or another zip archive" if start[:2] == b"PK" else "not text"
        raise DataError(f"{file} is {what}; save it as CSV in UTF-8, with the columns {COLUMNS}")
    return "utf-8-sig"


def _find_delimiter(lines: TextIO) -> str:
    """Return the delimiter that the first line uses.

    Excel writes semicolons if the comma is the decimal separator, and may name the delimiter in a
    line before the columns (``sep=;``).
    """
    first = lines.readline()
    lines.seek(0)
    stated = re.fullmatch(r"sep=(.)[\r\n]*", first)
    return stated[1] if stated else max(",;\t", key=first.count)


def _parse(
    file: Path,
    rows: Iterator[list[str]],
    is_exact: bool,
    *,
    files: _Files,
    left_out: LeftOut,
    notes: list[str],
) -> dict[str, dict[str, Paths]]:
    found: dict[str, dict[str, Paths]] = {}
    given = [name.strip() for name in next(rows, [])]
    if given[:1] == ["sep="]:
        given = [name.strip() for name in next(rows, [])]
    _check_text(file, "".join(given))
    columns = [name.lower() for name in given]
    if columns.count("path") != 1 or columns.count("label") != 1 or columns.count("split") > 1:
        shown = ", ".join(given)[:200] or "(none)"
        raise DataError(f"{file} has the columns {shown}; expected {COLUMNS}")
    path_column = columns.index("path")
    label_column = columns.index("label")
    split_column = columns.index("split") if "split" in columns else len(columns)
    for row in rows:
        if not row:
            continue  # an empty line
        line = f"{file}, line {rows.line_num}"  # type: ignore[attr-defined]
        row = [csv_text(value if is_exact else value.strip()) for value in row]
        row += [""] * (len(columns) + 1 - len(row))
        if any(row[len(columns) :]):
            raise DataError(
                f"{line} has {len(row)} values, but there are {len(columns)} columns "
                f"({', '.join(given)}). Put a value that contains {rows.dialect.delimiter!r} in "  # type: ignore[attr-defined]
                "double quotes"
            )
        path = row[path_column]
        label = row[label_column]
        split = row[split_column].lower() or "all"
        if not path or not label:
            raise DataError(f"{line}: path or label is empty")
        if split != "all" and split not in SPLITS:
            raise DataError(f"{line}: split must be train, val or test; got {split}")
        if not (path.isascii() and label.isascii()):
            path = os.fsdecode(path.encode("utf-8", "surrogateescape"))
            if not files.exists(path):
                _check_text(file, path + label)
            elif _is_text(path):
                _check_text(file, label)
            label = unicodedata.normalize("NFC", label)
        is_plain = is_image(path) and path.isascii() and not re.search(r"\\|:/", path)
        image = path if is_plain else files.find_image(path, line)
        if image is None:
            left_out.add(tree.SYSTEM if is_system(os.path.basename(path)) else tree.OTHER, path)
            continue
        by_class = found.setdefault(SPLITS.get(split, "all"), {})
        if label not in by_class:
            by_class[label] = Paths()
        by_class[label].append(image)
    if "all" in found and len(found) > 1:
        raise DataError(
            f"{file}: some rows have a split and some do not; give every row a split, or none"
        )
    if files.renamed:
        written, actual = next(iter(files.renamed.items()))
        count = f"{len(files.renamed):,} paths" if len(files.renamed) > 1 else "1 path"
        notes.append(
            f"{count} in {file} did not match a file name exactly; the closest match is used, such "
            f"as {written} -> {actual}"
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
        raise DataError(f"{file} is not UTF-8 text; save it as CSV in UTF-8") from error


class _Files:
    """The files that rows refer to, even if a row omits the extension or uses backslashes."""

    def __init__(self, base: Path) -> None:
        self._base = str(base)
        self._stems_by_folder: dict[str, dict[str, list[str]]] = {}
        self.renamed: dict[str, str] = {}  # path in the row -> path of the file

    def exists(self, path: str) -> bool:
        """Return whether there is a file or link at ``path``."""
        return os.path.lexists(os.path.join(self._base, path))

    def find_image(self, path: str, line: str) -> str | None:
        """Return the path to the image that a row refers to; None if the row names no image.

        Args:
            path: the path in the row.
            line: name of the row for error messages.

        Raises:
            DataError: the path could be several files.
        """
        name = path if self.exists(path) else path.replace("\\", "/")  # as on Windows
        if not self.exists(name):
            if os.name != "nt" and re.match(r"[A-Za-z]:/|[a-z]{2,}://", name):
                raise DataError(
                    f"{line}: {path} is a path on another computer or a web address; expected a "
                    f"path relative to {self._base}"
                )
            forms = [unicodedata.normalize(form, name) for form in ("NFC", "NFD")]  # NFD: a Mac
            name = next(filter(self.exists, forms), name)
        if not is_image(name):
            folder, stem = os.path.split(name)
            names = self._stems(folder).get(stem, [])
            if len(names) > 1:
                raise DataError(f"{line}: {path} could be {' or '.join(names)}; add the extension")
            if names:
                name = os.path.join(folder, names[0])
            elif is_system(stem) or os.path.splitext(stem)[1].strip(".0123456789"):
                return None  # not an image
        if name != path:
            self.renamed[path] = name
        return name

    def _stems(self, folder: str) -> dict[str, list[str]]:
        """Return {name without extension: names} of the images in a folder."""
        if folder not in self._stems_by_folder:
            stems: dict[str, list[str]] = {}
            path = os.path.join(self._base, folder)
            for entry in tree.entries(path) if os.path.isdir(path) else []:
                if is_image(entry.name):
                    stems.setdefault(os.path.splitext(entry.name)[0], []).append(entry.name)
            self._stems_by_folder[folder] = stems
        return self._stems_by_folder[folder]


def _merge_spellings(
    file: Path, found: dict[str, dict[str, Paths]], notes: list[str]
) -> dict[str, dict[str, Paths]]:
    """Merge labels that differ only in case or number format into one class.

    The class gets the most common spelling, or the first if several are equally common.
    """
    counts: Counter[str] = Counter()
    for by_class in found.values():
        for label, paths in by_class.items():
            counts[label] += len(paths)
    same: dict[str, list[str]] = {}
    for label in counts:
        same.setdefault(spelling(label), []).append(label)
    class_names: dict[str, str] = {}
    for labels in same.values():
        name = max(labels, key=counts.__getitem__)
        class_names |= dict.fromkeys(labels, name)
        if len(labels) > 1:
            notes.append(
                f"the labels {', '.join(map(repr, labels))} in {file} are read as one class, "
                f"{name!r}. If they are different classes, give them names that differ in more "
                "than case or number format"
            )
    merged: dict[str, dict[str, Paths]] = {}
    for split, by_class in found.items():
        into = merged.setdefault(split, {})
        for label, paths in by_class.items():
            name = class_names[label]
            if name in into:
                into[name].extend(paths)
            else:
                into[name] = paths
    return merged
