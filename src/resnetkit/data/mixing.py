"""MixUp and CutMix on a batch: f(seed, step).

MixUp (arXiv:1710.09412) blends each picture with another one of the batch, CutMix
(arXiv:1905.04899) pastes a box of the other one; the targets are blended by the same share.
"""

from __future__ import annotations

import math
from random import Random

import torch
from torch import Tensor
from torch.nn import functional as F

from ..randomness import derive


def mix(
    images: Tensor,
    labels: Tensor,
    mixup: float,
    cutmix: float,
    classes: int,
    seed: int,
    step: int,
) -> tuple[Tensor, Tensor]:
    """Mix a batch by one of the two methods, with even odds where both are on.

    Args:
        images: ``(n, C, H, W)`` float.
        labels: ``(n,)`` int64.
        mixup, cutmix: the alpha of the Beta distribution that the share comes from; 0 is off.

    Returns:
        Images of the same shape, and targets ``(n, classes)`` float32 that sum to 1. Where both are
        off, ``images`` and ``labels`` themselves.
    """
    methods = [name for name, alpha in (("mixup", mixup), ("cutmix", cutmix)) if alpha > 0]
    if not methods:
        return images, labels
    targets = F.one_hot(labels, classes).to(torch.float32)
    rng = Random(derive(seed, "mixing", step))
    method = rng.choice(methods)
    alpha = mixup if method == "mixup" else cutmix
    share = rng.betavariate(alpha, alpha)
    # The one before it, as the order of the batch is random already; `Loader` relies on this.
    partner = images.roll(1, 0)
    if method == "mixup":
        images = images * share + partner * (1 - share)
    else:
        height, width = images.shape[-2:]
        top, bottom, left, right = _box(height, width, share, rng)
        images = images.clone()
        images[:, :, top:bottom, left:right] = partner[:, :, top:bottom, left:right]
        share = 1 - (bottom - top) * (right - left) / (height * width)
    return images, targets * share + targets.roll(1, 0) * (1 - share)


def _box(height: int, width: int, share: float, rng: Random) -> tuple[int, int, int, int]:
    """Top, bottom, left, right of a box that leaves about ``share`` of the picture."""
    half = math.sqrt(1 - share) / 2
    x, y = rng.randrange(width), rng.randrange(height)
    h, w = int(half * height), int(half * width)
    return max(0, y - h), min(height, y + h), max(0, x - w), min(width, x + w)
