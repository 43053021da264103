"""Small pictures on a GPU: the whole set lives there, and is cut and mirrored there.

Pictures of 32 pixels train so fast that threads which prepare them one by one cannot keep up. Here
a batch is a few tensor operations. Chance is again f(seed, epoch, place), of another stream than
that of `transforms.Augmentation`, and drawn for a whole epoch at once.
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
from .cache import Images
from .loader import Batch, Loader
from .transforms import Augmentation

LARGEST_SIDE, MOST_BYTES = 64, 2 * 2**30


def make_loader(
    device: torch.device, augmentation: Augmentation, images: Images, *args: Any, **more: Any
) -> Loader:
    """A loader of training pictures: `OnDevice` where they fit, else `Loader`."""
    if fits(images, augmentation, device):
        return OnDevice(device, images, *args, **more)
    return Loader(images, *args, **more)


def fits(images: Images, augmentation: Augmentation, device: torch.device) -> bool:
    """Whether these pictures can live on the device: a GPU; all of one small shape, and kept in
    memory; no augmentation but a crop and the mirror."""
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


class OnDevice(Loader):
    """A `Loader` whose training pictures are ``(n, C, H, W)`` uint8 on ``device``."""

    def __init__(self, device: torch.device, images: Images, *args: Any, **more: Any) -> None:
        super().__init__(images, *args, **more)
        pixels = np.stack([images[index] for index in range(len(images))])
        self.pixels = torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2)
        self.labels = images.labels().to(device)
        say(f"All {len(images):,} training pictures are on {device}, cut and mirrored there.")

    def _augmented(
        self,
        chunks: list[np.ndarray],
        wanted: slice,
        augmentation: Augmentation,
        size: int,
        seed: int,
        epoch: int,
    ) -> Iterator[Batch]:
        device, count = self.pixels.device, sum(map(len, chunks))
        rng = np.random.Generator(np.random.PCG64(randomness.derive(seed, "device", epoch)))
        height, width = self.pixels.shape[-2:]
        padding = augmentation.crop_padding
        if padding is None:
            boxes = random_boxes(augmentation, height, width, count, rng)
        else:  # squares of the picture with a shorter side of ``size``, and black around it
            height, width = (size * side // min(height, width) for side in (height, width))
            room = (height - size + 2 * padding + 1, width - size + 2 * padding + 1)
            corners = rng.integers(0, room, (count, 2))
            boxes = np.concatenate([corners, np.full_like(corners, size)], 1)
        mirrored = rng.random(count) < (0.5 if augmentation.flip else 0)
        # Copied once an epoch, since the CPU waits for each copy.
        where, mirror = torch.from_numpy(boxes).to(device), torch.from_numpy(mirrored).to(device)
        order = torch.from_numpy(np.concatenate(chunks)[:, 0]).to(device)
        for number in range(*wanted.indices(len(chunks))):
            indices, start = chunks[number][:, 0], number * self.batch_size
            local_indices, lead = self._share(len(indices))
            own = (
                range(len(indices))[local_indices]
                if isinstance(local_indices, slice)
                else local_indices[lead:]
            )
            at = torch.arange(int(own[0]) - lead, int(own[-1]) + 1, device=device)
            at = start + at % len(indices)  # before the first comes the last
            images = self.pixels[order[at]]
            if padding is not None:
                images = F.pad(_resized(images, height, width), [padding] * 4)
            images = cut(images, where[at], size)
            images = torch.where(mirror[at].view(-1, 1, 1, 1), images.flip(-1), images)
            images = images.contiguous(memory_format=torch.channels_last)
            whole = self.labels[order[start : start + len(indices)]]
            yield Batch(images, whole, indices, local_indices, lead)


def random_boxes(
    augmentation: Augmentation,
    height: int,
    width: int,
    count: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """``(count, 4)`` int64: top, left, height, width of crops, by the rule of `Augmentation`: the
    first of ten tries that fits, else the largest in the middle."""
    least, most = augmentation.crop_scale
    flat, steep = np.log(augmentation.crop_ratio).tolist()
    area = height * width * rng.uniform(least, most, (count, 10))
    ratio = np.exp(rng.uniform(flat, steep, (count, 10)))
    w, h = np.rint(np.sqrt(area * ratio)), np.rint(np.sqrt(area / ratio))
    fit = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    tried, first = np.arange(count), fit.argmax(1)
    w, h = w[tried, first].astype(np.int64), h[tried, first].astype(np.int64)
    found = fit.any(1)
    w[~found] = min(width, max(1, round(height * augmentation.crop_ratio[1])))
    h[~found] = min(height, max(1, round(width / augmentation.crop_ratio[0])))
    top, left = rng.integers(0, height - h + 1), rng.integers(0, width - w + 1)
    top[~found], left[~found] = (height - h[~found]) // 2, (width - w[~found]) // 2
    return np.stack([top, left, h, w], 1)


def cut(images: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Each picture's box, resized bilinearly and antialiased.

    Resizing is linear and separable: one matrix for the rows of a picture, one for its columns.

    Args:
        images: ``(n, C, H, W)`` uint8.
        boxes: ``(n, 4)`` int64: top, left, height, width in pixels.
        size: side of the result.

    Returns:
        ``(n, C, size, size)`` uint8, within 1 of PyTorch's ``interpolate`` of uint8.
    """
    height, width = images.shape[-2:]
    rows = _filters(boxes[:, 0], boxes[:, 2], height, size)  # (n, 1, S, H)
    columns = _filters(boxes[:, 1], boxes[:, 3], width, size)  # (n, 1, S, W)
    return _filtered(images, rows, columns)


def _resized(images: Tensor, height: int, width: int) -> Tensor:
    """``(n, C, H, W)`` uint8 -> ``(n, C, height, width)`` uint8."""
    if images.shape[-2:] == (height, width):
        return images
    zero = torch.zeros(1, dtype=torch.int64, device=images.device)
    high, wide = images.shape[-2:]
    rows = _filters(zero, torch.full_like(zero, high), high, height)  # (1, 1, height, H)
    columns = _filters(zero, torch.full_like(zero, wide), wide, width)  # (1, 1, width, W)
    return _filtered(images, rows, columns)


def _filtered(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    values = rows @ images.float() @ columns.transpose(-1, -2)
    return values.round_().clamp_(0, 255).to(torch.uint8)


def _filters(start: Tensor, length: Tensor, side: int, size: int) -> Tensor:
    """Triangle filters over ``side`` pixels for intervals of them, ``(n, 1, size, side)``: the rows
    sum to 1. Where an interval shrinks, the triangles are as wide as it shrinks."""
    pixels = torch.arange(side, device=start.device) - start.view(-1, 1, 1)  # (n, 1, side)
    length = length.view(-1, 1, 1).float()
    scale = length / size
    centres = scale * (torch.arange(size, device=start.device).view(1, -1, 1) + 0.5)
    distance = (pixels + 0.5 - centres).abs() / scale.clamp(min=1)  # (n, size, side)
    inside = (pixels >= 0) & (pixels < length)
    weights = (1 - distance).clamp(min=0) * inside
    return (weights / weights.sum(-1, keepdim=True)).unsqueeze(1)
