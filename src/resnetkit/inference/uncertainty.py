"""Answer requests for ``coverage`` (sets of classes) and ``false_alarms`` (strange images)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..calibration import Calibration
from ..errors import ModelFileError, RecipeError
from ..evaluation.conformal import prediction_sets, score_limit
from ..evaluation.strangeness import FeatureModel, share_less_strange
from ..text import pluralize


@dataclass(frozen=True)
class Uncertainty:
    """A request for coverage or false alarms, resolved for one model.

    Args:
        classes: the class names, in the order of the logits.
        calibration: the calibration data of the model.
        features: the distribution of its training images' features.
        coverage: the requested coverage of the sets, if any.
        score_limit: the largest conformal score in a set with this coverage.
        false_alarms: the requested share of false alarms, if any.
    """

    classes: tuple[str, ...]
    calibration: Calibration
    features: FeatureModel
    coverage: float | None
    score_limit: float | None
    false_alarms: float | None

    def answers(self, logits: np.ndarray, features: np.ndarray) -> list[dict[str, Any]]:
        """Return the requested values for each image, as arguments of `Prediction`.

        Args:
            logits: ``(n, classes)`` float32.
            features: ``(n, C)`` float32.
        """
        rows: list[dict[str, Any]] = [{} for _ in logits]
        if self.score_limit is not None:
            members = prediction_sets(logits, self.score_limit)
            order = np.argsort(-logits, axis=1, kind="stable")
            for row, best_first, is_member in zip(
                rows, order.tolist(), members.tolist(), strict=True
            ):
                row["class_set"] = tuple(self.classes[i] for i in best_first if is_member[i])
        if self.false_alarms is not None:
            scores = self.calibration.strangeness
            count = self.calibration.count
            strangeness = self.features.strangeness(features, logits).tolist()
            for row, found in zip(rows, strangeness, strict=True):
                row["strangeness"] = share_less_strange(scores, count, found)
        return rows


def resolve_uncertainty(
    classes: tuple[str, ...],
    calibration: Calibration | None,
    path: str | Path,
    *,
    coverage: float | None,
    false_alarms: float | None,
    all_trained: bool,
) -> Uncertainty | None:
    """Resolve a request for a model; return None if nothing is requested.

    Args:
        classes: the class names, in the order of the logits.
        calibration: the calibration data of the model, if it has any.
        path: the model's path, for messages.
        coverage: the probability that a set of classes includes the true one.
        false_alarms: the share of images of known classes that may be called unknown.
        all_trained: whether the model was trained on all images, without a validation split.

    Raises:
        RecipeError: a value is not between 0 and 1, or asks for more than the model's validation
            images can promise.
        ModelFileError: the model has no calibration data.
    """
    requested = {"coverage": coverage, "false-alarms": false_alarms}
    for name, value in requested.items():
        if value is not None and not 0 < value < 1:
            raise RecipeError(f"--{name} must be above 0 and below 1; got {value:g}")
    if coverage is None and false_alarms is None:
        return None
    if calibration is None:
        names = " and ".join(f"--{name}" for name, value in requested.items() if value is not None)
        if all_trained:
            raise ModelFileError(
                f"{path} has no calibration data for {names}: it was trained on all images, so "
                "none were left to calibrate it. Use a model that was trained with a validation "
                "split, such as the model of a fold"
            )
        is_model_file = Path(path).suffix == ".safetensors"
        then = "" if is_model_file else "\nThen export NEW.safetensors"
        raise ModelFileError(
            f"{path} has no calibration data for {names}. The model was converted, is the "
            "last.safetensors of a run, or was trained by an older version. To add the data: "
            f"resnet evaluate {path if is_model_file else 'MODEL'} DATA --calibrate --save-model "
            f"NEW.safetensors{then}"
        )
    count = calibration.count
    images = pluralize(count, "validation image")
    limit = None
    if coverage is not None:
        limit = score_limit(calibration.conformal, count, coverage)
        if limit is None:
            raise RecipeError(
                f"--coverage {coverage:g} needs at least {_needed(1 - coverage):,} validation "
                f"images, but {path} was trained with {images}, which are enough for at most "
                f"--coverage {_floor(count / (count + 1)):g}. Ask for less, or train with more "
                "validation images"
            )
    if false_alarms is not None and count < _needed(false_alarms):
        raise RecipeError(
            f"--false-alarms {false_alarms:g} needs at least {_needed(false_alarms):,} validation "
            f"images, but {path} was trained with {images}, which are enough for at least "
            f"--false-alarms {1 - _floor(count / (count + 1)):.4g}. Ask for more, or train with "
            "more validation images"
        )
    return Uncertainty(
        classes,
        calibration,
        FeatureModel.from_calibration(calibration),
        coverage=coverage,
        score_limit=limit,
        false_alarms=false_alarms,
    )


def _needed(share: float) -> int:
    """Return the number of validation images needed to find the strangest ``share`` of images."""
    return math.ceil(1 / share - 1 - 1e-9)


def _floor(value: float) -> float:
    """Round down to 4 decimals.

    >>> _floor(20 / 21)
    0.9523
    """
    return math.floor(value * 10_000) / 10_000
