"""Pictures -> ranked classes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from .. import runtime
from ..data.transforms import normalize, stack
from ..errors import PictureError
from ..evaluation.metrics import probabilities
from ..models import modelfile
from ..storage import sha256

Picture = str | os.PathLike[str] | bytes | Image.Image | np.ndarray
"""A path, the bytes of a file, a PIL picture, or ``(H, W, 3)`` uint8 pixels."""


@dataclass(frozen=True)
class Prediction:
    """The answer for one picture; where it could not be read, ``error`` says why.

    Args:
        source: the path, or what kind of picture it was.
        top: ``(class, probability)``, the most probable first.
        model: 12 hex digits of the model file's SHA-256.
    """

    source: str
    top: tuple[tuple[str, float], ...]
    model: str
    error: str | None = None

    @property
    def class_name(self) -> str | None:
        """The most probable class."""
        return self.top[0][0] if self.top else None

    @property
    def probability(self) -> float | None:
        """Its probability, in [0, 1]."""
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


class Predictor:
    """A model file, ready to answer.

    Args:
        model_file: what training wrote.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.

    Attributes:
        model: the network, eager, fp32, in eval mode.
        classes: names of its logits.
        preprocessing: how pictures become its input.

    Raises:
        ModelFileError: the file is no model file.
    """

    model: nn.Module

    def __init__(self, model_file: str | os.PathLike[str], device: str = "auto") -> None:
        path = Path(model_file)
        network, self.header = modelfile.read(path)
        self.device = runtime.pick(device, "fp32").device
        self.model = network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.classes, self.preprocessing = self.header.classes, self.header.preprocessing
        self.digest = sha256(path)[:12]

    @overload
    def __call__(self, pictures: Picture, top_k: int = 5) -> Prediction: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(self, pictures: Iterable[Picture], top_k: int = 5) -> list[Prediction]: ...
    def __call__(
        self, pictures: Picture | Iterable[Picture], top_k: int = 5
    ) -> Prediction | list[Prediction]:
        """Classify one picture, or several.

        Raises:
            PictureError: a single picture cannot be read. Among several, its answer says so.
        """
        if isinstance(pictures, str | os.PathLike | bytes | Image.Image | np.ndarray):
            answer = next(self.stream([pictures], top_k))
            if answer.error is not None:
                raise PictureError(answer.error)
            return answer
        return list(self.stream(pictures, top_k))

    def stream(
        self,
        pictures: Iterable[Picture],
        top_k: int = 5,
        batch_size: int = 32,
        workers: int | None = None,
    ) -> Iterator[Prediction]:
        """Classify any number of pictures in constant memory; answers come in order.

        Pictures of the next batches are decoded while the network works.
        """
        workers = runtime.default_workers() if workers is None else workers
        prepared = runtime.map_ahead(self._prepare, _chunks(pictures, batch_size), workers)
        for names, inputs in prepared:
            yield from self._answer(names, inputs, top_k)

    def _prepare(
        self, pictures: Sequence[Picture]
    ) -> tuple[list[str], list[Tensor | PictureError]]:
        return [_name(p) for p in pictures], [self._input(p) for p in pictures]

    def _input(self, picture: Picture) -> Tensor | PictureError:
        """``(3, S, S)`` uint8."""
        try:
            source = Path(picture) if isinstance(picture, str | os.PathLike) else picture
            pixels = self.preprocessing.pixels(source)
        except PictureError as error:
            return error
        return self.preprocessing.crop(pixels)

    def _answer(
        self, names: list[str], inputs: list[Tensor | PictureError], top_k: int
    ) -> Iterator[Prediction]:
        readable = [x for x in inputs if isinstance(x, Tensor)]
        rows: Iterator[Tensor] = iter(())
        if readable:
            images = normalize(stack(readable).to(self.device), self.preprocessing)
            with torch.inference_mode():
                rows = iter(probabilities(self.model(images).float().cpu()))
        for name, given in zip(names, inputs, strict=True):
            if isinstance(given, PictureError):
                yield Prediction(name, (), self.digest, str(given))
                continue
            best = next(rows).topk(min(top_k, len(self.classes)))
            pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
            yield Prediction(name, tuple((self.classes[i], p) for i, p in pairs), self.digest)


def load(model_file: str | os.PathLike[str], device: str = "auto") -> Predictor:
    """Open a model file; see `Predictor`."""
    return Predictor(model_file, device)


def _name(picture: Picture) -> str:
    if isinstance(picture, str | os.PathLike):
        return os.fspath(picture)
    return f"<{type(picture).__name__}>"


def _chunks(pictures: Iterable[Picture], size: int) -> Iterator[list[Picture]]:
    source = iter(pictures)
    while chunk := list(islice(source, size)):
        yield chunk
