"""Model x data -> predictions and metrics: always the eager network in fp32. Prints nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .. import runtime
from ..data.dataset import Images
from ..data.device_loader import to_device
from ..data.folder import Split
from ..data.loader import Loader
from ..data.transforms import normalize
from ..models.modes import in_mode
from ..models.weights import modelfile
from . import metrics
from .calibration import fit_temperature, reliability
from .choice import choose, read_for
from .views import Views, at_size, batches, predict_views

BATCH_SIZE = 64
"""Pictures in a batch of evaluation, in training and after it, so that both give the same bits."""


def _silent(text: str) -> None:
    pass


@dataclass(frozen=True)
class Evaluation:
    """``part`` is what was evaluated, ``logits`` ``(n, classes)`` float32 belong to it, row by
    row; ``metrics`` is what ``metrics.json`` holds; ``notes`` are for the reader."""

    samples: Split
    split: str
    classes: tuple[str, ...]
    logits: Tensor
    metrics: dict[str, Any]
    notes: tuple[str, ...] = ()

    @property
    def labels(self) -> Tensor:
        """``(n,)`` int64: the true classes."""
        return torch.from_numpy(self.samples.labels.astype(np.int64))


def predict_logits(
    model: nn.Module,
    images: Images,
    device: torch.device,
    workers: int,
    advance: Callable[[str], None] = _silent,
    *,
    batch_size: int = BATCH_SIZE,
    precision: str = "fp32",
) -> Tensor:
    """Run a network in eval mode over pictures; ``(n, classes)`` float32 on the CPU.

    ``advance`` is called after each batch. Each module is left in the mode that it came in.

    Args:
        precision: ``fp32``, which is exact on every card; ``bf16`` or ``fp16`` under autocast.

    Raises:
        PictureError: a picture cannot be read.
    """
    layout = runtime.memory_format(model, device, precision)
    rows: list[Callable[[], Tensor]] = []
    coming = Loader(images, batch_size, workers).evaluation()
    autocast = runtime.Runtime(device, precision).autocast()
    evaluating = in_mode(model, training=False)
    with evaluating, torch.inference_mode(), autocast, runtime.full_fp32(device):
        for batch in to_device(coming, device):
            inputs = normalize(batch.images, images.preprocessing)
            logits = model(inputs.contiguous(memory_format=layout))
            rows.append(runtime.fetch(logits.float()))
            advance("")
        found = [row() for row in rows]
    return torch.cat(found).clone()


Progress = Callable[[int], Callable[[str], None]]
"""Given the number of batches, gives what to call after each."""


@runtime.pytorch_defaults()
def evaluate(
    model_file: str | Path,
    data: str | Path,
    split: str | None = None,
    *,
    image_size: int | None = None,
    crops: int = 1,
    flip: bool = False,
    calibrate: bool = False,
    device: str = "auto",
    workers: int | None = None,
    progress: Progress = lambda total: _silent,
) -> Evaluation:
    """Measure a model file on a data set.

    Args:
        data: a folder or manifest, as for training; classes are matched by name, and folders that
            are called by WordNet ids by the published name of these.
        split: ``train``, ``val``, ``test`` or ``all``; by default test, else val, else all. Of a
            flat folder, ``train`` and ``val`` are the pictures that training took for them,
            found again by their contents.
        image_size: another picture size than the model file's, in pixels.
        crops, flip: several views of each picture, whose probabilities are averaged; see `Views`.
        calibrate: also fit a temperature on the validation split, and say in
            ``metrics["temperature"]`` what it would do here. The logits and every other number
            stay without it, and so does the model file.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        workers: threads that read pictures; by default one a core.

    Raises:
        ModelFileError: the file is no model file.
        RecipeError: a picture size or number of crops that there is not.
        DataError: there is no such split, or it has a class that the network does not know.
        PictureError: a picture cannot be read.
    """
    header = modelfile.read_header(model_file)
    modelfile.check_has_classes(header, model_file)
    dataset, views = read_for(header, data), Views(crops, flip)
    chosen = choose(dataset, split, header)

    def measure(samples: Split, name: str) -> Evaluation:
        return evaluate_split(
            model_file,
            samples,
            name,
            image_size=image_size,
            views=views,
            device=device,
            workers=workers,
            advance=progress(batches(len(samples), views)),
        )

    found = measure(chosen.samples, chosen.split)
    notes = dataset.remarks + chosen.notes + views.notes(at_size(header.preprocessing, image_size))
    if calibrate:
        fitted = found
        if chosen.split != "val":
            fitted = measure(choose(dataset, "val", header).samples, "val")
        else:
            notes += ("the temperature was fitted on the pictures that it is measured on",)
        found = replace(found, metrics={**found.metrics, "temperature": _temper(fitted, found)})
    return replace(found, notes=notes)


@runtime.pytorch_defaults()
def evaluate_split(
    model_file: str | Path,
    samples: Split,
    split: str,
    *,
    image_size: int | None = None,
    views: Views = Views(),  # noqa: B008 (it is frozen)
    device: str = "auto",
    workers: int | None = None,
    advance: Callable[[str], None] = _silent,
) -> Evaluation:
    """Measure a model file on the pictures of ``part``, whose labels are the network's."""
    network, header = modelfile.read(model_file)
    chosen = runtime.pick(device, "fp32").device
    workers = runtime.default_workers() if workers is None else workers
    network = network.to(chosen, memory_format=runtime.memory_format(network, chosen))  # type: ignore[call-overload]
    preprocessing = at_size(header.preprocessing, image_size)
    images = Images(samples, preprocessing)
    if views.count == 1:
        logits = predict_logits(network, images, chosen, workers, advance)
    else:
        with runtime.full_fp32(chosen):
            logits = predict_views(network, images, views, chosen, workers, advance)
    seen = {
        "image_size": preprocessing.crop_size,
        "resize_size": preprocessing.resize_size,
        "crops": views.crops,
        "flip": views.count > 1,
    }
    measured = {
        "split": split,
        "views": seen,
        **metrics.compute(logits, images.labels(), header.classes),
    }
    if "published" in header.metrics:
        measured["published"] = header.metrics["published"]
    return Evaluation(samples, split, header.classes, logits, measured)


def _temper(fitted: Evaluation, measured: Evaluation) -> dict[str, Any]:
    """A temperature fitted on one evaluation, and what it does to the loss and the calibration of
    another."""
    value = fit_temperature(fitted.logits, fitted.labels)
    after = measured.logits / value
    return {
        "value": value,
        "fitted_on": fitted.split,
        "pictures": len(fitted.samples),
        "ece_before": measured.metrics["calibration"]["ece"],
        "ece_after": reliability(after, measured.labels)["ece"],
        "loss_before": measured.metrics["loss"],
        "loss_after": metrics.accuracy_and_loss(after, measured.labels)[1],
    }


def confusions(evaluation: Evaluation) -> Sequence[tuple[str, str, int]]:
    """(truth, prediction, count) of the wrong answers, the most frequent first."""
    matrix = metrics.counts_of(evaluation.metrics["confusion_matrix"])
    wrong = [
        (evaluation.classes[i], evaluation.classes[j], int(matrix[i, j]))
        for i, j in np.argwhere(matrix).tolist()
        if i != j
    ]
    return sorted(wrong, key=lambda item: -item[2])
