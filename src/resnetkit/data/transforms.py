"""One picture -> one tensor: the evaluation preset, and the training augmentation.

Both end in ``(C, size, size)`` uint8: C is 3 for RGB, 1 for grey, 4 for RGB and transparency.
`normalize` makes the network's input of a whole batch of them on the device, so that a quarter of
the bytes travels.
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
from .color import ValueRange
from .decode import decode, decode_full, from_memory
from .resize import can_resize, resize, resize_by_pillow, resize_tensor, shrunk, with_shorter_side

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

STATISTICS: dict[int, tuple[tuple[float, ...], tuple[float, ...]]] = {
    1: ((0.449,), (0.226,)),
    3: (IMAGENET_MEAN, IMAGENET_STD),
    4: ((*IMAGENET_MEAN, 0.5), (*IMAGENET_STD, 0.5)),
}
"""Mean and deviation by number of channels, where nothing else is known: those of ImageNet; for
grey the average over its colours; transparency goes from -1 to 1."""


@dataclass(frozen=True)
class Preprocessing:
    """How a picture becomes the input of a network. A model file carries it.

    Args:
        resize_size: the shorter side after resizing, in pixels; also the working size to which
            pictures are decoded.
        crop_size: side of the square cut from the centre, in pixels.
        mean, std: of each channel on a scale from 0 to 1; they are subtracted and divided by. They
            are 3 for RGB, 1 for grey, 4 for RGB and transparency.
        decoder: how files become pixels: ``"scaled"`` is `resnetkit.data.decode.decode`, which is
            several times as fast; ``"full"`` is `resnetkit.data.decode.decode_full`, with which the
            accuracies of published weights were measured.
        value_range: the numbers that become black and white where grey has 16 or 32 bits; see
            `resnetkit.data.color.ValueRange`. It belongs to the data set, never to one image.
        interpolation, squash: Pillow's for the resizing; and whether both sides become
            ``resize_size`` long. With the decoder ``"full"`` only.
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
        """Of the network's input."""
        return len(self.mean)

    def pixels(self, source: Path | bytes | Image | np.ndarray) -> np.ndarray:
        """The working pixels of a picture, ``(H, W, channels)`` uint8: one set for every purpose.

        Raises:
            PictureError: it cannot be read.
        """
        full = self.decoder == "full"
        form: Any = {"channels": self.channels, "value_range": self.value_range}
        if self.squash or self.interpolation != "bilinear":
            file = isinstance(source, Path | bytes)
            whole = decode(source, **form) if file else from_memory(source, **form)  # type: ignore[arg-type]
            return resize_by_pillow(whole, self.resize_size, self.interpolation, self.squash)
        if not isinstance(source, Path | bytes):
            return from_memory(source, self.resize_size, full, **form)
        return (decode_full if full else decode)(source, self.resize_size, **form)

    def working_shape(self, size: tuple[int, int]) -> tuple[int, int]:
        """About the width and height of `pixels` of a picture of ``size``."""
        small = shrunk(size, self.resize_size)
        enlarged = self.decoder == "full" and min(small) < self.resize_size
        scale = self.resize_size / min(small) if enlarged else 1
        return round(small[0] * scale), round(small[1] * scale)

    def crop(self, pixels: np.ndarray) -> Tensor:
        """Working pixels -> what the network sees, ``(C, crop_size, crop_size)`` uint8."""
        return center_crop(pixels, self.resize_size, self.crop_size)

    def to_dict(self) -> dict[str, Any]:
        values = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        # What is usual is left out, so that older versions read what they understand.
        usual = {"value_range": None, "interpolation": "bilinear", "squash": False}
        return {k: v for k, v in values.items() if k not in usual or usual[k] != v}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Preprocessing:
        """The inverse of `to_dict`.

        Raises:
            ModelFileError: values that this version does not know.
        """
        try:
            known: dict[str, Any] = {
                k: tuple(v) if isinstance(v, list) else v for k, v in values.items()
            }
            made = cls(**known)
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
            raise ModelFileError(f"preprocessing that this version does not know: {values}")
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
    """Both on the device, where they stay: copying them there would make each batch wait."""
    with torch.inference_mode(False):
        kind: dict[str, Any] = {"dtype": torch.float32, "device": device}  # whatever the default is
        return torch.tensor(mean, **kind), torch.tensor(std, **kind)


def normalize(images: Tensor, preprocessing: Preprocessing) -> Tensor:
    """``(N, C, H, W)`` uint8 -> float32 of about zero mean and unit variance, same device."""
    count, channels, height, width = images.shape
    mean, std = _mean_and_std(preprocessing.mean, preprocessing.std, images.device)
    if not images.is_contiguous(memory_format=torch.channels_last):
        shape = (channels, 1, 1)
        return images.to(torch.float32).div_(255).sub_(mean.view(shape)).div_(std.view(shape))
    # Rows of colours side by side: the same bits in a quarter of the time, because PyTorch takes
    # the three colours of one pixel slowly, and a long row fast.
    rows = images.permute(0, 2, 3, 1).reshape(count, height, width * channels).to(torch.float32)
    rows.div_(255).sub_(mean.repeat(width)).div_(std.repeat(width))
    return rows.view(count, height, width, channels).permute(0, 3, 1, 2)


def center_crop(pixels: np.ndarray, resize_size: int, crop_size: int) -> Tensor:
    """Resize the shorter side to ``resize_size`` and cut the square in the middle.

    Args:
        pixels: ``(H, W, C)`` uint8.

    Returns:
        ``(C, crop_size, crop_size)`` uint8; black where the resized picture is smaller.
    """
    pixels = _resized(pixels, resize_size, crop_size)
    height, width = pixels.shape[:2]
    return _window(
        pixels, round((height - crop_size) / 2.0), round((width - crop_size) / 2.0), crop_size
    )


def ten_crops(pixels: np.ndarray, resize_size: int, crop_size: int) -> list[Tensor]:
    """Resize as `center_crop` does, and cut five squares: top left, top right, bottom left, bottom
    right, centre; then the same of the mirrored picture. Each ``(C, crop_size, crop_size)``
    uint8."""
    pixels = _resized(pixels, resize_size, crop_size)
    bottom, right = pixels.shape[0] - crop_size, pixels.shape[1] - crop_size
    middle = round(bottom / 2.0), round(right / 2.0)
    places = ((0, 0), (0, right), (bottom, 0), (bottom, right), middle)
    both = pixels, np.ascontiguousarray(pixels[:, ::-1])
    return [_window(side, top, left, crop_size) for side in both for top, left in places]


def _resized(pixels: np.ndarray, resize_size: int, crop_size: int) -> np.ndarray:
    """Resize the shorter side to ``resize_size``; pad with black where a crop would not fit."""
    height, width = pixels.shape[:2]
    if max(height, width) > 20 * min(height, width):  # resize only what will be seen
        window = 2 * math.ceil(min(height, width) * max(1.0, crop_size / resize_size))
        top, left = max(0, (height - window) // 2), max(0, (width - window) // 2)
        pixels = pixels[top : top + window, left : left + window]
        height, width = pixels.shape[:2]
    target = with_shorter_side(width, height, resize_size)
    if target != (width, height):
        pixels = resize(pixels, target)
    width, height = target
    if min(target) < crop_size:
        short_x, short_y = max(0, crop_size - width), max(0, crop_size - height)
        sides = ((short_y // 2, (short_y + 1) // 2), (short_x // 2, (short_x + 1) // 2), (0, 0))
        pixels = np.pad(pixels, sides)
    return pixels


def _window(pixels: np.ndarray, top: int, left: int, size: int) -> Tensor:
    square = pixels[top : top + size, left : left + size]
    return torch.from_numpy(np.require(square, requirements="W")).permute(2, 0, 1)


@dataclass(frozen=True)
class Augmentation:
    """What chance does to a training picture: a crop, a mirror, an operation, a blank box.

    The crop is a random resized one (Szegedy et al., arXiv:1409.4842, section 6), unless one of
    the two others is given.

    Args:
        crop_scale: least and greatest share of the picture's area that a crop takes, in (0, 1].
        crop_ratio: least and greatest width / height of a crop.
        crop_padding: pixels of black around the picture, its shorter side being as long as that
            of the result; a random square of it is cut. He et al., arXiv:1512.03385, section 4.2.
        scale_jitter: least and greatest shorter side that the picture is scaled to, over that of
            the result, before a random square is cut. The same, section 3.4.
        flip: mirror every other picture.
        trivial_augment: one random operation of `resnetkit.data.trivial_augment`.
        erasing: share of the pictures that lose a box; see `erase`.
        mean: of each channel, on a scale from 0 to 1: the colour of that box.
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
        """``(H, W, C)`` uint8 -> ``(C, size, size)`` uint8, as ``chance`` decides."""
        image = self._crop(pixels, size, rng)
        if self.flip and rng.random() < 0.5:
            image = mirrored(image)
        if self.trivial_augment:
            from .trivial_augment import (
                trivial_augment,  # imports torchvision, which takes a second
            )

            image = trivial_augment(image, rng)
        if self.erasing and rng.random() < self.erasing:
            image = erase(image, rng, self.mean)
        return image

    def _crop(self, pixels: np.ndarray, size: int, rng: Random) -> Tensor:
        if self.crop_padding is not None:
            pad = self.crop_padding
            scaled = _scaled(pixels, size, rng)
            return _random_square(np.pad(scaled, ((pad, pad), (pad, pad), (0, 0))), size, rng)
        if self.scale_jitter is not None:
            least, most = (round(share * size) for share in self.scale_jitter)
            return _random_square(_scaled(pixels, rng.randint(least, most), rng), size, rng)
        height, width = pixels.shape[:2]
        top, left, h, w = self._box(height, width, rng)
        return resize_tensor(pixels[top : top + h, left : left + w], (size, size))[0]

    def _box(self, height: int, width: int, rng: Random) -> tuple[int, int, int, int]:
        """Top, left, height, width. Ten tries, then the largest crop in the middle that fits."""
        log_ratio = tuple(map(math.log, self.crop_ratio))
        for _ in range(10):
            area = height * width * rng.uniform(*self.crop_scale)
            ratio = math.exp(rng.uniform(*log_ratio))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                return rng.randint(0, height - h), rng.randint(0, width - w), h, w
        w = min(width, max(1, round(height * self.crop_ratio[1])))
        h = min(height, max(1, round(width / self.crop_ratio[0])))
        return (height - h) // 2, (width - w) // 2, h, w


def erase(image: Tensor, rng: Random, mean: tuple[float, ...] = IMAGENET_MEAN) -> Tensor:
    """A copy with a box in the mean colour, which is zero once normalised. Its area is 2 % to 33 %
    of the picture's, its height / width 0.3 to 3.3: Zhong et al., arXiv:1708.04896.

    Args:
        picture: ``(C, H, W)`` uint8.
        mean: of each channel, on a scale from 0 to 1.
    """
    height, width = image.shape[-2:]
    for _ in range(10):
        area = height * width * rng.uniform(0.02, 0.33)
        ratio = math.exp(rng.uniform(math.log(0.3), math.log(3.3)))
        h, w = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < h < height and 0 < w < width:
            top, left = rng.randint(0, height - h), rng.randint(0, width - w)
            pixels = image.permute(1, 2, 0).numpy().copy()
            pixels[top : top + h, left : left + w] = [round(255 * share) for share in mean]
            return torch.from_numpy(pixels).permute(2, 0, 1)
    return image


def mirrored(image: Tensor) -> Tensor:
    """Return ``(C, H, W)`` uint8 with left and right exchanged. NumPy copies, as in `stack`."""
    pixels = image.permute(1, 2, 0).numpy()[:, ::-1]
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)


def _scaled(pixels: np.ndarray, side: int, rng: Random) -> np.ndarray:
    """The picture with a shorter side of ``side`` pixels; of one beyond 1 to 20, a random piece."""
    height, width = pixels.shape[:2]
    if max(height, width) > 20 * min(height, width):
        longest = 2 * min(height, width)
        top = rng.randint(0, max(0, height - longest))
        left = rng.randint(0, max(0, width - longest))
        pixels = pixels[top : top + longest, left : left + longest]
        height, width = pixels.shape[:2]
    target = with_shorter_side(width, height, side)
    return pixels if target == (width, height) else resize(pixels, target)


def _random_square(pixels: np.ndarray, size: int, rng: Random) -> Tensor:
    """``(H, W, C)`` -> ``(C, size, size)``."""
    height, width = pixels.shape[:2]
    top, left = rng.randint(0, height - size), rng.randint(0, width - size)
    return _window(pixels, top, left, size)


def stack(images: Sequence[Tensor]) -> Tensor:
    """``n`` times ``(C, S, S)`` uint8 -> ``(n, C, S, S)`` in channels_last order.

    NumPy copies: from 32,768 values on, PyTorch would start a team of compute threads in every
    thread that reads images.
    """
    channels, size = images[0].shape[0], images[0].shape[-1]
    batch = np.empty((len(images), size, size, channels), np.uint8)
    for row, image in zip(batch, images, strict=True):
        row[:] = image.permute(1, 2, 0).numpy()
    return torch.from_numpy(batch).permute(0, 3, 1, 2)
