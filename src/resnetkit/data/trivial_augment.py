"""TrivialAugment: one operation on each picture, with a strength that chance alone decides.

Müller and Hutter, arXiv:2103.10158, with the operations and the ranges that the paper calls wide.
The operations themselves are torchvision's, on uint8 tensors.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

BINS = 31
"""Strengths of an operation, evenly spread from its first to its last."""


class Operation(NamedTuple):
    """What is done to a ``(C, H, W)`` uint8 picture, and the strengths it may be done with."""

    apply: Callable[[Tensor, float], Tensor]
    first: float = 0.0
    last: float = 0.0
    signed: bool = False  # half of the time the strength is negative

    def strength(self, number: int) -> float:
        """The strength numbered ``number``, in ``range(BINS)``."""
        return self.first + (self.last - self.first) * number / (BINS - 1)


def _affine(image: Tensor, **change: Any) -> Tensor:
    still: dict[str, Any] = {"angle": 0.0, "translate": [0, 0], "scale": 1.0, "shear": [0.0, 0.0]}
    moved: Tensor = F.affine(
        image, **{**still, **change}, interpolation=F.InterpolationMode.BILINEAR
    )
    return moved


def _shear(image: Tensor, x: float = 0.0, y: float = 0.0) -> Tensor:
    """By the slopes ``x`` and ``y``, about the upper left corner."""
    angles = [math.degrees(math.atan(slope)) for slope in (x, y)]
    return _affine(image, shear=angles, center=[0, 0])


OPERATIONS = {
    "Identity": Operation(lambda image, _: image),
    "ShearX": Operation(lambda image, slope: _shear(image, x=slope), 0.0, 0.99, True),
    "ShearY": Operation(lambda image, slope: _shear(image, y=slope), 0.0, 0.99, True),
    # In pixels, whatever the size of the picture.
    "TranslateX": Operation(lambda p, by: _affine(p, translate=[int(by), 0]), 0.0, 32.0, True),
    "TranslateY": Operation(lambda p, by: _affine(p, translate=[0, int(by)]), 0.0, 32.0, True),
    "Rotate": Operation(
        lambda p, angle: F.rotate(p, angle, F.InterpolationMode.BILINEAR), 0.0, 135.0, True
    ),
    "Brightness": Operation(lambda p, by: F.adjust_brightness(p, 1 + by), 0.0, 0.99, True),
    "Color": Operation(lambda p, by: F.adjust_saturation(p, 1 + by), 0.0, 0.99, True),
    "Contrast": Operation(lambda p, by: F.adjust_contrast(p, 1 + by), 0.0, 0.99, True),
    "Sharpness": Operation(lambda p, by: F.adjust_sharpness(p, 1 + by), 0.0, 0.99, True),
    "Posterize": Operation(lambda p, bits: F.posterize(p, round(bits)), 8.0, 2.0),
    "Solarize": Operation(lambda p, share: F.solarize(p, 255 * share), 1.0, 0.0),
    "AutoContrast": Operation(lambda p, _: F.autocontrast(p)),
    "Equalize": Operation(lambda p, _: F.equalize(p)),
}

_MOVES = [OPERATIONS[f"{name}{axis}"] for name in ("Shear", "Translate") for axis in "XY"]
_MOVES += [OPERATIONS["Identity"], OPERATIONS["Rotate"]]


def trivial_augment(image: Tensor, rng: Random) -> Tensor:
    """One of the operations, all equally likely, at one of its strengths.

    Args:
        picture: ``(C, H, W)`` uint8; it is left as it is. Of four channels the last is
            transparency, which only moves.

    Returns:
        The same shape; black where the operation moved the picture away.
    """
    operation = rng.choice(list(OPERATIONS.values()))
    strength = operation.strength(rng.randrange(BINS))
    if operation.signed and rng.random() < 0.5:
        strength = -strength
    image = image.contiguous()
    if image.shape[0] == 4 and operation not in _MOVES:
        return torch.cat([operation.apply(image[:3], strength), image[3:]])
    return operation.apply(image, strength)
