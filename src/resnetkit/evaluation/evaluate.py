"""Model file and data -> logits and metrics, always with the eager fp32 model. Prints nothing."""

from __future__ import annotations

from collections.abc import Callable
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
from ..processes import default_workers
from . import metrics
from .calibration import fit_temperature, reliability
from .selection import read_dataset_for, select_split
from .views import Views, batch_count, predict_views, scale_preprocessing

BATCH_SIZE = 64
"""Images per evaluation batch, both during and after training, so that both give the same bits."""


def _ignore(text: str) -> None:
    pass


@dataclass(frozen=True)
class Evaluation:
    """The result of evaluating a model file on a split.

    Args:
        samples: the images that were evaluated, and their labels.
        split: the name of the split.
        classes: the class names.
        logits: ``(n, classes)`` float32, one row per image of ``samples``.
        metrics: the content of ``metrics.json``.
        notes: remarks for the user.
        features: ``(n, C)`` float32, the inputs of the last layer, if they were requested.
        data: the dataset that was passed to `evaluate`; None if only images were evaluated.
    """

    samples: Split
    split: str
    classes: tuple[str, ...]
    logits: Tensor
    metrics: dict[str, Any]
    notes: tuple[str, ...] = ()
    features: Tensor | None = None
    data: str | Path | None = None

    @property
    def labels(self) -> Tensor:
        """The true classes, ``(n,)`` int64."""
        return torch.from_numpy(self.samples.labels.astype(np.int64))


def predict_logits(
    model: nn.Module,
    images: Images,
    device: torch.device,
    workers: int,
    advance: Callable[[str], None] = _ignore,
    *,
    batch_size: int = BATCH_SIZE,
    precision: str = "fp32",
) -> Tensor:
    """Run a model in eval mode over images; return ``(n, classes)`` float32 on the CPU.

    Every module's mode is restored afterwards.

    Args:
        advance: called after each batch.
        precision: ``fp32``, without TF32 on any GPU; or ``bf16`` or ``fp16`` under autocast.

    Raises:
        ImageError: an image cannot be read.
    """
    layout = runtime.memory_format(model, device, precision)
    pending: list[Callable[[], Tensor]] = []
    batches = Loader(images, batch_size, workers).evaluation()
    autocast = runtime.Runtime(device, precision).autocast()
    eval_mode = in_mode(model, training=False)
    with eval_mode, torch.inference_mode(), autocast, runtime.full_fp32(device):
        for batch in to_device(batches, device):
            inputs = normalize(batch.images, images.preprocessing)
            logits = model(inputs.contiguous(memory_format=layout))
            pending.append(runtime.read_later(logits.float()))
            advance("")
        rows = [fetched() for fetched in pending]
    return torch.cat(rows).clone()


def predict_features(
    model: nn.Module,
    images: Images,
    device: torch.device,
    workers: int,
    advance: Callable[[str], None] = _ignore,
    *,
    batch_size: int = BATCH_SIZE,
    precision: str = "fp32",
) -> tuple[Tensor, Tensor]:
    """Run a model as `predict_logits` does; return features ``(n, C)`` and logits, both float32.

    The features are the input of the last layer.
    """
    pending: list[Callable[[], Tensor]] = []
    head: nn.Module = model.fc  # type: ignore[assignment]
    hook = head.register_forward_pre_hook(
        lambda _, inputs: pending.append(runtime.read_later(inputs[0].float()))
    )
    with hook:  # removes the hook at the end
        logits = predict_logits(
            model, images, device, workers, advance, batch_size=batch_size, precision=precision
        )
    return torch.cat([read() for read in pending]).clone(), logits


Progress = Callable[[int], Callable[[str], None]]
"""Takes the number of batches; returns the function to call after each batch."""


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
    progress: Progress = lambda total: _ignore,
) -> Evaluation:
    """Evaluate a model file on a dataset.

    Args:
        model_file: a model file that training or ``convert`` wrote.
        data: a folder or manifest, as for training. Classes are matched by name; folders named
            after WordNet ids are matched by the published class names of those ids.
        split: ``train``, ``val``, ``test`` or ``all``; by default test, else val, else all. In a
            flat folder, ``train`` and ``val`` are the images that training used for them,
            identified by content digest.
        image_size: the input size in pixels; by default the model file's own.
        crops: 1 or 10 views of each image, with averaged probabilities; see `Views`.
        flip: average with the mirrored image; see `Views`.
        calibrate: fit a temperature on the validation split and report its effect in
            ``metrics["temperature"]``. The logits, the other metrics and the model file do not
            change.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        workers: threads that read images; by default one per core.
        progress: takes the number of batches; returns a function to call after each batch.

    Raises:
        ModelFileError: the file is not a valid model file.
        RecipeError: the image size, number of crops or device is not valid.
        DataError: the split does not exist, or has a class that the model does not know.
        ImageError: an image cannot be read.
    """
    header = modelfile.read_header(model_file)
    modelfile.check_has_classes(header, model_file)
    dataset = read_dataset_for(header, data)
    views = Views(crops, flip)
    selected = select_split(dataset, split, header)

    def evaluate_samples(samples: Split, name: str) -> Evaluation:
        return evaluate_split(
            model_file,
            samples,
            name,
            image_size=image_size,
            views=views,
            device=device,
            workers=workers,
            advance=progress(batch_count(len(samples), views)),
        )

    evaluation = evaluate_samples(selected.samples, selected.split)
    preprocessing = scale_preprocessing(header.preprocessing, image_size)
    notes = dataset.remarks + selected.notes + views.notes(preprocessing)
    if calibrate:
        fitted = evaluation
        if selected.split != "val":
            fitted = evaluate_samples(select_split(dataset, "val", header).samples, "val")
        else:
            notes += ("the temperature was fitted and measured on the same images",)
        temperature = _temperature_metrics(fitted, evaluation)
        evaluation = replace(evaluation, metrics={**evaluation.metrics, "temperature": temperature})
    return replace(evaluation, notes=notes, data=data)


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
    advance: Callable[[str], None] = _ignore,
    with_features: bool = False,
) -> Evaluation:
    """Evaluate a model file on ``samples``, whose labels are indices into the model's classes.

    ``with_features`` also returns the inputs of the last layer, for a single view of each image.
    """
    model, header = modelfile.read(model_file)
    torch_device = runtime.pick(device, "fp32").device
    workers = default_workers() if workers is None else workers
    layout = runtime.memory_format(model, torch_device)
    model = model.to(torch_device, memory_format=layout)  # type: ignore[call-overload]
    preprocessing = scale_preprocessing(header.preprocessing, image_size)
    images = Images(samples, preprocessing)
    features: Tensor | None = None
    if with_features:
        features, logits = predict_features(model, images, torch_device, workers, advance)
    elif views.count == 1:
        logits = predict_logits(model, images, torch_device, workers, advance)
    else:
        with runtime.full_fp32(torch_device):
            logits = predict_views(model, images, views, torch_device, workers, advance)
    view_metrics = {
        "image_size": preprocessing.crop_size,
        "resize_size": preprocessing.resize_size,
        "crops": views.crops,
        "flip": views.count > 1,
    }
    measured = {
        "split": split,
        "views": view_metrics,
        **metrics.compute_metrics(logits, images.labels(), header.classes),
    }
    if "published" in header.metrics:
        measured["published"] = header.metrics["published"]
    return Evaluation(samples, split, header.classes, logits, measured, features=features)


def _temperature_metrics(fitted: Evaluation, measured: Evaluation) -> dict[str, Any]:
    """Fit a temperature on one evaluation; return its effect on another's loss and calibration."""
    temperature = fit_temperature(fitted.logits, fitted.labels)
    scaled = measured.logits / temperature
    return {
        "value": temperature,
        "fitted_on": fitted.split,
        "pictures": len(fitted.samples),
        "ece_before": measured.metrics["calibration"]["ece"],
        "ece_after": reliability(scaled, measured.labels)["ece"],
        "loss_before": measured.metrics["loss"],
        "loss_after": metrics.accuracy_and_loss(scaled, measured.labels)[1],
    }
