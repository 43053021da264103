"""Evaluate an exported file on photos with known classes, without PyTorch."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..data.folder import Split
from ..errors import DataError
from ..evaluation.metrics import compute_metrics
from ..evaluation.selection import read_dataset_for, select_split
from .predictor import ExportedPredictor


@dataclass(frozen=True)
class ExportedEvaluation:
    """The result of evaluating an exported file on a split; the fields are as in `Evaluation`.

    Args:
        samples: the images that were evaluated, and their labels.
        split: the name of the split.
        classes: the class names.
        logits: ``(n, classes)`` float32.
        metrics: the content of ``metrics.json``.
        notes: remarks for the user.
    """

    samples: Split
    split: str
    classes: tuple[str, ...]
    logits: np.ndarray
    metrics: dict[str, Any]
    notes: tuple[str, ...] = ()


def evaluate_exported(
    file: str | os.PathLike[str],
    data: str | Path,
    split: str | None = None,
    *,
    workers: int | None = None,
    progress: Callable[[int], Callable[[str], None]] = lambda total: lambda text: None,
) -> ExportedEvaluation:
    """Evaluate an exported file on a dataset, as `evaluation.evaluate.evaluate` does.

    Raises:
        ArtefactError: ``file`` is not a valid exported file.
        DataError: the split does not exist, or has a class that the model does not know.
        ImageError: an image cannot be read.
    """
    predictor = ExportedPredictor(file)
    dataset = read_dataset_for(predictor.manifest, data)
    selected = select_split(dataset, split, predictor.manifest)
    paths = [selected.samples.path(i) for i in range(len(selected.samples))]
    advance = progress(len(paths))
    logits = []
    for path, answer in zip(paths, predictor.outputs(paths, workers), strict=True):
        if isinstance(answer, DataError):
            raise answer
        logits.append(answer["logits"])
        advance(str(path))
    scores = np.stack(logits)
    side = predictor.manifest.preprocessing.crop_size
    views = {"image_size": side, "crops": 1, "flip": False}
    views["resize_size"] = predictor.manifest.preprocessing.resize_size
    measured = {
        "split": selected.split,
        "views": views,
        **compute_metrics(scores, selected.samples.labels.astype(np.int64), predictor.classes),
    }
    return ExportedEvaluation(
        selected.samples,
        selected.split,
        predictor.classes,
        scores,
        measured,
        dataset.remarks + selected.notes,
    )
