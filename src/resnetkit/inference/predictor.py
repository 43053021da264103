"""Images -> ranked classes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass, field, replace
from itertools import count, islice
from pathlib import Path
from threading import Lock
from typing import Any, overload

import numpy as np
from torch import Tensor, nn

from .. import runtime
from ..data.transforms import normalize, stack
from ..errors import ImageError
from ..evaluation.metrics import probabilities
from ..models.weights import modelfile
from ..prefetch import prefetch_map
from ..storage import sha256
from . import engines
from .images import ImageLike, is_image, source_name, thumbnail, working_pixels
from .notebook import MAX_CARDS

BATCH_SIZE = 32
FEW = 128
"""With fewer images than this, ``auto`` keeps the eager engine: starting another would take longer
than it saves."""

UNKNOWN = "unknown"
"""The class of an image whose best probability is below the threshold."""


_engine_lock = Lock()  # threads that share a predictor start each engine once


def _ignore(text: str) -> None:
    pass


@dataclass(frozen=True)
class Prediction:
    """The answer for one image, or the error that kept the image from being read.

    Args:
        source: the path, or the type of an image in memory, such as ``<ndarray>``.
        top: ``(class, probability)``, most probable first.
        model: the first 12 hex digits of the model file's SHA-256.
        error: why the image could not be read, else None.
        threshold: the smallest probability at which a class is named.
        features: ``(C,)`` float32, the input of the last layer, if it was requested.
        image: the path, or a thumbnail of an image in memory, for display in a notebook. In a list
            of answers, only the first 50 have a thumbnail. `Predictor.stream` leaves out images in
            memory, or keeps them whole with ``keep_images``.
    """

    source: str
    top: tuple[tuple[str, float], ...]
    model: str
    error: str | None = None
    threshold: float = 0.0
    features: np.ndarray | None = field(default=None, repr=False, compare=False)
    image: ImageLike | None = field(default=None, repr=False, compare=False)

    @property
    def class_name(self) -> str | None:
        """The most probable class, or ``unknown`` below the threshold; None after an error."""
        if not self.top:
            return None
        return self.top[0][0] if self.top[0][1] >= self.threshold else UNKNOWN

    @property
    def probability(self) -> float | None:
        """The probability of the most probable class, in [0, 1]; None after an error."""
        return self.top[0][1] if self.top else None

    def to_dict(self) -> dict[str, Any]:
        """Return the content of a JSON line of ``resnet predict``."""
        return {
            "source": self.source,
            "class": self.class_name,
            "probability": self.probability,
            "top": [{"class": name, "probability": p} for name, p in self.top],
            "model": self.model,
            "error": self.error,
        }

    def _repr_html_(self) -> str:
        from .notebook import card

        return card(self)


class Predictions(list[Prediction]):
    """A list of answers that notebooks display."""

    def _repr_html_(self) -> str:
        from .notebook import cards

        return cards(self)


class Predictor:
    """A loaded model file that classifies images. Threads may share one.

    Args:
        model_file: a model file.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        engine: ``eager``, ``compile``, ``openvino`` or ``onnx``. ``auto`` uses ``eager`` for fewer
            than `FEW` images, and for more the fastest installed engine; see
            `engines.resolve_engine`.
        precision: ``fp32``, ``bf16``, or ``auto`` to match the engine.
        note: called with a line of text when an engine starts.

    Attributes:
        path: the path of the model file.
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

        It holds the tensors, so the copy does not need the model file. Engines belong to a process
        and start again on demand.
        """
        return {**vars(self), "_engines": {}, "_note": _ignore}

    @overload
    def __call__(self, images: ImageLike, top_k: int = 5, threshold: float = 0.0) -> Prediction: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(
        self, images: Iterable[ImageLike], top_k: int = 5, threshold: float = 0.0
    ) -> Predictions: ...
    def __call__(
        self, images: ImageLike | Iterable[ImageLike], top_k: int = 5, threshold: float = 0.0
    ) -> Prediction | Predictions:
        """Classify one image or several.

        Several images are a list, an iterator, an array ``(N, H, W, C)`` or a tensor
        ``(N, C, H, W)`` with 1, 3 or 4 channels. Answers about images in memory keep a thumbnail
        for notebooks; in a list, the first 50 do.

        Args:
            images: one image or several.
            top_k: the number of classes to return.
            threshold: below this probability the class is ``unknown``.

        Raises:
            ImageError: a single image cannot be read. Among several images, the answer of such an
                image has an ``error`` instead.
        """
        if is_image(images):
            answer = next(self.stream([images], top_k, threshold=threshold))
            if answer.error is not None:
                raise ImageError(answer.error)
            return replace(answer, image=answer.image or thumbnail(images))
        several: Iterable[ImageLike] = images  # type: ignore[assignment]
        answers = self.stream(several, top_k, threshold=threshold, keep_images=True)
        return Predictions(map(_with_thumbnail, answers, count()))

    def stream(
        self,
        images: Iterable[ImageLike],
        top_k: int = 5,
        batch_size: int = BATCH_SIZE,
        workers: int | None = None,
        *,
        threshold: float = 0.0,
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
            threshold: below this probability the class is ``unknown``.
            features: also return the input of the last layer.
            keep_images: keep images in memory in their answers. By default only paths are kept, so
                that a list of answers stays small.
            first: images to skip at the start. If it is a multiple of ``batch_size``, the other
                answers are bit-identical to those without skipping.
            total: the number of images, if known. The length of an iterator is not known, so the
                engine ``auto`` starts with eager.
        """
        if not features:
            modelfile.check_has_classes(self.header, self.path)
        workers = runtime.default_workers() if workers is None else workers
        total = len(images) if total is None and isinstance(images, Sized) else total
        batches = _batched(islice(images, first, None), batch_size)
        done = first
        for batch, inputs in prefetch_map(self._prepare_batch, batches, workers):
            with runtime.pytorch_defaults():
                engine = self._get_engine((total or done) >= FEW, batch_size)
                answers = list(
                    self._predict_batch(
                        engine,
                        batch,
                        inputs=inputs,
                        top_k=top_k,
                        threshold=threshold,
                        with_features=features,
                    )
                )
            for answer in answers:
                in_memory = not isinstance(answer.image, str | os.PathLike)
                yield replace(answer, image=None) if in_memory and not keep_images else answer
            done += len(batch)

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
            return self.preprocessing.crop(working_pixels(image, self.preprocessing))
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
        with_features: bool,
    ) -> Iterator[Prediction]:
        readable = [item for item in inputs if isinstance(item, Tensor)]
        rows: Iterator[tuple[Tensor, np.ndarray]] = iter(())
        if readable:
            batch = normalize(stack(readable).to(self.device), self.preprocessing)
            features, logits = engine(batch.contiguous(memory_format=self._layout))
            shares = probabilities(logits.float().cpu())
            rows = iter(zip(shares, features.float().cpu().numpy(), strict=True))
        for image, item in zip(images, inputs, strict=True):
            source = source_name(image)
            if isinstance(item, ImageError):
                yield Prediction(
                    source,
                    (),
                    model=self.digest,
                    error=str(item),
                    threshold=threshold,
                    image=image,
                )
                continue
            row, vector = next(rows)
            best = row.topk(min(top_k, len(self.classes)))
            pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
            yield Prediction(
                source,
                tuple((self.classes[i], p) for i, p in pairs),
                model=self.digest,
                threshold=threshold,
                features=vector.copy() if with_features else None,
                image=image,
            )


def load(
    model_file: str | os.PathLike[str],
    device: str = "auto",
    engine: str = "auto",
    precision: str = "auto",
) -> Predictor:
    """Load a model file; see `Predictor` for the arguments."""
    return Predictor(model_file, device, engine=engine, precision=precision)


def _with_thumbnail(answer: Prediction, number: int) -> Prediction:
    """Replace an image in memory with its thumbnail, or with None if no notebook will show it."""
    if answer.image is None or isinstance(answer.image, str | os.PathLike):
        return answer
    shown = number < MAX_CARDS and answer.error is None
    return replace(answer, image=thumbnail(answer.image) if shown else None)


def _batched(images: Iterable[ImageLike], size: int) -> Iterator[list[ImageLike]]:
    source = iter(images)
    while batch := list(islice(source, size)):
        yield batch
