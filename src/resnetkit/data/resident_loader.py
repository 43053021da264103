"""Batches of small images that all reside on the GPU, and are cropped and mirrored there.

Training on 32x32 images is so fast that threads, which prepare images one by one, cannot keep up.
Here, a batch takes a few tensor operations. Random numbers are again f(seed, epoch, position), but
come from a different stream than in `transforms.Augmentation`, and are drawn for a whole epoch at
once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .. import randomness
from ..progress import say
from .dataset import Images
from .loader import Batch, Loader
from .transforms import Augmentation

LARGEST_SIDE = 64
"""Largest side of images that are kept on the GPU, in pixels."""

MOST_BYTES = 2 * 2**30
"""Maximum total size of the images that are kept on the GPU, in bytes."""


def make_loader(
    device: torch.device, augmentation: Augmentation, images: Images, *args: Any, **options: Any
) -> Loader:
    """Return a loader of training images: a `ResidentLoader` if they fit, else a `Loader`."""
    if fits_on_device(images, augmentation, device):
        return ResidentLoader(device, images, *args, **options)
    return Loader(images, *args, **options)


def fits_on_device(images: Images, augmentation: Augmentation, device: torch.device) -> bool:
    """Return whether images can reside on the device.

    The device must be a CUDA GPU, the images small, all of the same shape and all cached, and the
    augmentation limited to cropping and mirroring.
    """
    if device.type != "cuda" or images.kept is None or not len(images):
        return False
    kept = images.kept
    rows = np.arange(len(images)) if images.rows is None else images.rows
    shapes = kept.shapes[rows]
    height, width = shapes[0].tolist()
    one_shape = bool((shapes == shapes[0]).all() and (kept.buffer[rows] >= 0).all())
    size = kept.channels * height * width * len(rows)
    small = max(height, width) <= LARGEST_SIDE and size <= MOST_BYTES
    plain = augmentation.scale_jitter is None and not augmentation.trivial_augment
    return one_shape and small and plain and not augmentation.erasing


class ResidentLoader(Loader):
    """A `Loader` whose training images are ``(n, C, H, W)`` uint8 on ``device``."""

    def __init__(self, device: torch.device, images: Images, *args: Any, **options: Any) -> None:
        super().__init__(images, *args, **options)
        pixels = np.stack([images[index] for index in range(len(images))])
        self.pixels = torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2)
        self.labels = images.labels().to(device)
        say(f"All {len(images):,} training images are on {device}; they are augmented there.")

    def _augmented_batches(
        self,
        chunks: list[np.ndarray],
        wanted: slice,
        *,
        augmentation: Augmentation,
        size: int,
        seed: int,
        epoch: int,
    ) -> Iterator[Batch]:
        device = self.pixels.device
        count = sum(map(len, chunks))
        rng = np.random.Generator(np.random.PCG64(randomness.derive(seed, "device", epoch)))
        height, width = self.pixels.shape[-2:]
        padding = augmentation.crop_padding
        if padding is None:
            crops = random_crops(augmentation, height, width=width, count=count, rng=rng)
        else:  # squares from the image, scaled to a shorter side of ``size`` and padded with black
            scale_to = min(height, width)
            height = size * height // scale_to
            width = size * width // scale_to
            positions = (height - size + 2 * padding + 1, width - size + 2 * padding + 1)
            corners = rng.integers(0, positions, (count, 2))
            crops = np.concatenate([corners, np.full_like(corners, size)], 1)
        mirrored = rng.random(count) < (0.5 if augmentation.flip else 0)
        # Copied once per epoch, because the CPU waits for each copy.
        crops_on_device = torch.from_numpy(crops).to(device)
        mirrored_on_device = torch.from_numpy(mirrored).to(device)
        order = torch.from_numpy(np.concatenate(chunks)[:, 0]).to(device)
        for number in range(*wanted.indices(len(chunks))):
            indices = chunks[number][:, 0]
            start = number * self.batch_size
            local_indices, lead = self._local_share(len(indices))
            own = (
                range(len(indices))[local_indices]
                if isinstance(local_indices, slice)
                else local_indices[lead:]
            )
            positions_in_batch = torch.arange(int(own[0]) - lead, int(own[-1]) + 1, device=device)
            # The image before the first in the batch is the last in the batch.
            positions_in_epoch = start + positions_in_batch % len(indices)
            images = self.pixels[order[positions_in_epoch]]
            if padding is not None:
                images = F.pad(_resize(images, height, width), [padding] * 4)
            images = crop_and_resize(images, crops_on_device[positions_in_epoch], size)
            mirror = mirrored_on_device[positions_in_epoch].view(-1, 1, 1, 1)
            images = torch.where(mirror, images.flip(-1), images)
            images = images.contiguous(memory_format=torch.channels_last)
            labels = self.labels[order[start : start + len(indices)]]
            yield Batch(images, labels, indices=indices, local_indices=local_indices, lead=lead)


def random_crops(
    augmentation: Augmentation,
    height: int,
    *,
    width: int,
    count: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """Return top, left, height and width of random crops, ``(count, 4)`` int64.

    The rule is the same as in `Augmentation`: the first of ten tries that fits, else the largest
    crop in the middle.
    """
    smallest, largest = augmentation.crop_scale
    log_tallest, log_widest = np.log(augmentation.crop_ratio).tolist()
    area = height * width * rng.uniform(smallest, largest, (count, 10))
    ratio = np.exp(rng.uniform(log_tallest, log_widest, (count, 10)))
    w = np.rint(np.sqrt(area * ratio))
    h = np.rint(np.sqrt(area / ratio))
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    rows = np.arange(count)
    first = fits.argmax(1)
    w = w[rows, first].astype(np.int64)
    h = h[rows, first].astype(np.int64)
    none_fits = ~fits.any(1)
    w[none_fits] = min(width, max(1, round(height * augmentation.crop_ratio[1])))
    h[none_fits] = min(height, max(1, round(width / augmentation.crop_ratio[0])))
    top = rng.integers(0, height - h + 1)
    left = rng.integers(0, width - w + 1)
    top[none_fits] = (height - h[none_fits]) // 2
    left[none_fits] = (width - w[none_fits]) // 2
    return np.stack([top, left, h, w], 1)


def crop_and_resize(images: Tensor, crops: Tensor, size: int) -> Tensor:
    """Crop each image and resize it with antialiased bilinear interpolation.

    Resizing is linear and separable: one matrix for the rows of an image, one for its columns.

    Args:
        images: ``(n, C, H, W)`` uint8.
        crops: ``(n, 4)`` int64: top, left, height, width in pixels.
        size: side of the result.

    Returns:
        ``(n, C, size, size)`` uint8, within 1 of PyTorch's ``interpolate`` on uint8.
    """
    height, width = images.shape[-2:]
    rows = _filters(crops[:, 0], crops[:, 2], side=height, size=size)  # (n, 1, S, H)
    columns = _filters(crops[:, 1], crops[:, 3], side=width, size=size)  # (n, 1, S, W)
    return _apply_filters(images, rows, columns)


def _resize(images: Tensor, height: int, width: int) -> Tensor:
    """Resize ``(n, C, H, W)`` uint8 to ``(n, C, height, width)`` uint8."""
    if images.shape[-2:] == (height, width):
        return images
    start = torch.zeros(1, dtype=torch.int64, device=images.device)
    old_height, old_width = images.shape[-2:]
    # (1, 1, height, H) and (1, 1, width, W)
    rows = _filters(start, torch.full_like(start, old_height), side=old_height, size=height)
    columns = _filters(start, torch.full_like(start, old_width), side=old_width, size=width)
    return _apply_filters(images, rows, columns)


def _apply_filters(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    values = rows @ images.float() @ columns.transpose(-1, -2)
    return values.round_().clamp_(0, 255).to(torch.uint8)


def _filters(start: Tensor, length: Tensor, *, side: int, size: int) -> Tensor:
    """Return triangle filters that resize intervals of ``side`` pixels to ``size`` pixels.

    The filters are ``(n, 1, size, side)``, and each row sums to 1. If an interval is shrunk, its
    triangles are wider by the same factor.
    """
    pixels = torch.arange(side, device=start.device) - start.view(-1, 1, 1)  # (n, 1, side)
    length = length.view(-1, 1, 1).float()
    scale = length / size
    centers = scale * (torch.arange(size, device=start.device).view(1, -1, 1) + 0.5)
    distance = (pixels + 0.5 - centers).abs() / scale.clamp(min=1)  # (n, size, side)
    inside = (pixels >= 0) & (pixels < length)
    weights = (1 - distance).clamp(min=0) * inside
    return (weights / weights.sum(-1, keepdim=True)).unsqueeze(1)
