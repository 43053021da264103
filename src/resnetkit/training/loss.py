"""The weight of each class in the loss."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .recipe import Recipe


def class_weights(recipe: Recipe, counts: Sequence[int], device: torch.device) -> Tensor | None:
    """Return the weight of each class in the loss; None if all classes have the same weight.

    The weights are defined as in scikit-learn's ``balanced``: total / (classes * count), so that
    their mean over the images is 1.

    Args:
        recipe: its ``class_weights`` is "none" or "balanced".
        counts: number of training images in each class.
        device: the device for the weights, ``(classes,)`` float32.
    """
    if recipe.class_weights == "none":
        return None
    numbers = torch.tensor(counts, dtype=torch.float32, device=device)
    return numbers.sum() / (len(counts) * numbers)
