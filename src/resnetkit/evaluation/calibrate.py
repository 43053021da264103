"""Fit the calibration data of a model file, and write the file with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from .. import runtime
from ..calibration import MAX_NUMBERS, MAX_SCORES, Calibration, Matrix, has_room
from ..data.dataset import Images
from ..data.files import file_digest
from ..errors import DataError
from ..models.weights import modelfile
from ..processes import default_workers
from .calibration import fit_temperature
from .conformal import summarize_scores, true_scores
from .evaluate import (
    BATCH_SIZE,
    Evaluation,
    Progress,
    evaluate_split,
    predict_features,
)
from .selection import read_dataset_for, select_split
from .strangeness import FeatureModel, balanced_indices, fit_count
from .views import Views, batch_count

MOST_OVERLAP = 0.01
"""Largest share of the validation images that may also be training images: copies are common."""


def _ignore(text: str) -> None:
    pass


@runtime.pytorch_defaults()
def write_calibration(
    model_file: Path,
    validation: Evaluation,
    train: Images,
    *,
    out: Path,
    seed: int,
    device: str = "auto",
    workers: int | None = None,
    advance: Callable[[str], None] = _ignore,
) -> None:
    """Fit a model's `Calibration`, and write the model file with it.

    Nothing else in the file changes. The same model and images give the same bytes on the
    same machine.

    Args:
        model_file: the model file.
        validation: the model's evaluation on the validation split, with features.
        train: the images that the model was trained on, with the preprocessing of the model file.
            Only a bounded number of them is read; see `balanced_indices`.
        out: the file to write; it may be ``model_file``.
        seed: the seed for selecting the training images.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        workers: threads that read images; by default one per core.
        advance: called after each batch of training images.

    Raises:
        ImageError: an image cannot be read.
        OutputError: the file cannot be written.
    """
    assert validation.features is not None
    assert has_room(validation.logits.shape[1], validation.features.shape[1])
    model, header = modelfile.read(model_file)
    torch_device = runtime.pick(device, "fp32").device
    workers = default_workers() if workers is None else workers
    indices = balanced_indices(train.split.labels, len(header.classes), seed)
    chosen = train.select(train.split.select(indices))
    layout = runtime.memory_format(model, torch_device)
    model = model.to(torch_device, memory_format=layout)  # type: ignore[call-overload]
    features, logits = predict_features(model, chosen, torch_device, workers, advance)
    feature_model = FeatureModel.fit(features.numpy(), logits.numpy(), chosen.labels().numpy())
    val_logits = validation.logits.numpy()
    strangeness = feature_model.strangeness(validation.features.numpy(), val_logits)
    scores = true_scores(val_logits, validation.labels.numpy())
    calibration = Calibration(
        count=len(scores),
        temperature=fit_temperature(validation.logits, validation.labels),
        conformal=tuple(summarize_scores(scores, MAX_SCORES)),
        strangeness=tuple(summarize_scores(strangeness, MAX_SCORES)),
        distance_scale=feature_model.scale,
        means=Matrix.from_array(feature_model.means),
        directions=Matrix.from_array(feature_model.directions),
    )
    header = replace(header, calibration=calibration)
    modelfile.write(out, model.state_dict(), header)


def add_calibration(
    model_file: Path,
    data: Path,
    out: Path,
    *,
    device: str = "auto",
    workers: int | None = None,
    progress: Progress = lambda total: _ignore,
) -> None:
    """Fit the `Calibration` of a model file on a dataset, and write a copy of the file with it.

    This is for model files without calibration data: converted ones, and those from older versions.

    Args:
        model_file: the model file, which is not changed.
        data: a folder or manifest with a training and a validation split. In a flat folder, these
            are the images that training used, identified by content.
        out: the file to write.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        workers: threads that read images; by default one per core.
        progress: takes the number of batches; returns a function to call after each batch.

    Raises:
        ModelFileError: the file is not a valid model file.
        DataError: there is no training or validation split, a class has no training images, or the
            model was trained on the validation images.
        ImageError: an image cannot be read.
        OutputError: ``out`` cannot be written.
    """
    header = modelfile.read_header(model_file)
    modelfile.check_has_classes(header, model_file)
    dataset = read_dataset_for(header, data)
    val = select_split(dataset, "val", header).samples
    trained_on = frozenset(header.data.get("parts", {}).get("train", {}).get("digests", ()))
    overlap = sum(file_digest(val.path(i)) in trained_on for i in range(len(val)))
    if overlap > MOST_OVERLAP * len(val):
        raise DataError(
            f"{model_file} was trained on {overlap} of the {len(val)} validation images in {data}. "
            "It is overconfident on them, so the calibration would promise too much. Name the "
            "dataset with the split that the model was trained on, or one with other validation "
            "images"
        )
    train = select_split(dataset, "train", header).samples
    # Training may have taken its validation images from the folder ``train``.
    held_out = set(val.paths)
    train = train.select(np.array([i for i, p in enumerate(train.paths) if p not in held_out], int))
    counts = train.counts(len(header.classes))
    missing = [name for name, n in zip(header.classes, counts, strict=True) if not n]
    if missing:
        raise DataError(
            f"{data} has no training images of {', '.join(map(repr, missing[:5]))}"
            f"{' and others' if len(missing) > 5 else ''}, but strangeness is measured from the "
            "training images of each class. Add images, or name the dataset the model was trained "
            "on"
        )
    validation = evaluate_split(
        model_file,
        val,
        "val",
        device=device,
        workers=workers,
        advance=progress(batch_count(len(val), Views())),
        with_features=True,
    )
    assert validation.features is not None
    features = validation.features.shape[1]
    if not has_room(len(header.classes), features):
        raise DataError(
            f"{len(header.classes):,} classes with {features:,} features each are too many for the "
            f"header of a model file, which holds up to {MAX_NUMBERS:,} numbers"
        )
    write_calibration(
        model_file,
        validation,
        Images(train, header.preprocessing),
        out=out,
        seed=int(header.recipe.get("seed", 0)),
        device=device,
        workers=workers,
        advance=progress(-(-min(len(train), fit_count(len(header.classes))) // BATCH_SIZE)),
    )
