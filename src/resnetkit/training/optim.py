"""Parameter groups, the optimiser, and the learning rate as a function of the step."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .recipe import Recipe


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimiser over two groups: weights that decay, and norms and biases.

    Decaying the scale of a norm, or a bias, regularises nothing: He et al., arXiv:1812.01187,
    section 3.1.
    """
    weights = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [
        {"params": weights, "weight_decay": recipe.weight_decay},
        {"params": others, "weight_decay": recipe.weight_decay if recipe.decay_norms else 0.0},
    ]
    if recipe.optimizer == "sgd":
        momentum = recipe.momentum
        return torch.optim.SGD(
            groups, lr=recipe.lr, momentum=momentum, nesterov=momentum > 0, fused=True
        )
    kind = torch.optim.AdamW if recipe.optimizer == "adamw" else torch.optim.Adam
    return kind(groups, lr=recipe.lr, fused=True)


def learning_rate(recipe: Recipe, step: int, steps: int) -> float:
    """The rate at ``step`` of ``steps`` (0-based).

    ``onecycle`` (Smith, arXiv:1708.07120): linear from lr/25 to lr in the ``warmup`` share of the
    steps, then down a half cosine to lr/10,000. ``steps`` has the same start and then a tenth from
    each milestone on; ``constant`` is lr at every step.
    """
    rising = recipe.warmup * steps
    if recipe.schedule != "constant" and step < rising:
        return recipe.lr * (1 / 25 + (1 - 1 / 25) * step / rising)
    if recipe.schedule == "onecycle":
        share = (step - rising) / max(1.0, steps - 1 - rising)
        return recipe.lr * (1e-4 + (1 - 1e-4) * (1 + math.cos(math.pi * min(1.0, share))) / 2)
    return recipe.lr * 0.1 ** sum(step >= milestone * steps for milestone in recipe.milestones)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


def class_weights(recipe: Recipe, counts: Sequence[int], device: torch.device) -> Tensor | None:
    """Weights of the classes in the loss, of mean 1 over the pictures: total / (classes * count),
    as scikit-learn's ``balanced``; None where all count the same."""
    if recipe.class_weights == "none":
        return None
    numbers = torch.tensor(counts, dtype=torch.float32, device=device)
    return numbers.sum() / (len(counts) * numbers)
