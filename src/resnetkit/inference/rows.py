"""Answers -> lines of a table, of JSON Lines or of CSV; and how a file of them is continued."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import BinaryIO, NamedTuple

from ..errors import OutputError
from ..progress import printable
from ..storage import csv_line, csv_text
from .images import ImageLike, name_of
from .predictor import BATCH_SIZE, Prediction

FORMATS = ("table", "jsonl", "csv")
COLUMNS = ("source", "class", "probability", "model", "error")


def format_header(format: str) -> str:
    """What stands above the first row; nothing but for CSV."""
    return ",".join(COLUMNS) + "\n" if format == "csv" else ""


def format_row(answer: Prediction, format: str) -> str:
    """One answer as text with its newline."""
    if format == "jsonl":
        return json.dumps(answer.to_dict(), ensure_ascii=False) + "\n"
    if format == "csv":
        values = answer.to_dict()
        return csv_line(values[name] for name in COLUMNS)
    if answer.error is not None:
        return f"{printable(answer.source)}  ERROR  {printable(answer.error)}\n"
    others = "  ".join(f"{printable(name)} {p:.1%}" for name, p in answer.top[1:])
    best = f"{printable(answer.class_name or '')}  {answer.probability:.2%}"
    return f"{printable(answer.source)}  {best}" + (f"   ({others})" if others else "") + "\n"


class RowsFile:
    """A file of rows that is written now, or continued.

    Continued, a torn last row is dropped. The rows of the last batch that was begun are computed
    once more and compared, so that the file ends with the bytes of an unbroken run, or with an
    error where the model, the settings or the pictures are others.

    Args:
        path: the file.
        format: ``jsonl`` or ``csv``.
        digest: of the model, as every row has it.
        resume: go on with the file; where there is none, or an empty one, it is begun.

    Attributes:
        first: the picture with which to go on, the first of a batch.
        failed: rows before that one that have an error.

    Raises:
        OutputError: the file is there and not to be continued, or was written by another model.
    """

    def __init__(self, path: Path, format: str, digest: str, resume: bool = False) -> None:
        self.path, self.format = path, format
        self.count, self.first, self.failed = 0, 0, 0
        self._again: list[str] = []
        errors: list[int] = []
        if path.exists() and not resume:
            raise OutputError(f"{path} exists; add --resume, name another file, or remove this one")
        end = self._scan(digest, errors) if path.exists() else 0
        self.first = max(0, self.count - 1) // BATCH_SIZE * BATCH_SIZE
        self.failed = sum(number < self.first for number in errors)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("r+b" if path.exists() else "w+b")
            self._again = [r.text for r in islice(_records(self._file, format), self.first, None)]
            del self._again[self.count - self.first :]
            self._file.truncate(end)
            self._file.seek(end)
        except OSError as error:
            raise OutputError(f"{path} cannot be written ({error.strerror})") from error
        if end == 0:
            self._file.write(format_header(format).encode())  # to the disk with the first row

    def __enter__(self) -> RowsFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, *unused: object) -> None:
        try:
            self._file.close()
        except OSError as error:  # it writes what is left; where that failed before, it was told
            if kind is None:
                raise OutputError(f"{self.path} cannot be written ({error.strerror})") from error

    def _scan(self, digest: str, errors: list[int]) -> int:
        """Counts the rows that are whole, and notes which are errors; the byte behind the last."""
        end = 0
        with self.path.open("rb") as file:
            if self.format == "csv":
                line = file.readline()
                if not line.endswith(b"\n"):
                    return 0
                if line != format_header("csv").encode():
                    raise OutputError(f"{self.path} is no table of resnet predict; name another")
                end, _ = file.tell(), file.seek(0)
            for record in _records(file, self.format):
                _, model, error = record.values(self.path, self.count + 1)
                if model != digest:
                    raise OutputError(
                        f"{self.path} holds answers of the model {model}; this one is {digest}. "
                        "Resume with that model, or name another file"
                    )
                if error:
                    errors.append(self.count)
                self.count, end = self.count + 1, record.end
        return end

    def check_sources(self, images: Iterable[ImageLike]) -> Iterator[ImageLike]:
        """``pictures``, while those that have rows are compared with them.

        Raises:
            OutputError: another order, or fewer pictures than rows.
        """
        source = iter(images)
        with self.path.open("rb") as file:
            records = islice(_records(file, self.format), self.count)
            for number, record in enumerate(records, 1):
                image = next(source, None)
                here = "no picture" if image is None else _written(name_of(image))
                there = _written(record.values(self.path, number)[0])
                if image is None or here != there:
                    raise OutputError(
                        f"{self.path}: row {number} is of {there}, where now {here} comes. Resume "
                        "with the same pictures in the same order, or name another file"
                    )
                yield image
        yield from source

    def write(self, answer: Prediction) -> None:
        """Append a row; of a picture whose row is there, see that it is the same.

        Raises:
            OutputError: it is not, or the disk is full.
        """
        text = format_row(answer, self.format)
        if self._again:
            there = self._again.pop(0)
            if there != _written(text):
                raise OutputError(
                    f"{self.path} was written with other settings or from other pictures: it has\n"
                    f"  {there.rstrip()}\nwhere now comes\n  {_written(text).rstrip()}"
                )
            return
        try:
            self._file.write(_written(text).encode())
            self._file.flush()
        except OSError as error:
            raise OutputError(f"{self.path} cannot be written ({error.strerror})") from error


class _Record(NamedTuple):
    text: str
    end: int  # the byte behind it
    format: str

    def values(self, path: Path, number: int) -> tuple[str, str, str | None]:
        """Its source, model and error."""
        try:
            if self.format == "csv":
                source, _, _, model, error = next(csv.reader(io.StringIO(self.text, newline="")))
                return csv_text(source), model, error
            content = json.loads(self.text)
            return str(content["source"]), str(content["model"]), content["error"]
        except (ValueError, KeyError, TypeError, StopIteration, csv.Error):
            raise OutputError(
                f"{path}: row {number} was not written by resnet predict "
                f"as {self.format}: {self.text[:60].rstrip()!r}"
            ) from None


def _records(file: BinaryIO, format: str) -> Iterator[_Record]:
    """The whole rows of a file; a CSV's header and a torn last row are left out."""
    file.seek(0)
    if format == "csv":
        file.readline()
    end, kept = file.tell(), b""
    for line in file:
        kept += line
        torn = not line.endswith(b"\n") or (format == "csv" and kept.count(b'"') % 2)
        if not torn:  # in a CSV, a newline within quotes belongs to a name
            end += len(kept)
            yield _Record(kept.decode("utf-8", "backslashreplace"), end, format)
            kept = b""


def _written(text: str) -> str:
    """As it stands in a file: names that are no UTF-8 are escaped."""
    return text.encode("utf-8", "backslashreplace").decode()
