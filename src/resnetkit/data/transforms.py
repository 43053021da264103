"""One image -> one tensor: the crops of the evaluation preset, and the training augmentation.

Both return ``(C, size, size)`` uint8: C is 3 for RGB, 1 for gray, 4 for RGB and transparency.
`normalize` converts a whole batch to the network's input on the device, so that only a quarter of
the bytes has to be copied there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .crops import square, to_tensor
from .preprocessing import IMAGENET_MEAN, Preprocessing
from .resize import MAX_ASPECT, resize, resize_tensor, with_shorter_side


@lru_cache(maxsize=16)
def _mean_and_std(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return mean and std on the device; cached, because copying them would stall each batch."""
    with torch.inference_mode(False):
        # Not the caller's default dtype and device.
        options: dict[str, Any] = {"dtype": torch.float32, "device": device}
        return torch.tensor(mean, **options), torch.tensor(std, **options)


def normalize(images: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Return ``(N, C, H, W)`` uint8 as float32 with about zero mean and unit variance."""
    count, channels, height, width = images.shape
    mean, std = _mean_and_std(preprocessing.mean, preprocessing.std, images.device)
    if not images.is_contiguous(memory_format=torch.channels_last):
        shape = (channels, 1, 1)
        return images.to(torch.float32).div_(255).sub_(mean.view(shape)).div_(std.view(shape))
    # Rows of interleaved channels give the same bits in a quarter of the time, because PyTorch is
    # slow along an axis of length 3 and fast along a long one.
    rows = images.permute(0, 2, 3, 1).reshape(count, height, width * channels).to(torch.float32)
    rows.div_(255).sub_(mean.repeat(width)).div_(std.repeat(width))
    return rows.view(count, height, width, channels).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class Augmentation:
    """Random changes to a training image: a crop, a flip, one other operation, an erased box.

    The crop is a random resized crop (Szegedy et al., arXiv:1409.4842, section 6), unless
    ``crop_padding`` or ``scale_jitter`` is given.

    Args:
        crop_scale: smallest and largest share of the image's area that a crop covers, in (0, 1].
        crop_ratio: smallest and largest width / height of a crop.
        crop_padding: width in pixels of the black border that is added after the image's shorter
            side is resized to the result's side. A random square is then cropped (He et al.,
            arXiv:1512.03385, section 4.2).
        scale_jitter: range of the shorter side after resizing, as multiples of the result's side.
            A random square is then cropped (the same paper, section 3.4).
        flip: whether to mirror the image with probability 1/2.
        trivial_augment: whether to apply a random operation from `resnetkit.data.trivial_augment`.
        erasing: probability that a box is erased; see `erase`.
        mean: the color of the erased box, on a scale from 0 to 1 for each channel.
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
        """Return a random view of ``(H, W, C)`` uint8, as ``(C, size, size)`` uint8."""
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

    The box covers 2% to 33% of the image, and its height / width is 0.3 to 3.3 (Zhong et al.,
    arXiv:1708.04896). If none of ten tries fits, the image is returned unchanged.

    Args:
        image: ``(C, H, W)`` uint8.
        rng: the rng that draws the box.
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
    """Mirror ``(C, H, W)`` uint8 left to right. NumPy does the copying; see `stack`."""
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
    return to_tensor(square(pixels, top, left=left, size=size))


def stack(images: Sequence[Tensor]) -> Tensor:
    """Stack ``n`` images ``(C, S, S)`` uint8 into ``(n, C, S, S)`` in channels_last order.

    NumPy does the copying, because for 32,768 values or more, PyTorch would start a pool of compute
    threads in every worker thread.
    """
    channels, size = images[0].shape[0], images[0].shape[-1]
    batch = np.empty((len(images), size, size, channels), np.uint8)
    for row, image in zip(batch, images, strict=True):
        row[:] = image.permute(1, 2, 0).numpy()
    return torch.from_numpy(batch).permute(0, 3, 1, 2)
