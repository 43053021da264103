"""How an image becomes the input to a network: the preset in a model file."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL.Image import Image

from ..errors import ModelFileError
from .crops import center_crop, to_tensor
from .decode import decode, decode_full, pixels_from_memory
from .gray import ValueRange
from .resize import can_resize, resize_by_pillow, shrunk

if TYPE_CHECKING:
    from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

STATISTICS: dict[int, tuple[tuple[float, ...], tuple[float, ...]]] = {
    1: ((0.449,), (0.226,)),
    3: (IMAGENET_MEAN, IMAGENET_STD),
    4: ((*IMAGENET_MEAN, 0.5), (*IMAGENET_STD, 0.5)),
}
"""Default mean and standard deviation, by number of channels.

These are ImageNet's values. Gray uses the average over the colors; transparency is scaled to the
range from -1 to 1."""


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes the input to a network. Stored in the model file.

    Args:
        resize_size: the shorter side after resizing, in pixels; also the working size that images
            are decoded to.
        crop_size: side of the square cropped from the center, in pixels.
        mean: subtracted from each channel, on a scale from 0 to 1. Its length is the number of
            channels: 3 for RGB, 1 for gray, 4 for RGB and transparency.
        std: each channel is divided by it, on the same scale.
        decoder: how files become pixels. ``"scaled"`` is `resnetkit.data.decode.decode`, which is
            several times faster. ``"full"`` is `resnetkit.data.decode.decode_full`, which decodes
            as was done to measure the accuracies of published weights.
        value_range: the values that become black and white in 16- or 32-bit gray; see
            `resnetkit.data.gray`. It belongs to the dataset, never to one image.
        interpolation: Pillow's name for the resizing filter. All but ``"bilinear"`` need the
            decoder ``"full"``.
        squash: resize both sides to ``resize_size``. Needs the decoder ``"full"``.
    """

    resize_size: int
    crop_size: int
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    decoder: str = "scaled"
    value_range: ValueRange = None
    interpolation: str = "bilinear"
    squash: bool = False

    @property
    def channels(self) -> int:
        """Number of channels in the network's input."""
        return len(self.mean)

    def pixels(self, source: Path | bytes | Image | np.ndarray) -> np.ndarray:
        """Return the working pixels of an image, ``(H, W, channels)`` uint8.

        Training, evaluation and prediction all use these same pixels.

        Raises:
            ImageError: the image cannot be read.
        """
        full = self.decoder == "full"
        options: Any = {"channels": self.channels, "value_range": self.value_range}
        if self.squash or self.interpolation != "bilinear":
            if isinstance(source, Path | bytes):
                whole = decode(source, **options)
            else:
                whole = pixels_from_memory(source, **options)
            return resize_by_pillow(
                whole, self.resize_size, interpolation=self.interpolation, squash=self.squash
            )
        if not isinstance(source, Path | bytes):
            return pixels_from_memory(source, self.resize_size, full=full, **options)
        return (decode_full if full else decode)(source, self.resize_size, **options)

    def working_shape(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the approximate width and height of the `pixels` for an image of ``size``."""
        small = shrunk(size, self.resize_size)
        enlarged = self.decoder == "full" and min(small) < self.resize_size
        scale = self.resize_size / min(small) if enlarged else 1
        return round(small[0] * scale), round(small[1] * scale)

    def crop(self, pixels: np.ndarray) -> Tensor:
        """Crop working pixels to what the network sees, ``(C, crop_size, crop_size)`` uint8."""
        return to_tensor(center_crop(pixels, self.resize_size, self.crop_size))

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain types, for the header of a model file."""
        values = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        # Newer fields are left out at their defaults, so that older versions can read the rest.
        defaults = {"value_range": None, "interpolation": "bilinear", "squash": False}
        return {k: v for k, v in values.items() if k not in defaults or defaults[k] != v}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Preprocessing:
        """Return the preprocessing from the output of `to_dict`.

        Raises:
            ModelFileError: fields or values that this version does not support.
        """
        try:
            fields: dict[str, Any] = {
                k: tuple(v) if isinstance(v, list) else v for k, v in values.items()
            }
            made = cls(**fields)
        except TypeError as error:
            raise ModelFileError(f"unknown preprocessing in the model file: {error}") from error
        sizes = ((made.crop_size, 4096), (made.resize_size, 8192))
        if (
            made.decoder not in ("scaled", "full")
            or not can_resize(made.decoder, made.interpolation, made.squash)
            or not all(type(size) is int and 0 < size <= most for size, most in sizes)
            or not all(_are_numbers(numbers) for numbers in (made.mean, made.std))
            or len(made.mean) != len(made.std)
            or len(made.mean) not in STATISTICS
            or 0 in made.std
            or not _is_range(made.value_range)
        ):
            raise ModelFileError(f"preprocessing that this version does not support: {values}")
        return made


def _are_numbers(values: Any, most: float = 1e6) -> bool:
    return isinstance(values, tuple) and all(
        type(value) in (int, float) and abs(value) < most for value in values
    )


def _is_range(value: Any) -> bool:
    if value is None or value == "image":
        return True
    return _are_numbers(value, 1e38) and len(value) == 2 and value[0] < value[1]
