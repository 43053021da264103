"""A CSV file with a user's verdicts on labels -> a split with images relabeled or dropped.

Training writes the labels that look wrong to ``suspects.csv``. The user fills in the
``verdict`` column and passes the file to the next run.
"""

from __future__ import annotations

import csv
import json
import os
import unicodedata
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..errors import DataError, did_you_mean, sentences
from ..storage import csv_text
from ..text import pluralize, printable
from .files import digest
from .folder import Dataset, Split
from .paths import shown

VERDICTS = ("keep", "relabel", "drop")
"""The allowed verdicts. An empty one means ``keep``."""

_COLUMNS = ("path", "label", "suggested", "verdict", "new_label")


@dataclass(frozen=True)
class Corrections:
    """The labels to change, and the images to leave out.

    Args:
        file: the file that the corrections were read from.
        relabeled: {path: index of the image's new class}.
        dropped: the paths of the images to leave out.
    """

    file: Path
    relabeled: Mapping[str, int]
    dropped: frozenset[str]

    def apply(self, split: Split) -> Split:
        """Return a split with the new labels, without the dropped images."""
        kept = np.array([path not in self.dropped for path in split.paths], bool)
        corrected = split.select(np.flatnonzero(kept))
        new = [
            self.relabeled.get(path, int(label))
            for path, label in zip(corrected.paths, corrected.labels, strict=True)
        ]
        return replace(corrected, labels=np.array(new, corrected.labels.dtype))

    def describe(self) -> str:
        """Return how many images are affected, such as ``3 images relabeled, 1 dropped``."""
        return f"{pluralize(len(self.relabeled), 'image')} relabeled, {len(self.dropped)} dropped"

    def identity(self) -> str:
        """Return text that identifies the corrections, whatever file they come from."""
        content = json.dumps([sorted(self.relabeled.items()), sorted(self.dropped)])
        return f"{self.describe()} ({digest(content.encode())})"


def read_corrections(file: str | os.PathLike[str], dataset: Dataset) -> Corrections:
    """Read the verdicts on the images in a dataset.

    The file needs the columns ``path`` and ``verdict``; other columns may be missing:

    - ``path``: the path of the image in the dataset, as in ``suspects.csv`` and ``split.csv``.
    - ``verdict``: ``keep`` or empty, ``relabel`` or ``drop``.
    - ``new_label``: the class to relabel to; by default, the class in ``suggested``.
    - ``label``: the label that was judged. It must match the label in the dataset, unless the
      dataset already has the new label.

    Raises:
        DataError: the file cannot be read; a path, class or verdict is unknown; two lines judge an
            image differently; or ``label`` does not match. The message names the line.
    """
    file = Path(file)
    labels = _labels(dataset)
    relabeled: dict[str, int] = {}
    dropped: set[str] = set()
    seen: dict[str, tuple[str, str]] = {}  # path -> its verdict and new class
    for line, row in _rows(file):
        path, verdict, name = _verdict(line, row)
        path = _as_listed(path, labels)
        name = _as_listed(name, dataset.classes)
        if path not in labels:
            _raise_unknown_path(line, path, dataset)
        if seen.setdefault(path, (verdict, name)) != (verdict, name):
            raise DataError(f"{line}: {printable(path)} has a different verdict on an earlier line")
        if verdict == "keep":
            continue
        current = dataset.classes[labels[path]]
        judged = _as_listed(row.get("label", ""), dataset.classes) or current
        if verdict == "relabel":
            if name not in dataset.classes:
                _raise_unknown_class(line, name, dataset.classes)
            if name == current:
                continue  # the data has since been corrected
            relabeled[path] = dataset.classes.index(name)
        else:
            dropped.add(path)
        if judged != current:
            raise DataError(
                f"{line}: {printable(path)} was judged with the label {judged!r}, but its label "
                f"is {current!r} now. Remove the line, or judge the image again"
            )
    return Corrections(file, relabeled, frozenset(dropped))


def _labels(dataset: Dataset) -> dict[str, int]:
    return {
        path: int(label)
        for split in dataset.splits.values()
        for path, label in zip(split.paths, split.labels, strict=True)
    }


def _rows(file: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the name of each line, for error messages, and its values by column."""
    try:
        # As in a manifest, a path need not be valid UTF-8.
        with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as lines:
            first = lines.readline()
            lines.seek(0)
            # Files written by training have no spaces after commas, but the class names in them may
            # begin with a space.
            # Strict mode, because an unmatched quote would otherwise hide the rows after it.
            rows = csv.reader(lines, skipinitialspace=", " in first, strict=True)
            columns = [name.strip() for name in next(rows, [])]
            repeated = [name for name in _COLUMNS if columns.count(name) > 1]
            if repeated:
                raise DataError(
                    f"{file} has several columns called {' and '.join(repeated)}; expected one "
                    "of each. Remove the others"
                )
            if not {"path", "verdict"} <= set(columns):
                hint = (
                    "; separate them with commas, not semicolons" if ";" in "".join(columns) else ""
                )
                raise DataError(
                    f"{file} has the columns {printable(', '.join(columns)) or '(none)'}; expected "
                    f"those of suspects.csv, including path and verdict{hint}"
                )
            for row in rows:
                cells = [csv_text(cell) for cell in row]
                if any(cell.strip() for cell in cells):
                    yield f"{file}, line {rows.line_num}", dict(zip(columns, cells, strict=False))
    except OSError as error:
        raise DataError(f"The corrections {file} cannot be read: {error.strerror}") from error
    except csv.Error as error:
        raise DataError(
            f"{file}, line {rows.line_num}: not valid CSV ({error}). Look for an unmatched double "
            "quote, or text after a closing one, in this line or an earlier one"
        ) from error


def _as_listed(name: str, known: Container[str]) -> str:
    """Return a name unchanged if it is known, else without the spaces around it."""
    return name if name in known else name.strip()


def _verdict(line: str, row: dict[str, str]) -> tuple[str, str, str]:
    """Return the path, the verdict and the new class (or "") from a line."""
    verdict = row.get("verdict", "").strip().lower() or "keep"
    if verdict not in VERDICTS:
        raise DataError(
            sentences(
                f"{line}: unknown verdict {verdict!r}.",
                did_you_mean(verdict, VERDICTS),
                "A verdict is keep, relabel or drop; empty means keep",
            )
        )
    new_label = row.get("new_label", "")
    new_label = new_label if new_label.strip() else ""
    if new_label and verdict != "relabel":
        raise DataError(
            f"{line}: new_label is {new_label!r}, but the verdict is "
            f"{row.get('verdict') or 'empty'}. Write relabel, or leave new_label empty"
        )
    name = new_label or row.get("suggested", "")
    if verdict == "relabel" and not name:
        raise DataError(f"{line}: the verdict is relabel, but new_label and suggested are empty")
    path = os.fsdecode(row.get("path", "").encode("utf-8", "surrogateescape"))
    return path, verdict, unicodedata.normalize("NFC", name) if verdict == "relabel" else ""


def _raise_unknown_path(line: str, path: str, dataset: Dataset) -> None:
    split = next(iter(dataset.splits.values()))
    raise DataError(
        f"{line}: {printable(shown(dataset.root))} has no image {path!r}. Paths are relative to "
        f"{printable(shown(split.root))}, such as {printable(split.paths[0])}; each must name "
        "an image in the data"
    )


def _raise_unknown_class(line: str, name: str, classes: tuple[str, ...]) -> None:
    more = ", ..." if len(classes) > 20 else ""
    raise DataError(
        sentences(
            f"{line}: unknown class {name!r}.",
            did_you_mean(name, classes),
            f"Known: {', '.join(classes[:20])}{more}",
        )
    )
