"""What is known of a model file beside an evaluation: its header, and the run that it lies in."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data.tree import is_run
from ..errors import ModelFileError
from ..models.weights import modelfile
from ..models.weights.modelfile import Header


@dataclass(frozen=True)
class Record:
    """A model file, and of the run that made it what lies beside it (else empty).

    Args:
        file: the model file.
        header: what it says of itself.
        history: a row for each epoch; numbers.
        environment: machine, versions, and where the data lay.
        metrics: of the validation part; None where the run did not end, or there is none.
    """

    file: Path
    header: Header
    history: tuple[dict[str, float], ...] = ()
    environment: dict[str, Any] | None = None
    metrics: dict[str, Any] | None = None

    @property
    def is_run(self) -> bool:
        """Whether the file lies in the folder of a run."""
        return self.environment is not None

    @property
    def name(self) -> str:
        """How a person calls it: the run's folder, or the file."""
        path = self.file.absolute()
        return path.parent.name if self.is_run else path.name

    @property
    def data(self) -> str | None:
        """Where the data lay that the run was begun with."""
        return None if self.environment is None else str(self.environment["data"])


def epoch_rank(row: dict[str, Any]) -> tuple[float, float]:
    """Return the rank of an epoch: validation accuracy, and at equal accuracy the lower loss."""
    return row["val_accuracy"], -row["val_loss"]


def best_epoch(history: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the row of the epoch whose model is kept: the first of the highest rank."""
    return max(history, key=epoch_rank)


def read(path: str | Path) -> Record:
    """The record of a run's folder, or of a model file, which may lie in such a folder.

    Raises:
        ModelFileError: it is neither, or is damaged.
    """
    path = Path(path)
    file = path / "model.safetensors" if path.is_dir() else path
    if path.is_dir() and not file.is_file():
        raise ModelFileError(
            f"{path} is no run: it holds no model.safetensors. Expected the folder of a run or a "
            "model file first, then the data"
        )
    header, folder = modelfile.read_header(file), file.parent
    if not is_run(folder):
        return Record(file, header)
    history: tuple[dict[str, float], ...] = ()
    if (folder / "history.csv").is_file():
        with (folder / "history.csv").open(encoding="utf-8", newline="") as lines:
            history = tuple({k: float(v) for k, v in row.items()} for row in csv.DictReader(lines))
    metrics = folder / "metrics.json"
    return Record(
        file,
        header,
        history,
        json.loads((folder / "environment.json").read_text(encoding="utf-8")),
        json.loads(metrics.read_text(encoding="utf-8")) if metrics.is_file() else None,
    )
