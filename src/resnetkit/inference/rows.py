"""Answers as rows of a table, JSON Lines or CSV, and files of rows that can be resumed."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from ..errors import OutputError
from ..storage import csv_line, csv_text
from ..text import printable
from .images import ImageLike, source_name
from .prediction import BATCH_SIZE, FEW, UNKNOWN, Prediction

FORMATS = ("table", "jsonl", "csv")
COLUMNS = ("source", "class", "probability", "model", "error")
_FIRST_BYTES = b'{"source": '  # of every row in JSON Lines


def format_header(format: str, columns: Sequence[str] = COLUMNS) -> str:
    """Return the header line of a format; only CSV has one."""
    return ",".join(columns) + "\n" if format == "csv" else ""


def columns_for(coverage: float | None, false_alarms: float | None) -> tuple[str, ...]:
    """Return the columns of CSV rows. A value that was not requested has no column."""
    sets = ("set",) if coverage is not None else ()
    return COLUMNS + sets + (("strangeness",) if false_alarms is not None else ())


def format_row(answer: Prediction, format: str) -> str:
    """Return one answer as a row of text with its newline. In CSV, a set is a JSON list."""
    if format == "jsonl":
        return json.dumps(answer.to_dict(), ensure_ascii=False) + "\n"
    if format == "csv":
        values = answer.to_dict()
        if "set" in values:
            values["set"] = json.dumps(values["set"], ensure_ascii=False)
        return csv_line(values[n] for n in columns_for(answer.coverage, answer.false_alarms))
    if answer.error is not None:
        return f"{printable(answer.source)}  ERROR  {printable(answer.error)}\n"
    if answer.probability is None:  # a network without a head
        return f"{printable(answer.source)}  no class\n"
    others = "  ".join(f"{printable(name)} {p:.1%}" for name, p in answer.top[1:])
    best = f"{printable(answer.class_name or '')}  {answer.probability:.2%}"
    row = f"{printable(answer.source)}  {best}" + (f"   ({others})" if others else "")
    if answer.coverage is not None:
        row += f"   set: {', '.join(map(printable, answer.class_set))}"
    if answer.strangeness is not None:
        row += f"   strangeness: {answer.strangeness:.1%}"
    return row + "\n"


class RowsFile:
    """A file of rows, new or resumed.

    Resuming drops an incomplete last row. All rows are compared with the model, the images, the
    threshold and the share of false alarms. The rows of the last batch are also computed again and
    compared, which detects other changes, such as a different coverage or engine, if they change
    any of these rows. With the same options, the result is identical to that of an
    uninterrupted run.

    Args:
        path: the file.
        format: ``jsonl`` or ``csv``.
        digest: the digest of the model, which every row contains.
        resume: continue the file; if it is missing or empty, start it.
        columns: the columns of a CSV file; see `columns_for`.
        threshold, false_alarms: as in `Predictor.__call__`; the rows must have been written with
            the same values.
        classes: the class names of the model.

    Attributes:
        count: the number of complete rows that the file had.
        first: index of the image to resume with, which is the first of a batch.
        failed: the number of rows before ``first`` that have an error.

    Raises:
        OutputError: the file exists and ``resume`` is False, it was written by another model or
            program or with other settings, or it cannot be written.
    """

    def __init__(
        self,
        path: Path,
        format: str,
        digest: str,
        resume: bool = False,
        columns: Sequence[str] = COLUMNS,
        threshold: float = 0.0,
        false_alarms: float | None = None,
        classes: Sequence[str] = (),
    ) -> None:
        self.path = path
        self._columns = columns
        self._threshold = threshold
        self._false_alarms = false_alarms
        self._has_unknown = UNKNOWN in classes
        self._header = format_header(format, columns)
        self.format = format
        self.count = 0
        self._to_compare: list[str] = []  # rows of the last batch
        errors: list[int] = []
        if path.exists() and not resume:
            raise OutputError(f"{path} exists. Add --resume, name another file, or remove this one")
        end = self._scan_rows(digest, errors) if path.exists() else 0
        self.first = max(0, self.count - 1) // BATCH_SIZE * BATCH_SIZE
        self.failed = sum(number < self.first for number in errors)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("r+b" if path.exists() else "w+b")
            records = islice(_read_records(self._file, format), self.first, None)
            self._to_compare = [record.text for record in records]
            del self._to_compare[self.count - self.first :]
            self._file.truncate(end)
            self._file.seek(end)
        except OSError as error:
            raise OutputError(f"{path} cannot be written ({error.strerror})") from error
        if end == 0:
            self._file.write(self._header.encode())  # flushed with the first row

    def __enter__(self) -> RowsFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, *unused: object) -> None:
        try:
            self._file.close()
        except OSError as error:  # flushing failed; if another error is being raised, keep that one
            if kind is None:
                raise OutputError(f"{self.path} cannot be written ({error.strerror})") from error

    def _scan_rows(self, digest: str, errors: list[int]) -> int:
        """Count the complete rows; return the byte offset after the last of them.

        The numbers of the rows with an error are appended to ``errors``.
        """
        end = 0
        with self.path.open("rb") as file:
            if self.format == "csv":
                line = file.readline()
                if not line.endswith(b"\n") and self._header.encode().startswith(line):
                    return 0
                if line != self._header.encode():
                    found = line.decode("utf-8", "backslashreplace").rstrip()
                    if found.startswith(",".join(COLUMNS)):
                        raise OutputError(
                            f"{self.path} has the columns {found}; expected "
                            f"{self._header.rstrip()}. Resume with the same --coverage and "
                            "--false-alarms, or name another file"
                        )
                    raise self._foreign_file()
                end = file.tell()
                file.seek(0)
            for record in _read_records(file, self.format):
                row = record.parse(self.path, self.count + 1, self._columns)
                if row.model != digest:
                    raise OutputError(
                        f"{self.path} has answers from model {row.model}, but this model is "
                        f"{digest}. Resume with that model, or name another file"
                    )
                if row.error:
                    errors.append(self.count)
                else:
                    self._check_class(row)
                self.count += 1
                end = record.end
            if end == 0:  # whatever the file holds must be part of the first row
                file.seek(0)
                start = file.read(len(_FIRST_BYTES))
                if start != _FIRST_BYTES[: len(start)]:
                    raise self._foreign_file()
        return end

    def _check_class(self, row: _Row) -> None:
        """Check that the class of the next row agrees with the threshold and false alarms."""
        expected = Prediction(
            row.source,
            (("", row.probability),),
            row.model,
            threshold=self._threshold,
            false_alarms=self._false_alarms,
            strangeness=row.strangeness,
        ).class_name
        is_unknown = row.class_name == UNKNOWN
        if is_unknown == (expected == UNKNOWN) or (is_unknown and self._has_unknown):
            return
        alarms = "" if self._false_alarms is None else f" and --false-alarms {self._false_alarms:g}"
        raise OutputError(
            f"{self.path} was written with different settings: row {self.count + 1} has the class "
            f"{printable(row.class_name)} with probability {row.probability:.6g}, which does not "
            f"agree with --threshold {self._threshold:g}{alarms}. Resume with the options of the "
            "first run, or name another file"
        )

    def _foreign_file(self) -> OutputError:
        return OutputError(
            f"{self.path} was not written by resnet predict as {self.format}. Name another file"
        )

    def check_sources(self, images: Iterable[ImageLike]) -> Iterator[ImageLike]:
        """Yield ``images``, comparing those that already have rows with their rows.

        Raises:
            OutputError: the order is different, or there are fewer images than rows.
        """
        source = iter(images)
        with self.path.open("rb") as file:
            records = islice(_read_records(file, self.format), self.count)
            for number, record in enumerate(records, 1):
                image = next(source, None)
                given = "no image" if image is None else _as_written(source_name(image))
                recorded = _as_written(record.parse(self.path, number, self._columns).source)
                if image is None or given != recorded:
                    raise OutputError(
                        f"{self.path}: row {number} is for {recorded}, but the input has {given} "
                        "there. Resume with the same images in the same order, or name another "
                        "file"
                    )
                yield image
        yield from source

    def write(self, answer: Prediction) -> None:
        """Append a row; if the image already has one, check that it is the same.

        Raises:
            OutputError: the row differs, or it cannot be written.
        """
        text = _as_written(format_row(answer, self.format))
        if self._to_compare:
            recorded = self._to_compare.pop(0)
            if recorded != text:
                raise OutputError(
                    f"{self.path} was written with different settings or images. It has\n"
                    f"  {recorded.rstrip()}\nbut the new row is\n  {text.rstrip()}\n"
                    f"With {FEW} images or more, a model file may run on a different engine. If "
                    "there were fewer when the file was started, add --engine eager; otherwise "
                    "resume with the options and images of the first run, or name another file"
                )
            return
        try:
            self._file.write(text.encode())
            self._file.flush()
        except OSError as error:
            raise OutputError(f"{self.path} cannot be written ({error.strerror})") from error


class _Row(NamedTuple):
    """The values of a row. If it has an error, the class and the numbers are meaningless."""

    source: str
    class_name: str
    probability: float
    model: str
    error: str | None
    strangeness: float


class _Record(NamedTuple):
    """A complete row of a file."""

    text: str
    end: int  # the byte offset after it
    format: str

    def parse(self, path: Path, number: int, columns: Sequence[str]) -> _Row:
        """Return the values of the row."""
        try:
            if self.format == "csv":
                cells = next(csv.reader(io.StringIO(self.text, newline="")))
                content: dict[str, Any] = dict(zip(columns, cells, strict=False))
                content["source"] = csv_text(content["source"])
            else:
                content = json.loads(self.text)
            return _Row(
                str(content["source"]),
                str(content["class"]),
                probability=float(content["probability"] or 0),
                model=str(content["model"]),
                error=content["error"],
                strangeness=float(content.get("strangeness") or 0),
            )
        except (ValueError, KeyError, TypeError, AttributeError, StopIteration, csv.Error):
            raise OutputError(
                f"{path}: row {number} was not written by resnet predict "
                f"as {self.format}: {self.text[:60].rstrip()!r}"
            ) from None


def _read_records(file: BinaryIO, format: str) -> Iterator[_Record]:
    """Yield the complete rows of a file, without the CSV header or an incomplete last row."""
    file.seek(0)
    if format == "csv":
        file.readline()
    end = file.tell()
    pending = b""
    for line in file:
        pending += line
        # In CSV a newline within quotes belongs to the cell.
        open_quote = format == "csv" and pending.count(b'"') % 2
        if line.endswith(b"\n") and not open_quote:
            end += len(pending)
            yield _Record(pending.decode("utf-8", "backslashreplace"), end, format)
            pending = b""


def _as_written(text: str) -> str:
    """Return the text as it is written to files, with escapes for bytes that are not UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode()
