"""The answer for an image. Nothing here needs PyTorch."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

import numpy as np

from ..errors import ImageError
from .images import ImageLike, is_image, thumbnail
from .notebook import MAX_CARDS, card, cards

BATCH_SIZE = 32
"""Images per batch. A file of rows resumes at the start of a batch."""

FEW = 128
"""With fewer images than this, `Predictor` keeps the eager engine: starting another would take
longer than it saves."""

UNKNOWN = "unknown"
"""The class of an image that is too strange, or whose best probability is below the threshold."""

ROUNDING = 1e-9
"""Tolerance when comparing with a requested share, such as 1 - 0.05."""


NOT_FINITE = (
    "the model's output for this image is NaN or infinite. If the image looks normal, the weights "
    "are damaged or too large: use another model"
)
"""The error for an image whose probabilities are not finite."""


@dataclass(frozen=True)
class Prediction:
    """The answer for one image, or the error that kept it from being read or classified.

    Args:
        source: the path, or the type of an image in memory, such as ``<ndarray>``.
        top: ``(class, probability)``, most probable first.
        model: the first 12 hex digits of the model file's SHA-256.
        error: why the image could not be read or classified, or None.
        threshold: the smallest probability required to name a class.
        coverage: the probability that ``class_set`` includes the true class, if requested.
        false_alarms: the share of images of known classes that may be called unknown, if requested.
        class_set: the most probable classes, as many as ``coverage`` needs; empty if it is None.
        strangeness: the share of validation images that are less strange, in [0, 1], if
            ``false_alarms`` was requested.
        features: ``(C,)`` float32, the input of the last layer, if it was requested.
        image: the path, or a thumbnail of an image in memory, for display in a notebook. In a list
            of answers, only the first 50 have a thumbnail. `Predictor.stream` drops images in
            memory, or keeps them whole if ``keep_images`` is True.
    """

    source: str
    top: tuple[tuple[str, float], ...]
    model: str
    error: str | None = None
    threshold: float = 0.0
    coverage: float | None = None
    false_alarms: float | None = None
    class_set: tuple[str, ...] = ()
    strangeness: float | None = None
    features: np.ndarray | None = field(default=None, repr=False, compare=False)
    image: ImageLike | None = field(default=None, repr=False, compare=False)

    @property
    def class_name(self) -> str | None:
        """The most probable class, or ``unknown``; None after an error.

        It is ``unknown`` if the probability is below the threshold, or if the image is too strange.
        """
        if not self.top:
            return None
        is_unknown = self.is_strange or self.top[0][1] < self.threshold
        return UNKNOWN if is_unknown else self.top[0][0]

    @property
    def is_strange(self) -> bool:
        """Whether the image is stranger than ``false_alarms`` allows."""
        if self.strangeness is None or self.false_alarms is None:
            return False
        return self.strangeness >= 1 - self.false_alarms - ROUNDING

    @property
    def probability(self) -> float | None:
        """The probability of the most probable class, in [0, 1]; None after an error."""
        return self.top[0][1] if self.top else None

    def to_dict(self) -> dict[str, Any]:
        """Return the content of a JSON line from ``resnet predict``.

        ``set`` and ``strangeness`` are included only if they were requested.
        """
        requested: dict[str, Any] = {}
        if self.coverage is not None:
            requested["set"] = list(self.class_set)
        if self.false_alarms is not None:
            requested["strangeness"] = self.strangeness
        return {
            "source": self.source,
            "class": self.class_name,
            "probability": self.probability,
            "top": [{"class": name, "probability": p} for name, p in self.top],
            "model": self.model,
            "error": self.error,
            **requested,
        }

    def _repr_html_(self) -> str:
        return card(self)


class Predictions(list[Prediction]):
    """A list of answers that notebooks display."""

    def _repr_html_(self) -> str:
        return cards(self)


def classify(
    stream: Callable[..., Iterator[Prediction]], images: ImageLike | Iterable[ImageLike]
) -> Prediction | Predictions:
    """Return the answer for one image, or the answers for several.

    Args:
        stream: maps images to answers, with the option ``keep_images``; see `Predictor.stream`.
        images: one image or several.

    Raises:
        ImageError: a single image cannot be read.
    """
    if is_image(images):
        answer = next(stream([images], keep_images=False))
        if answer.error is not None:
            raise ImageError(answer.error)
        return replace(answer, image=answer.image or thumbnail(images))
    answers = stream(images, keep_images=True)
    return Predictions(map(_with_thumbnail, answers, count()))


def _with_thumbnail(answer: Prediction, number: int) -> Prediction:
    """Replace an image in memory with its thumbnail, or with None if no notebook will show it."""
    if answer.image is None or isinstance(answer.image, str | os.PathLike):
        return answer
    shown = number < MAX_CARDS and answer.error is None
    return replace(answer, image=thumbnail(answer.image) if shown else None)
