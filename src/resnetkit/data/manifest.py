"""A CSV manifest, with the columns ``path,label[,split]``, -> paths."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path
from typing import Any

from ..errors import DataError
from .paths import SPLITS, Paths, is_picture


def read(file: Path, left_out: Counter[str]) -> dict[str, dict[str, Paths]]:
    """{split: {class: paths}}, in the order of the file; ``all`` where it names no splits.

    Raises:
        DataError: no UTF-8 text, or columns or values that a manifest cannot have; the message
            names the line.
    """
    if is_picture(file.name):
        raise DataError(f"{file} is one picture; expected a folder with a sub-folder a class")
    with file.open(encoding="utf-8-sig", newline="") as lines:
        try:
            return _parse(file, csv.reader(lines, skipinitialspace=True), left_out)
        except UnicodeDecodeError as error:
            raise DataError(f"{file} is no UTF-8 text; save it as CSV in UTF-8") from error


def _parse(file: Path, rows: Any, left_out: Counter[str]) -> dict[str, dict[str, Paths]]:
    found: dict[str, dict[str, Paths]] = {}
    columns = [name.strip() for name in next(rows, [])]
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
        row = [value.strip() for value in row] + [""] * (len(columns) + 1 - len(row))
        path, label, split = row[places[0]], row[places[1]], row[place].lower() or "all"
        if not path or not label:
            raise DataError(f"{file}, line {rows.line_num}: path or label is empty")
        if split != "all" and split not in SPLITS:
            raise DataError(
                f"{file}, line {rows.line_num}: split is train, val or test; got {split}"
            )
        if not is_picture(path):
            left_out["file(s) of another kind"] += 1
            continue
        by_class = found.setdefault(SPLITS.get(split, "all"), {})
        if label not in by_class:
            by_class[label] = Paths()
        by_class[label].append(path)
    if "all" in found and len(found) > 1:
        raise DataError(f"{file}: some rows have a split and some have none; give all or none")
    return found
