"""Classify images with a model file."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from copy import copy
from dataclasses import replace
from functools import partial
from itertools import islice, repeat
from pathlib import Path
from threading import Lock
from typing import Any, overload

import numpy as np
from torch import Tensor, nn

from .. import runtime
from ..data.remote import read_ahead
from ..data.transforms import normalize, stack
from ..errors import ImageError
from ..evaluation.metrics import probabilities
from ..models.weights import modelfile
from ..prefetch import prefetch_map
from ..processes import default_workers
from ..storage import sha256
from . import engines
from .images import ImageLike, source_name, working_pixels
from .prediction import BATCH_SIZE, FEW, NOT_FINITE, Prediction, Predictions, classify
from .uncertainty import Uncertainty, resolve_uncertainty

_engine_lock = Lock()  # threads that share a predictor start each engine once


def _ignore(text: str) -> None:
    pass


class Predictor:
    """A loaded model file that classifies images. Several threads may share it.

    Args:
        model_file: a model file.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        engine: ``eager``, ``compile``, ``openvino`` or ``onnx``. ``auto`` uses ``eager`` for fewer
            than `prediction.FEW` images, and the fastest installed engine for more; see
            `engines.resolve_engine`.
        precision: ``fp32``, ``bf16``, or ``auto`` to match the engine.
        note: called with a line of text when an engine starts.

    Attributes:
        path: the path to the model file.
        model: the network: eager, fp32, in eval mode.
        classes: the class names, in the order of the logits.
        preprocessing: how images become the model's input.

    Raises:
        ModelFileError: the file is not a valid model file.
        RecipeError: the device, engine or precision is not available on this machine.
    """

    model: nn.Module

    @runtime.pytorch_defaults()
    def __init__(
        self,
        model_file: str | os.PathLike[str],
        device: str = "auto",
        engine: str = "auto",
        precision: str = "auto",
        note: Callable[[str], None] = _ignore,
    ) -> None:
        self.path = Path(model_file)
        model, self.header = modelfile.read(self.path)
        self.device = runtime.pick(device, "fp32").device
        self._layout = runtime.memory_format(model, self.device)
        self.model = model.to(self.device, memory_format=self._layout)  # type: ignore[call-overload]
        self.classes = self.header.classes
        self.preprocessing = self.header.preprocessing
        self.digest = sha256(self.path)[:12]
        self._requested = engines.check_engine(engine, precision, self.device)
        self._note = note
        self._engines: dict[engines.EngineChoice, engines.Engine] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for pickle and deepcopy.

        The state includes the tensors, so the copy does not need the model file. Engines belong to
        a process and start again on demand.
        """
        return {**vars(self), "_engines": {}, "_note": _ignore}

    def with_engine(self, engine: str, precision: str = "auto") -> Predictor:
        """Return a predictor that shares the network, and starts its own engine.

        Raises:
            RecipeError: for the same reasons as in the constructor.
        """
        other = copy(self)
        other._requested = engines.check_engine(engine, precision, self.device)
        return other

    @overload
    def __call__(  # type: ignore[overload-overlap]
        self,
        images: ImageLike,
        top_k: int = 5,
        threshold: float = 0.0,
        *,
        coverage: float | None = None,
        false_alarms: float | None = None,
    ) -> Prediction: ...
    @overload
    def __call__(
        self,
        images: Iterable[ImageLike],
        top_k: int = 5,
        threshold: float = 0.0,
        *,
        coverage: float | None = None,
        false_alarms: float | None = None,
    ) -> Predictions: ...
    def __call__(
        self,
        images: ImageLike | Iterable[ImageLike],
        top_k: int = 5,
        threshold: float = 0.0,
        *,
        coverage: float | None = None,
        false_alarms: float | None = None,
    ) -> Prediction | Predictions:
        """Classify one image or several.

        Pass several images as a list, an iterator, an array ``(N, H, W, C)`` or a tensor
        ``(N, C, H, W)`` with 1, 3 or 4 channels. Answers for images in memory keep a thumbnail for
        notebooks; in a list, only the first 50 do.

        Args:
            images: one image or several.
            top_k: the number of classes to return.
            threshold: below this probability, the class is ``unknown``.
            coverage: also return a set of classes that includes the true class with this
                probability, above 0 and below 1; see `evaluation.conformal`.
            false_alarms: call an image ``unknown`` if it is stranger than all but this share of the
                validation images, above 0 and below 1; see `evaluation.strangeness`.

        Raises:
            ImageError: a single image cannot be read. If several images were passed, the answer for
                such an image has an ``error`` instead.
            RecipeError, ModelFileError: the model cannot promise the coverage or the share of false
                alarms.
        """
        stream = partial(
            self.stream,
            top_k=top_k,
            threshold=threshold,
            coverage=coverage,
            false_alarms=false_alarms,
        )
        return classify(stream, images)

    def stream(
        self,
        images: Iterable[ImageLike],
        top_k: int = 5,
        batch_size: int = BATCH_SIZE,
        workers: int | None = None,
        *,
        threshold: float = 0.0,
        coverage: float | None = None,
        false_alarms: float | None = None,
        features: bool = False,
        keep_images: bool = False,
        first: int = 0,
        total: int | None = None,
    ) -> Iterator[Prediction]:
        """Classify any number of images in constant memory; yield the answers in order.

        The next batches are decoded while the model runs.

        Args:
            images: the images.
            top_k: the number of classes to return.
            batch_size: images per batch.
            workers: threads that decode images; by default one per core.
            threshold: below this probability, the class is ``unknown``.
            coverage, false_alarms: as in `__call__`.
            features: also return the input of the last layer.
            keep_images: also keep images that are in memory in their answers. By default, only
                paths are kept, so that a list of answers stays small.
            first: number of images to skip at the start. If it is a multiple of ``batch_size``, the
                other answers are bit-identical to those without skipping.
            total: the number of images, if known. For an iterator it is not, so engine ``auto``
                starts with ``eager``.
        """
        if not features:
            modelfile.check_has_classes(self.header, self.path)
        uncertainty = self.resolve_uncertainty(coverage, false_alarms)
        workers = default_workers() if workers is None else workers
        total = len(images) if total is None and isinstance(images, Sized) else total
        batches = _batched(islice(images, first, None), batch_size)
        done = first
        for batch, inputs in prefetch_map(self._prepare_batch, read_ahead(batches, iter), workers):
            with runtime.pytorch_defaults():
                engine = self._get_engine((total or done) >= FEW, batch_size)
                answers = list(
                    self._predict_batch(
                        engine,
                        batch,
                        inputs=inputs,
                        top_k=top_k,
                        threshold=threshold,
                        uncertainty=uncertainty,
                        with_features=features,
                    )
                )
            for answer in answers:
                in_memory = not isinstance(answer.image, str | os.PathLike)
                yield replace(answer, image=None) if in_memory and not keep_images else answer
            done += len(batch)

    @runtime.pytorch_defaults()
    def prepare(self, image: ImageLike) -> Tensor:
        """Return an image as `run` expects it: ``(C, S, S)`` uint8.

        Raises:
            ImageError: the image cannot be read.
        """
        return self.preprocessing.crop(working_pixels(image, self.preprocessing))

    @runtime.pytorch_defaults()
    def run(
        self, inputs: Sequence[Tensor], batch_size: int = BATCH_SIZE
    ) -> Iterator[dict[str, np.ndarray]]:
        """Run prepared images in one batch, with the engine for many images.

        Args:
            inputs: results of `prepare`.
            batch_size: the largest batch that the engine prepares for.

        Returns:
            For each image, in order, its ``logits`` and ``probabilities``, both ``(classes,)``,
            and its ``features`` ``(C,)``, the input of the last layer. All are float32.
        """
        engine = self._get_engine(many=True, batch_size=batch_size)
        features, logits = self._compute(engine, list(inputs))
        values = (logits.numpy(), probabilities(logits).numpy(), features.numpy())
        names = ("logits", "probabilities", "features")
        return iter([dict(zip(names, rows, strict=True)) for rows in zip(*values, strict=True)])

    def _compute(self, engine: engines.Engine, inputs: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Return features ``(N, C)`` and logits ``(N, classes)``, float32 on the CPU."""
        batch = normalize(stack(inputs).to(self.device), self.preprocessing)
        features, logits = engine(batch.contiguous(memory_format=self._layout))
        return features.float().cpu(), logits.float().cpu()

    def resolve_uncertainty(
        self, coverage: float | None, false_alarms: float | None
    ) -> Uncertainty | None:
        """Check and resolve a request before any image is read; see `__call__`."""
        return resolve_uncertainty(
            self.classes,
            self.header.calibration,
            self.path,
            coverage=coverage,
            false_alarms=false_alarms,
            all_trained=self.header.recipe.get("val_split") == 0,
        )

    def _get_engine(self, many: bool, batch_size: int) -> engines.Engine:
        choice = engines.resolve_engine(self._requested, self.device, many=many)
        if choice in self._engines:
            return self._engines[choice]
        with _engine_lock:
            if choice not in self._engines:
                engine = engines.start_engine(
                    choice,
                    self.model,
                    size=self.preprocessing.crop_size,
                    device=self.device,
                    batch_size=batch_size,
                )
                self._note(str(engine))
                self._engines[choice] = engine
        return self._engines[choice]

    @runtime.pytorch_defaults()
    def _prepare_batch(
        self, images: Sequence[ImageLike]
    ) -> tuple[Sequence[ImageLike], list[Tensor | ImageError]]:
        return images, [self._prepare_image(image) for image in images]

    def _prepare_image(self, image: ImageLike) -> Tensor | ImageError:
        """Return ``(C, S, S)`` uint8, or the error."""
        try:
            return self.prepare(image)
        except ImageError as error:
            return error

    def _predict_batch(
        self,
        engine: engines.Engine,
        images: Sequence[ImageLike],
        *,
        inputs: list[Tensor | ImageError],
        top_k: int,
        threshold: float,
        uncertainty: Uncertainty | None,
        with_features: bool,
    ) -> Iterator[Prediction]:
        readable = [item for item in inputs if isinstance(item, Tensor)]
        rows: Iterator[tuple[Tensor, np.ndarray]] = iter(())
        uncertainties: Iterator[dict[str, Any]] = repeat({})
        requested: dict[str, Any] = {"threshold": threshold}
        if uncertainty is not None:
            requested |= {
                "coverage": uncertainty.coverage,
                "false_alarms": uncertainty.false_alarms,
            }
        if readable:
            features, logits = self._compute(engine, readable)
            vectors = features.numpy()
            shares = probabilities(logits)
            rows = iter(zip(shares, vectors, strict=True))
            if uncertainty is not None:
                finite = shares.isfinite().all(1).numpy()
                uncertainties = iter(uncertainty.answers(logits.numpy()[finite], vectors[finite]))
        for image, item in zip(images, inputs, strict=True):
            source = source_name(image)
            if isinstance(item, ImageError):
                yield Prediction(
                    source,
                    (),
                    model=self.digest,
                    error=str(item),
                    image=image,
                    **requested,
                )
                continue
            row, vector = next(rows)
            if not bool(row.isfinite().all()):
                error = f"{source}: {NOT_FINITE}"
                yield Prediction(
                    source, (), model=self.digest, error=error, image=image, **requested
                )
                continue
            best = row.topk(min(top_k, len(self.classes)))
            pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
            yield Prediction(
                source,
                tuple((self.classes[i], p) for i, p in pairs),
                model=self.digest,
                features=vector.copy() if with_features else None,
                image=image,
                **requested,
                **next(uncertainties),
            )


def load(
    model_file: str | os.PathLike[str],
    device: str = "auto",
    engine: str = "auto",
    precision: str = "auto",
) -> Predictor:
    """Load a model file; see `Predictor` for the arguments."""
    return Predictor(model_file, device, engine=engine, precision=precision)


def _batched(images: Iterable[ImageLike], size: int) -> Iterator[list[ImageLike]]:
    source = iter(images)
    while batch := list(islice(source, size)):
        yield batch
