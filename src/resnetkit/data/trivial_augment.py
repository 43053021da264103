"""TrivialAugment: one random operation per image, at a random strength.

Müller and Hutter, arXiv:2103.10158, with the operations and ranges that the paper calls "wide". The
operations themselves are torchvision's, on uint8 tensors.
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
"""Number of strengths per operation, evenly spaced from its first to its last."""


class Operation(NamedTuple):
    """A function of a ``(C, H, W)`` uint8 image and a strength, and its range of strengths."""

    apply: Callable[[Tensor, float], Tensor]
    first: float = 0.0
    last: float = 0.0
    signed: bool = False  # the strength is negative with probability 1/2

    def strength(self, number: int) -> float:
        """Return the strength at index ``number``, which is in ``range(BINS)``."""
        return self.first + (self.last - self.first) * number / (BINS - 1)


def _affine(image: Tensor, **change: Any) -> Tensor:
    identity: dict[str, Any] = {
        "angle": 0.0,
        "translate": [0, 0],
        "scale": 1.0,
        "shear": [0.0, 0.0],
    }
    moved: Tensor = F.affine(
        image, **{**identity, **change}, interpolation=F.InterpolationMode.BILINEAR
    )
    return moved


def _shear(image: Tensor, x: float = 0.0, y: float = 0.0) -> Tensor:
    """Shear by the slopes ``x`` and ``y``, about the upper left corner."""
    angles = [math.degrees(math.atan(slope)) for slope in (x, y)]
    return _affine(image, shear=angles, center=[0, 0])


OPERATIONS = {
    "Identity": Operation(lambda image, _: image),
    "ShearX": Operation(lambda image, slope: _shear(image, x=slope), 0.0, 0.99, True),
    "ShearY": Operation(lambda image, slope: _shear(image, y=slope), 0.0, 0.99, True),
    # In pixels, independent of the image size.
    "TranslateX": Operation(
        lambda image, by: _affine(image, translate=[int(by), 0]), 0.0, 32.0, True
    ),
    "TranslateY": Operation(
        lambda image, by: _affine(image, translate=[0, int(by)]), 0.0, 32.0, True
    ),
    "Rotate": Operation(
        lambda image, angle: F.rotate(image, angle, F.InterpolationMode.BILINEAR), 0.0, 135.0, True
    ),
    "Brightness": Operation(lambda image, by: F.adjust_brightness(image, 1 + by), 0.0, 0.99, True),
    "Color": Operation(lambda image, by: F.adjust_saturation(image, 1 + by), 0.0, 0.99, True),
    "Contrast": Operation(lambda image, by: F.adjust_contrast(image, 1 + by), 0.0, 0.99, True),
    "Sharpness": Operation(lambda image, by: F.adjust_sharpness(image, 1 + by), 0.0, 0.99, True),
    "Posterize": Operation(lambda image, bits: F.posterize(image, round(bits)), 8.0, 2.0),
    "Solarize": Operation(lambda image, share: F.solarize(image, 255 * share), 1.0, 0.0),
    "AutoContrast": Operation(lambda image, _: F.autocontrast(image)),
    "Equalize": Operation(lambda image, _: F.equalize(image)),
}

_GEOMETRIC = [OPERATIONS[f"{name}{axis}"] for name in ("Shear", "Translate") for axis in "XY"]
_GEOMETRIC += [OPERATIONS["Identity"], OPERATIONS["Rotate"]]


def trivial_augment(image: Tensor, rng: Random) -> Tensor:
    """Apply a random operation at a random strength, all equally likely.

    Args:
        image: ``(C, H, W)`` uint8, not modified. If there are four channels, the last is
            transparency, which only geometric operations change.
        rng: the rng that draws the operation, the strength and its sign.

    Returns:
        A tensor of the same shape; black where the operation moved the image away.
    """
    operation = rng.choice(list(OPERATIONS.values()))
    strength = operation.strength(rng.randrange(BINS))
    if operation.signed and rng.random() < 0.5:
        strength = -strength
    image = image.contiguous()
    if image.shape[0] == 4 and operation not in _GEOMETRIC:
        return torch.cat([operation.apply(image[:3], strength), image[3:]])
    return operation.apply(image, strength)
