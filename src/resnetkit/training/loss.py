"""How much each class counts in the loss."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .recipe import Recipe


def class_weights(recipe: Recipe, counts: Sequence[int], device: torch.device) -> Tensor | None:
    """Weights of the classes in the loss, of mean 1 over the pictures: total / (classes * count),
    as scikit-learn's ``balanced``; None where all count the same."""
    if recipe.class_weights == "none":
        return None
    numbers = torch.tensor(counts, dtype=torch.float32, device=device)
    return numbers.sum() / (len(counts) * numbers)
