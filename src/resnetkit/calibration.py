"""The calibration data in a model file: the ``calibration`` entry of its header.

Training fits it on the validation split, and prediction compares new images with it;
`evaluation.conformal` and `evaluation.strangeness` explain how. It is stored in the header, not as
tensors, because other programs load every tensor in the file into their network.
"""

from __future__ import annotations

import base64
import binascii
import math
import sys
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from .errors import ModelFileError

MAX_SCORES = 2000
"""Maximum number of sorted scores of each kind in a file."""

MAX_DIRECTIONS = 64
"""Maximum number of rows in ``directions``; with 2,048 features, 64 rows take 683 KiB."""

MAX_NUMBERS = 2**22
"""Maximum number of values in ``means``: 2,048 classes with 2,048 features take 22 of the header's
64 MiB."""


def has_room(classes: int, features: int) -> bool:
    """Return whether a header can hold the `Calibration` for this many classes and features."""
    return classes * features <= MAX_NUMBERS


@dataclass(frozen=True)
class Matrix:
    """A matrix of numbers in the header.

    Args:
        shape: rows and columns.
        data: the numbers row by row, as little-endian float32.
    """

    shape: tuple[int, int]
    data: bytes

    @classmethod
    def from_array(cls, array: np.ndarray) -> Matrix:
        """Return a two-dimensional array as a matrix."""
        rows, columns = array.shape
        return cls((rows, columns), array.astype("<f4").tobytes())

    def array(self) -> np.ndarray:
        """Return the matrix as a float32 array."""
        return np.frombuffer(self.data, "<f4").astype(np.float32).reshape(self.shape)

    def to_dict(self) -> dict[str, Any]:
        """Return the matrix as JSON values."""
        return {"shape": list(self.shape), "float32": base64.b64encode(self.data).decode()}

    @classmethod
    def from_dict(cls, content: object, name: str) -> Matrix:
        """Parse and check the output of `to_dict`.

        Raises:
            ModelFileError: ``content`` is not a matrix of finite numbers.
        """
        damaged = ModelFileError(f"its header is damaged (calibration: {name})")
        if not isinstance(content, dict) or content.keys() != {"shape", "float32"}:
            raise damaged
        shape = content["shape"]
        text = content["float32"]
        if not (isinstance(shape, list) and len(shape) == 2 and isinstance(text, str)):
            raise damaged
        if not all(type(side) is int and side >= 0 for side in shape):
            raise damaged
        try:
            data = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError) as error:
            raise damaged from error
        if len(data) != 4 * math.prod(shape) or not np.isfinite(np.frombuffer(data, "<f4")).all():
            raise damaged
        return cls((shape[0], shape[1]), data)


@dataclass(frozen=True)
class Calibration:
    """Calibration data from the validation split, for predicting sets and finding strange images.

    Args:
        count: the number of validation images.
        temperature: the divisor of the logits that makes probabilities match observed frequencies.
            It is not applied to the probabilities that a model predicts.
        conformal: the conformal scores of the validation images, ascending; see
            `evaluation.conformal`. For more than `MAX_SCORES` images, `MAX_SCORES` quantiles of
            their scores.
        strangeness: the strangeness scores of the validation images, in the same form; see
            `evaluation.strangeness`.
        distance_scale: the factor that scales distances in ``strangeness``.
        means: ``(classes, C)``, the mean features of each class.
        directions: ``(r, C)``, the directions along which images of the same class differ; ``r`` is
            at most `MAX_DIRECTIONS`.
    """

    count: int
    temperature: float
    conformal: tuple[float, ...]
    strangeness: tuple[float, ...]
    distance_scale: float
    means: Matrix
    directions: Matrix

    def to_dict(self) -> dict[str, Any]:
        """Return the header entry as JSON values."""
        return {
            "count": self.count,
            "temperature": self.temperature,
            "conformal": list(self.conformal),
            "strangeness": list(self.strangeness),
            "distance_scale": self.distance_scale,
            "means": self.means.to_dict(),
            "directions": self.directions.to_dict(),
        }

    @classmethod
    def from_dict(cls, content: object) -> Calibration:
        """Parse and check the output of `to_dict`.

        Raises:
            ModelFileError: a value is missing, has the wrong type, or is out of range or order.
        """
        if not isinstance(content, dict) or content.keys() != cls.__dataclass_fields__.keys():
            raise ModelFileError("its header is damaged (calibration)")
        count = content["count"]
        temperature = content["temperature"]
        scale = content["distance_scale"]
        if type(count) is not int or not 1 <= count <= 2**53:
            raise ModelFileError("its header is damaged (calibration: count)")
        if not _is_finite(temperature) or temperature <= 0:
            raise ModelFileError("its header is damaged (calibration: temperature)")
        if not _is_finite(scale) or scale < 0:
            raise ModelFileError("its header is damaged (calibration: distance_scale)")
        scores = {}
        for name in ("conformal", "strangeness"):
            values = content[name]
            if not isinstance(values, list) or len(values) != min(count, MAX_SCORES):
                raise ModelFileError(f"its header is damaged (calibration: {name})")
            in_order = all(map(_is_finite, values)) and all(a <= b for a, b in pairwise(values))
            if not in_order or (name == "conformal" and values[0] < 0):
                raise ModelFileError(f"its header is damaged (calibration: {name})")
            scores[name] = tuple(map(float, values))
        return cls(
            count,
            float(temperature),
            conformal=scores["conformal"],
            strangeness=scores["strangeness"],
            distance_scale=float(scale),
            means=Matrix.from_dict(content["means"], "means"),
            directions=Matrix.from_dict(content["directions"], "directions"),
        )

    def problems(self, classes: int, features: int) -> list[str]:
        """Return the mismatches with a network that has this many logits and features, if any.

        Args:
            classes: the number of logits.
            features: the size of the last layer's input.
        """
        problems = []
        if self.means.shape != (classes, features):
            problems.append(
                f"calibration: means has shape {self.means.shape}, not {(classes, features)}"
            )
        rows, columns = self.directions.shape
        if columns != features or rows > MAX_DIRECTIONS:
            problems.append(
                f"calibration: directions has shape {self.directions.shape}, not (up to "
                f"{MAX_DIRECTIONS}, {features})"
            )
        return problems


def _is_finite(value: object) -> bool:
    """Return whether a JSON value is a number that fits in a float; a bool is not a number."""
    return type(value) in (int, float) and abs(value) <= sys.float_info.max  # type: ignore[arg-type]
