"""One image -> one tensor: the evaluation preset, and the training augmentation.

Both return ``(C, size, size)`` uint8: C is 3 for RGB, 1 for gray, 4 for RGB and transparency.
`normalize` converts a whole batch to the network's input on the device, so only a quarter of the
bytes is copied there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

from ..errors import ModelFileError
from .decode import decode, decode_full, pixels_from_memory
from .gray import ValueRange
from .resize import (
    MAX_ASPECT,
    can_resize,
    resize,
    resize_by_pillow,
    resize_tensor,
    shrunk,
    with_shorter_side,
)

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

STATISTICS: dict[int, tuple[tuple[float, ...], tuple[float, ...]]] = {
    1: ((0.449,), (0.226,)),
    3: (IMAGENET_MEAN, IMAGENET_STD),
    4: ((*IMAGENET_MEAN, 0.5), (*IMAGENET_STD, 0.5)),
}
"""Default mean and standard deviation, by number of channels.

They are those of ImageNet. Gray has the average of the colors; transparency becomes -1 to 1."""


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes the input of a network. A model file carries it.

    Args:
        resize_size: the shorter side after resizing, in pixels; also the working size to which
            images are decoded.
        crop_size: side of the square cropped from the center, in pixels.
        mean: subtracted from each channel, on a scale from 0 to 1. Its length is the number of
            channels: 3 for RGB, 1 for gray, 4 for RGB and transparency.
        std: each channel is divided by it, on the same scale.
        decoder: how files become pixels. ``"scaled"`` is `resnetkit.data.decode.decode`, which is
            several times as fast. ``"full"`` is `resnetkit.data.decode.decode_full`, with which the
            accuracies of published weights were measured.
        value_range: the values that become black and white in 16- or 32-bit gray; see
            `resnetkit.data.gray`. It belongs to the dataset, never to one image.
        interpolation: Pillow's name of the filter that resizes. All but ``"bilinear"`` need the
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
        """Number of channels of the network's input."""
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
        """Return the approximate width and height of the `pixels` of an image of ``size``."""
        small = shrunk(size, self.resize_size)
        enlarged = self.decoder == "full" and min(small) < self.resize_size
        scale = self.resize_size / min(small) if enlarged else 1
        return round(small[0] * scale), round(small[1] * scale)

    def crop(self, pixels: np.ndarray) -> Tensor:
        """Crop working pixels to what the network sees, ``(C, crop_size, crop_size)`` uint8."""
        return center_crop(pixels, self.resize_size, self.crop_size)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain types, for the header of a model file."""
        values = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        # Newer fields are left out at their defaults, so that older versions can read the rest.
        defaults = {"value_range": None, "interpolation": "bilinear", "squash": False}
        return {k: v for k, v in values.items() if k not in defaults or defaults[k] != v}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Preprocessing:
        """Return the preprocessing that `to_dict` described.

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


@lru_cache(maxsize=16)
def _mean_and_std(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return both on the device. They are cached there, because a copy would stall each batch."""
    with torch.inference_mode(False):
        options: dict[str, Any] = {"dtype": torch.float32, "device": device}  # not the defaults
        return torch.tensor(mean, **options), torch.tensor(std, **options)


def normalize(images: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Return ``(N, C, H, W)`` uint8 as float32 of about zero mean and unit variance."""
    count, channels, height, width = images.shape
    mean, std = _mean_and_std(preprocessing.mean, preprocessing.std, images.device)
    if not images.is_contiguous(memory_format=torch.channels_last):
        shape = (channels, 1, 1)
        return images.to(torch.float32).div_(255).sub_(mean.view(shape)).div_(std.view(shape))
    # Rows of interleaved channels: the same bits in a quarter of the time, because PyTorch is slow
    # along an axis of length 3 and fast along a long one.
    rows = images.permute(0, 2, 3, 1).reshape(count, height, width * channels).to(torch.float32)
    rows.div_(255).sub_(mean.repeat(width)).div_(std.repeat(width))
    return rows.view(count, height, width, channels).permute(0, 3, 1, 2)


def center_crop(pixels: np.ndarray, resize_size: int, crop_size: int) -> Tensor:
    """Resize the shorter side to ``resize_size`` and crop the square in the middle.

    Args:
        pixels: ``(H, W, C)`` uint8.
        resize_size: the shorter side after resizing, in pixels.
        crop_size: side of the square, in pixels.

    Returns:
        ``(C, crop_size, crop_size)`` uint8; black where the resized image is smaller.
    """
    pixels = _resize_and_pad(pixels, resize_size, crop_size)
    height, width = pixels.shape[:2]
    top = round((height - crop_size) / 2.0)
    left = round((width - crop_size) / 2.0)
    return _crop_square(pixels, top, left=left, size=crop_size)


def ten_crops(pixels: np.ndarray, resize_size: int, crop_size: int) -> list[Tensor]:
    """Resize as `center_crop` does, and crop five squares of the image and of its mirror image.

    Returns:
        Top left, top right, bottom left, bottom right and center; then the same of the mirror
        image. Each is ``(C, crop_size, crop_size)`` uint8.
    """
    pixels = _resize_and_pad(pixels, resize_size, crop_size)
    bottom = pixels.shape[0] - crop_size
    right = pixels.shape[1] - crop_size
    center = (round(bottom / 2.0), round(right / 2.0))
    corners = ((0, 0), (0, right), (bottom, 0), (bottom, right), center)
    mirror = np.ascontiguousarray(pixels[:, ::-1])
    return [
        _crop_square(image, top, left=left, size=crop_size)
        for image in (pixels, mirror)
        for top, left in corners
    ]


def _resize_and_pad(pixels: np.ndarray, resize_size: int, crop_size: int) -> np.ndarray:
    """Resize the shorter side to ``resize_size``; pad with black if a crop would not fit."""
    height, width = pixels.shape[:2]
    if max(height, width) > MAX_ASPECT * min(height, width):  # resize only what the crop can show
        window = 2 * math.ceil(min(height, width) * max(1.0, crop_size / resize_size))
        top = max(0, (height - window) // 2)
        left = max(0, (width - window) // 2)
        pixels = pixels[top : top + window, left : left + window]
        height, width = pixels.shape[:2]
    target = with_shorter_side(width, height, resize_size)
    if target != (width, height):
        pixels = resize(pixels, target)
    width, height = target
    if min(target) < crop_size:
        missing_x = max(0, crop_size - width)
        missing_y = max(0, crop_size - height)
        padding = (
            (missing_y // 2, (missing_y + 1) // 2),
            (missing_x // 2, (missing_x + 1) // 2),
            (0, 0),
        )
        pixels = np.pad(pixels, padding)
    return pixels


def _crop_square(pixels: np.ndarray, top: int, *, left: int, size: int) -> Tensor:
    """Return a square of ``(H, W, C)`` as ``(C, size, size)``."""
    square = pixels[top : top + size, left : left + size]
    return torch.from_numpy(np.require(square, requirements="W")).permute(2, 0, 1)


@dataclass(frozen=True)
class Augmentation:
    """Random changes to a training image: a crop, a mirror, an operation, an erased box.

    The crop is a random resized one (Szegedy et al., arXiv:1409.4842, section 6), unless
    ``crop_padding`` or ``scale_jitter`` is given.

    Args:
        crop_scale: smallest and largest share of the image's area that a crop covers, in (0, 1].
        crop_ratio: smallest and largest width / height of a crop.
        crop_padding: pixels of black added around the image, whose shorter side is first resized to
            that of the result. A random square is cropped. He et al., arXiv:1512.03385, section
            4.2.
        scale_jitter: range of the shorter side to which the image is resized, as multiples of
            the result's side, before a random square is cropped. The same paper, section 3.4.
        flip: mirror with probability 1/2.
        trivial_augment: apply one random operation of `resnetkit.data.trivial_augment`.
        erasing: probability that a box is erased; see `erase`.
        mean: the color of that box, on a scale from 0 to 1 for each channel.
    """

    crop_scale: tuple[float, float] = (0.35, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    crop_padding: int | None = None
    scale_jitter: tuple[float, float] | None = None
    flip: bool = True
    trivial_augment: bool = False
    erasing: float = 0.0
    mean: tuple[float, ...] = IMAGENET_MEAN

    def __call__(self, pixels: np.ndarray, size: int, rng: Random) -> Tensor:
        """Return a random view ``(C, size, size)`` uint8 of ``(H, W, C)`` uint8."""
        image = self._crop(pixels, size, rng)
        if self.flip and rng.random() < 0.5:
            image = mirrored(image)
        if self.trivial_augment:
            # Imported here because torchvision takes a second to import.
            from .trivial_augment import trivial_augment

            image = trivial_augment(image, rng)
        if self.erasing and rng.random() < self.erasing:
            image = erase(image, rng, self.mean)
        return image

    def _crop(self, pixels: np.ndarray, size: int, rng: Random) -> Tensor:
        if self.crop_padding is not None:
            pad = self.crop_padding
            scaled = _scale(pixels, size, rng)
            return _random_square(np.pad(scaled, ((pad, pad), (pad, pad), (0, 0))), size, rng)
        if self.scale_jitter is not None:
            least, most = (round(share * size) for share in self.scale_jitter)
            return _random_square(_scale(pixels, rng.randint(least, most), rng), size, rng)
        height, width = pixels.shape[:2]
        top, left, h, w = self._random_box(height, width, rng)
        return resize_tensor(pixels[top : top + h, left : left + w], (size, size))[0]

    def _random_box(self, height: int, width: int, rng: Random) -> tuple[int, int, int, int]:
        """Return top, left, height, width: the first of ten tries that fits, else the largest."""
        log_ratio = tuple(map(math.log, self.crop_ratio))
        for _ in range(10):
            area = height * width * rng.uniform(*self.crop_scale)
            ratio = math.exp(rng.uniform(*log_ratio))
            w = round(math.sqrt(area * ratio))
            h = round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                return rng.randint(0, height - h), rng.randint(0, width - w), h, w
        w = min(width, max(1, round(height * self.crop_ratio[1])))
        h = min(height, max(1, round(width / self.crop_ratio[0])))
        return (height - h) // 2, (width - w) // 2, h, w


def erase(image: Tensor, rng: Random, mean: tuple[float, ...] = IMAGENET_MEAN) -> Tensor:
    """Return a copy with a box in the mean color, which becomes zero when normalized.

    The box covers 2 % to 33 % of the image, with a height / width of 0.3 to 3.3: Zhong et al.,
    arXiv:1708.04896. If none of ten tries fits, the image is returned as it is.

    Args:
        image: ``(C, H, W)`` uint8.
        rng: draws the box.
        mean: mean of each channel, on a scale from 0 to 1.
    """
    height, width = image.shape[-2:]
    for _ in range(10):
        area = height * width * rng.uniform(0.02, 0.33)
        ratio = math.exp(rng.uniform(math.log(0.3), math.log(3.3)))
        h = round(math.sqrt(area * ratio))
        w = round(math.sqrt(area / ratio))
        if 0 < h < height and 0 < w < width:
            top = rng.randint(0, height - h)
            left = rng.randint(0, width - w)
            pixels = image.permute(1, 2, 0).numpy().copy()
            pixels[top : top + h, left : left + w] = [round(255 * share) for share in mean]
            return torch.from_numpy(pixels).permute(2, 0, 1)
    return image


def mirrored(image: Tensor) -> Tensor:
    """Return ``(C, H, W)`` uint8 mirrored left to right; copied by NumPy, as in `stack`."""
    pixels = image.permute(1, 2, 0).numpy()[:, ::-1]
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)


def _scale(pixels: np.ndarray, side: int, rng: Random) -> np.ndarray:
    """Resize to a shorter side of ``side`` pixels; keep a random piece of a very long image."""
    height, width = pixels.shape[:2]
    if max(height, width) > MAX_ASPECT * min(height, width):
        longest = 2 * min(height, width)
        top = rng.randint(0, max(0, height - longest))
        left = rng.randint(0, max(0, width - longest))
        pixels = pixels[top : top + longest, left : left + longest]
        height, width = pixels.shape[:2]
    target = with_shorter_side(width, height, side)
    return pixels if target == (width, height) else resize(pixels, target)


def _random_square(pixels: np.ndarray, size: int, rng: Random) -> Tensor:
    """Crop ``(H, W, C)`` to ``(C, size, size)``."""
    height, width = pixels.shape[:2]
    top = rng.randint(0, height - size)
    left = rng.randint(0, width - size)
    return _crop_square(pixels, top, left=left, size=size)


def stack(images: Sequence[Tensor]) -> Tensor:
    """Stack ``n`` images ``(C, S, S)`` uint8 to ``(n, C, S, S)`` in channels_last order.

    NumPy copies, because from 32,768 values on PyTorch would start a pool of compute threads in
    every worker thread.
    """
    channels, size = images[0].shape[0], images[0].shape[-1]
    batch = np.empty((len(images), size, size, channels), np.uint8)
    for row, image in zip(batch, images, strict=True):
        row[:] = image.permute(1, 2, 0).numpy()
    return torch.from_numpy(batch).permute(0, 3, 1, 2)
