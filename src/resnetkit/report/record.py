"""The facts about a model file that need no evaluation, from its header and its run folder."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..data.tree import is_run
from ..errors import ModelFileError
from ..models.weights import modelfile
from ..models.weights.modelfile import Header

_ADVICE = (
    "Restore the file, or copy model.safetensors to another folder and pass the copy with the data"
)

CORRECTIONS = "corrections.csv"
"""The relabeled and dropped images of a run that was started with verdicts."""


@dataclass(frozen=True)
class Record:
    """A model file, and the files of the run folder it is in, if any.

    Args:
        file: the model file.
        header: its header.
        history: one row of numbers per epoch; empty outside a run folder.
        environment: the machine, the versions and the data path; None outside a run folder.
        metrics: the metrics on the validation split; None unless this is the kept model of a
            finished run.
    """

    file: Path
    header: Header
    history: tuple[dict[str, float], ...] = ()
    environment: dict[str, Any] | None = None
    metrics: dict[str, Any] | None = None

    @property
    def is_run(self) -> bool:
        """Whether the file is in a run folder."""
        return self.environment is not None

    @property
    def is_kept(self) -> bool:
        """Whether the file is the model that its run kept."""
        return self.is_run and self.file.name == "model.safetensors"

    @property
    def name(self) -> str:
        """The name of the run folder if this is its kept model, else the name of the file."""
        path = self.file.absolute()
        return path.parent.name if self.is_kept else path.name

    @property
    def data(self) -> str | None:
        """The path of the data that the run was started with; None outside a run folder."""
        return None if self.environment is None else str(self.environment["data"])

    @property
    def corrections(self) -> Path | None:
        """The corrections that the run was started with, if any."""
        file = self.file.parent / CORRECTIONS
        return file if self.is_run and file.is_file() else None

    @property
    def evaluated_data(self) -> str | None:
        """The data with the run's labels: its split.csv if it has corrections, else ``data``."""
        return self.data if self.corrections is None else str(self.file.parent / "split.csv")


def epoch_rank(row: dict[str, Any]) -> tuple[float, float]:
    """Return the rank of an epoch: by validation accuracy, then by lower validation loss.

    Without validation, later epochs rank higher.
    """
    if "val_accuracy" not in row:
        return float(row["epoch"]), 0.0
    return row["val_accuracy"], -row["val_loss"]


def replaces_kept(
    history: Sequence[dict[str, Any]], images: int, standard_errors: float = 2
) -> bool:
    """Return whether the model of the last epoch replaces the one that a run kept before.

    The last model is kept if its validation accuracy is at most two standard errors below the
    highest so far. With few images, the highest of many accuracies is mostly luck: it is too high,
    and a later model, trained at lower learning rates, is better on other images. The usual rule
    allows one standard error (Breiman et al., Classification and Regression Trees, 1984), but it
    still kept early models whose accuracy was too high (benchmarks/which_epoch.py). The standard
    error is computed with two more correct and two more wrong images, so that it is not 0 if all
    are correct (Agresti and Coull 1998, doi:10.1080/00031305.1998.10480550).

    Args:
        history: one row per epoch.
        images: number of validation images. If there are none, every epoch replaces the previous.
        standard_errors: how many standard errors a later accuracy may be below the highest.
    """
    if not images:
        return True
    highest = max(row["val_accuracy"] for row in history)
    share = (highest * images + 2) / (images + 4)
    standard_error = math.sqrt(share * (1 - share) / (images + 4))
    return bool(history[-1]["val_accuracy"] >= highest - standard_errors * standard_error)


def kept_epoch(history: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the row of the epoch whose model a run kept."""
    kept = [row for row in history if row.get("kept")]
    # Version 0.1 did not write this column, and kept the epoch with the highest rank.
    return kept[-1] if kept else max(history, key=epoch_rank)


def read_record(path: str | Path) -> Record:
    """Read the record of a run folder or a model file, which may be in a run folder.

    Raises:
        ModelFileError: the path is neither a run folder nor a model file, or is damaged.
    """
    path = Path(path)
    file = path / "model.safetensors" if path.is_dir() else path
    if path.is_dir() and not file.is_file():
        inside = sorted(found.parent for found in path.glob("*/model.safetensors"))
        example = f", such as {inside[-1]}," if inside else ""
        raise ModelFileError(
            f"{path} is not a run folder: it has no model.safetensors. Pass a run folder"
            f"{example} or a model file first, then the data"
        )
    header = modelfile.read_header(file)
    folder = file.parent
    if not is_run(folder):
        return Record(file, header)
    environment = _read_object(folder / "environment.json")
    if "data" not in environment:
        raise ModelFileError(f"{folder / 'environment.json'} is damaged: no key 'data'. {_ADVICE}")
    has_history = (folder / "history.csv").is_file()
    record = Record(
        file,
        header,
        history=_read_history(folder / "history.csv") if has_history else (),
        environment=environment,
    )
    metrics = folder / "metrics.json"
    if not (record.is_kept and metrics.is_file()):
        return record
    return replace(record, metrics=_read_object(metrics))


def _read_object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ModelFileError(f"{path} cannot be read: {error}. {_ADVICE}") from error
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise ModelFileError(f"{path} is damaged: it holds a {kind}, not an object. {_ADVICE}")
    return content


def _read_history(path: Path) -> tuple[dict[str, float], ...]:
    try:
        with path.open(encoding="utf-8", newline="") as lines:
            rows = list(csv.DictReader(lines, strict=True))
        history = tuple({key: float(value) for key, value in row.items()} for row in rows)
    except (ValueError, TypeError, OSError, csv.Error) as error:  # TypeError: wrong number of cells
        raise ModelFileError(f"{path} cannot be read: {error}. {_ADVICE}") from error
    if any("epoch" not in row for row in history):
        raise ModelFileError(f"{path} is damaged: it has no column 'epoch'. {_ADVICE}")
    return history
