"""The weight of each class in the loss."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .recipe import Recipe


def class_weights(recipe: Recipe, counts: Sequence[int], device: torch.device) -> Tensor | None:
    """Return the weight of each class in the loss; None if all classes count the same.

    The weights are defined as in scikit-learn's ``balanced``: total / (classes * count), with a
    mean of 1 over the images.

    Args:
        recipe: its ``class_weights`` is "none" or "balanced".
        counts: number of training images of each class.
        device: where to put the weights, ``(classes,)`` float32.
    """
    if recipe.class_weights == "none":
        return None
    numbers = torch.tensor(counts, dtype=torch.float32, device=device)
    return numbers.sum() / (len(counts) * numbers)
