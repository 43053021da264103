"""The folder of a run: claimed once, filled while it goes, complete at the end."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from .. import storage
from ..data.folder import DataSet
from ..data.loader import Loader
from ..data.transforms import stack
from ..errors import OutputError
from ..evaluation.evaluate import Evaluation
from ..models.modelfile import Header
from ..report import plots
from ..runtime import environment
from .plan import Prepared
from .recipe import Recipe


class RunFolder:
    """Where a run writes. What each file holds is listed in the README."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.model = path / "model.safetensors"
        self.last = path / "last.safetensors"

    @classmethod
    def claim(cls, out: str | os.PathLike[str] | None, name: str) -> RunFolder:
        """Make the folder: ``out`` itself, or ``runs/name``, ``runs/name-2``, ... the first free.

        Raises:
            OutputError: ``out`` holds something, or cannot be made.
        """
        try:
            if out is not None:
                path = Path(out)
                storage.refuse_used(path)
                path.mkdir(parents=True, exist_ok=True)
                return cls(path)
            number = 1
            while True:
                path = Path("runs") / (name if number == 1 else f"{name}-{number}")
                try:
                    path.mkdir(parents=True)  # fails where another run was first
                    return cls(path)
                except FileExistsError:
                    number += 1
        except OutputError:
            raise
        except OSError as error:
            raise OutputError(f"cannot write to {error.filename}: {error.strerror}") from error

    def write_text(self, name: str, text: str) -> None:
        storage.write_text(self.path / name, text)

    def write_json(self, name: str, value: Any) -> None:
        storage.write_json(self.path / name, value)

    def write_rows(self, name: str, rows: Sequence[dict[str, Any]]) -> None:
        """A CSV file of ``rows``, whole at any time."""
        text = io.StringIO()
        writer = csv.DictWriter(text, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        self.write_text(name, text.getvalue())

    def write_split(self, data: DataSet) -> None:
        """``split.csv``: path, label and split of every picture; a manifest that can be read."""
        rows = [
            {"path": path, "label": data.classes[label], "split": split}
            for split, part in data.parts.items()
            for path, label in zip(part.paths, part.labels, strict=True)
        ]
        self.write_rows("split.csv", rows)


def write_beginning(run: RunFolder, prepared: Prepared, recipe: Recipe) -> None:
    """What is known before the first step: recipe, classes, split, environment, and the inputs
    as the network will see them."""
    run.write_text("recipe.yaml", recipe.to_yaml())
    run.write_json("classes.json", list(prepared.data.classes))
    run.write_json("environment.json", environment())
    if prepared.made_split:
        run.write_split(prepared.data)

    classes = prepared.data.classes
    loader = Loader(prepared.train, min(16, recipe.batch_size), workers=0)
    first = next(loader.training(recipe.augmentation(), recipe.train_size(0), recipe.seed, 0))
    captions = [classes[label] for label in first.labels]
    title = "Training pictures of the first epoch, as the network sees them"
    plots.pictures(_shown(first.images), captions, run.path / "train_batch.png", title)
    spread = np.linspace(0, len(prepared.val) - 1, min(16, len(prepared.val))).astype(int)
    crops = [prepared.val.preprocessing.crop(prepared.val[int(i)]) for i in spread]
    captions = [classes[prepared.val.part.labels[i]] for i in spread]
    title = "Validation pictures, as the network sees them"
    plots.pictures(_shown(stack(crops)), captions, run.path / "val_batch.png", title)


def _shown(images: Tensor) -> list[np.ndarray]:
    return [image.permute(1, 2, 0).numpy() for image in images]


def make_header(
    prepared: Prepared, recipe: Recipe, options: dict[str, Any], row: dict[str, Any]
) -> Header:
    """The header of the model file after the epoch that ``row`` of the history describes."""
    return Header(
        architecture=recipe.model,
        options=options,
        classes=prepared.data.classes,
        preprocessing=recipe.preprocessing(),
        metrics={key: row[key] for key in ("epoch", "val_accuracy", "val_loss")},
        recipe=recipe.model_dump(mode="json"),
        data={
            "name": prepared.data.name,
            "parts": {
                name: {"count": len(digests), "digests": sorted(digests)}
                for name, digests in prepared.digests.items()
            },
        },
    )


def epoch_line(row: dict[str, Any], timing: dict[str, Any], epochs: int) -> str:
    return (
        f"epoch {row['epoch']:>{len(str(epochs))}}/{epochs}  {row['image_size']:>3} px  "
        f"loss {row['train_loss']:.3f}  val loss {row['val_loss']:.3f}  "
        f"val accuracy {row['val_accuracy']:7.2%}  "
        f"{timing['images_per_second']:5.0f} img/s  {timing['seconds']:5.1f} s"
    )


def write_end(
    run: RunFolder, recipe: Recipe, history: Sequence[dict[str, Any]], evaluation: Evaluation
) -> None:
    """The evidence: metrics and figures of the best model, measured from its file."""
    run.write_json("metrics.json", evaluation.metrics)
    title = f"{run.path.name}: {recipe.model}, recipe {recipe.name}"
    plots.curves(history, run.path / "curves.png", title)
    accuracy, pictures = evaluation.metrics["accuracy"], evaluation.metrics["pictures"]
    plots.confusion_matrix(
        evaluation.metrics["confusion_matrix"],
        evaluation.classes,
        run.path / "confusion_matrix.png",
        f"{evaluation.split}: {accuracy:.2%} of {pictures} pictures right",
    )
