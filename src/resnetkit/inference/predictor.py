"""Pictures -> ranked classes."""

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
from .images import ImageLike, is_image, name_of, thumbnail, working_pixels
from .notebook import MOST

BATCH_SIZE = 32
FEW = 128
"""Pictures below which the engine ``auto`` stays with the eager network: another one takes longer
to start than it would save."""

UNKNOWN = "unknown"
"""The class of a picture whose most probable class is less probable than the threshold."""


_starting = Lock()  # so that several threads with one predictor start an engine once


def _silent(text: str) -> None:
    pass


@dataclass(frozen=True)
class Prediction:
    """The answer for one picture; where it could not be read, ``error`` says why.

    Args:
        source: the path, or what kind of picture it was.
        top: ``(class, probability)``, the most probable first.
        model: 12 hex digits of the model file's SHA-256.
        threshold: the least probability with which a class is named.
        features: ``(C,)`` float32, what the network's last layer sees, where it was asked for.
        picture: the path, or of an image in memory a thumbnail, which a notebook shows; of a list
            the first 50 have one. `stream` leaves it out for images in memory.
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
        """The most probable class; ``unknown`` where it is less probable than the threshold."""
        if not self.top:
            return None
        return self.top[0][0] if self.top[0][1] >= self.threshold else UNKNOWN

    @property
    def probability(self) -> float | None:
        """That of the most probable class, in [0, 1]."""
        return self.top[0][1] if self.top else None

    def to_dict(self) -> dict[str, Any]:
        """What a line of ``resnet predict`` holds."""
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
    """The answers for several pictures, in their order: a list that a notebook shows."""

    def _repr_html_(self) -> str:
        from .notebook import cards

        return cards(self)


class Predictor:
    """A model file, ready to answer. Several threads may use one.

    Args:
        model_file: what training wrote.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        engine: ``eager``, ``compile``, ``openvino`` or ``onnx``; ``auto`` is ``eager`` for fewer
            than `FEW` pictures, and for more the fastest that is installed and exact enough.
        precision: ``fp32``, ``bf16``, or ``auto``: what the engine is used with.
        note: is told which engine was taken.

    Attributes:
        path: of the model file.
        model: the network, eager, fp32, in eval mode.
        classes: names of its logits.
        preprocessing: how pictures become its input.

    Raises:
        ModelFileError: the file is no model file.
        RecipeError: a device, engine or precision that this machine has not.
    """

    model: nn.Module

    @runtime.pytorch_defaults()
    def __init__(
        self,
        model_file: str | os.PathLike[str],
        device: str = "auto",
        engine: str = "auto",
        precision: str = "auto",
        note: Callable[[str], None] = _silent,
    ) -> None:
        self.path = path = Path(model_file)
        network, self.header = modelfile.read(path)
        self.device = runtime.pick(device, "fp32").device
        self._layout = runtime.memory_format(network, self.device)
        self.model = network.to(self.device, memory_format=self._layout)  # type: ignore[call-overload]
        self.classes, self.preprocessing = self.header.classes, self.header.preprocessing
        self.digest = sha256(path)[:12]
        self._asked, self._note = engines.check_engine(engine, precision, self.device), note
        self._started: dict[engines.EngineChoice, engines.Engine] = {}

    def __getstate__(self) -> dict[str, Any]:
        """What pickle and deepcopy take: the tensors themselves, so that the copy is independent of
        the model file; engines, which belong to a process, start again when they are needed."""
        return {**vars(self), "_started": {}, "_note": _silent}

    @overload
    def __call__(self, images: ImageLike, top_k: int = 5, threshold: float = 0.0) -> Prediction: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(
        self, images: Iterable[ImageLike], top_k: int = 5, threshold: float = 0.0
    ) -> Predictions: ...
    def __call__(
        self, images: ImageLike | Iterable[ImageLike], top_k: int = 5, threshold: float = 0.0
    ) -> Prediction | Predictions:
        """Classify one picture, or several: a list, an iterator, an array ``(N, H, W, C)``, a
        tensor ``(N, C, H, W)`` with 1, 3 or 4 channels. Of images in memory, the answers keep
        thumbnails: as many as a notebook shows of a list, the first 50.

        Raises:
            PictureError: a single picture cannot be read. Among several, its answer says so.
        """
        if is_image(images):
            answer = next(self.stream([images], top_k, threshold=threshold))
            if answer.error is not None:
                raise ImageError(answer.error)
            return replace(answer, image=answer.image or thumbnail(images))
        several: Iterable[ImageLike] = images  # type: ignore[assignment]
        found = self.stream(several, top_k, threshold=threshold, keep_images=True)
        return Predictions(map(_to_show, found, count()))

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
        """Classify any number of pictures in constant memory; answers come in order.

        Pictures of the next batches are decoded while the network works.

        Args:
            top_k: classes to name.
            threshold: least probability with which a class is named, else it is ``unknown``.
            features: also keep what the last layer sees.
            keep_images: also keep images in memory in their answers; by default only paths are
                kept, so that a list of answers stays small.
            first: pictures to leave out at the beginning. Where it is a multiple of ``batch_size``,
                the others get the same bits as they would without it.
            total: pictures that there are, where that is known: of an iterator, nobody knows, and
                the engine ``auto`` begins with the eager network.
        """
        if not features:
            modelfile.check_has_classes(self.header, self.path)
        workers = runtime.default_workers() if workers is None else workers
        total = len(images) if total is None and isinstance(images, Sized) else total
        chunks = _chunks(islice(images, first, None), batch_size)
        done = first
        for given, inputs in prefetch_map(self._prepare, chunks, workers):
            with runtime.pytorch_defaults():
                engine = self._engine((total or done) >= FEW, batch_size)
                answers = list(self._answer(engine, given, inputs, top_k, threshold, features))
            for answer in answers:
                in_memory = not isinstance(answer.image, str | os.PathLike)
                yield replace(answer, image=None) if in_memory and not keep_images else answer
            done += len(given)

    def _engine(self, many: bool, batch_size: int) -> engines.Engine:
        choice = engines.resolve_engine(self._asked, self.device, many)
        if choice in self._started:
            return self._started[choice]
        with _starting:
            if choice not in self._started:
                engine = engines.start_engine(
                    choice, self.model, self.preprocessing.crop_size, self.device, batch_size
                )
                self._note(str(engine))
                self._started[choice] = engine
        return self._started[choice]

    @runtime.pytorch_defaults()
    def _prepare(
        self, images: Sequence[ImageLike]
    ) -> tuple[Sequence[ImageLike], list[Tensor | ImageError]]:
        return images, [self._input(image) for image in images]

    def _input(self, image: ImageLike) -> Tensor | ImageError:
        """``(C, S, S)`` uint8."""
        try:
            return self.preprocessing.crop(working_pixels(image, self.preprocessing))
        except ImageError as error:
            return error

    def _answer(
        self,
        engine: engines.Engine,
        images: Sequence[ImageLike],
        inputs: list[Tensor | ImageError],
        top_k: int,
        threshold: float,
        with_features: bool,
    ) -> Iterator[Prediction]:
        readable = [x for x in inputs if isinstance(x, Tensor)]
        rows: Iterator[tuple[Tensor, np.ndarray]] = iter(())
        if readable:
            batch = normalize(stack(readable).to(self.device), self.preprocessing)
            vectors, logits = engine(batch.contiguous(memory_format=self._layout))
            found = probabilities(logits.float().cpu())
            rows = iter(zip(found, vectors.float().cpu().numpy(), strict=True))
        for image, given in zip(images, inputs, strict=True):
            name = name_of(image)
            if isinstance(given, ImageError):
                yield Prediction(name, (), self.digest, str(given), threshold, image=image)
                continue
            row, vector = next(rows)
            best = row.topk(min(top_k, len(self.classes)))
            pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
            top = tuple((self.classes[i], p) for i, p in pairs)
            kept = vector.copy() if with_features else None
            yield Prediction(name, top, self.digest, None, threshold, kept, image)


def load(
    model_file: str | os.PathLike[str],
    device: str = "auto",
    engine: str = "auto",
    precision: str = "auto",
) -> Predictor:
    """Open a model file; see `Predictor`."""
    return Predictor(model_file, device, engine, precision)


def _to_show(answer: Prediction, number: int) -> Prediction:
    """Replace an image in memory by its thumbnail, or by nothing where no notebook shows it."""
    if answer.image is None or isinstance(answer.image, str | os.PathLike):
        return answer
    shown = number < MOST and answer.error is None
    return replace(answer, image=thumbnail(answer.image) if shown else None)


def _chunks(images: Iterable[ImageLike], size: int) -> Iterator[list[ImageLike]]:
    source = iter(images)
    while chunk := list(islice(source, size)):
        yield chunk
