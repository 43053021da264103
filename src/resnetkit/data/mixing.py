"""MixUp and CutMix on a batch: f(seed, step).

MixUp (arXiv:1710.09412) blends each image with another from the batch. CutMix (arXiv:1905.04899)
pastes a box from the other image over it. The targets are blended in the same proportion.
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
    """Apply MixUp or CutMix to a batch; if both are on, each is chosen with probability 1/2.

    Args:
        images: ``(n, C, H, W)`` float.
        labels: ``(n,)`` int64.
        mixup: alpha of the Beta distribution that MixUp draws its share from; 0 turns MixUp off.
        cutmix: the same for CutMix.
        classes: number of classes.
        seed: seed of the run.
        step: step of the run.

    Returns:
        Images of the same shape, and targets ``(n, classes)`` float32, where each row sums to 1. If
        MixUp and CutMix are both off, the unchanged ``images`` and ``labels``.
    """
    methods = [name for name, alpha in (("mixup", mixup), ("cutmix", cutmix)) if alpha > 0]
    if not methods:
        return images, labels
    targets = F.one_hot(labels, classes).to(torch.float32)
    rng = Random(derive(seed, "mixing", step))
    method = rng.choice(methods)
    alpha = mixup if method == "mixup" else cutmix
    share = rng.betavariate(alpha, alpha)
    # The partner is the previous image: batches are already shuffled. `Loader` relies on this.
    partner = images.roll(1, 0)
    if method == "mixup":
        images = images * share + partner * (1 - share)
    else:
        height, width = images.shape[-2:]
        top, bottom, left, right = _random_box(height, width, share=share, rng=rng)
        images = images.clone()
        images[:, :, top:bottom, left:right] = partner[:, :, top:bottom, left:right]
        share = 1 - (bottom - top) * (right - left) / (height * width)
    return images, targets * share + targets.roll(1, 0) * (1 - share)


def _random_box(height: int, width: int, *, share: float, rng: Random) -> tuple[int, int, int, int]:
    """Return top, bottom, left, right of a box that leaves about ``share`` of the image visible."""
    half_side = math.sqrt(1 - share) / 2
    x = rng.randrange(width)
    y = rng.randrange(height)
    h = int(half_side * height)
    w = int(half_side * width)
    return max(0, y - h), min(height, y + h), max(0, x - w), min(width, x + w)
