"""The learning rate as a function of the step."""

from __future__ import annotations

import math

from .recipe import Recipe


def learning_rate(recipe: Recipe, step: int, steps: int) -> float:
    """The rate at ``step`` of ``steps`` (0-based).

    ``onecycle`` (Smith, arXiv:1708.07120): linear from lr/25 to lr in the ``warmup`` share of the
    steps, then down a half cosine to lr/10,000. ``cosine`` (Loshchilov and Hutter,
    arXiv:1608.03983, without restarts): linear from lr/100, then down a half cosine to 0, which it
    would reach one step after the last. ``steps`` starts as ``onecycle`` and then is a tenth from
    each milestone on; ``constant`` is lr at every step.
    """
    rising = recipe.warmup * steps
    if recipe.schedule != "constant" and step < rising:
        start = 1 / 100 if recipe.schedule == "cosine" else 1 / 25
        return recipe.lr * (start + (1 - start) * step / rising)
    if recipe.schedule == "cosine":
        return recipe.lr * (1 + math.cos(math.pi * (step - rising) / (steps - rising))) / 2
    if recipe.schedule == "onecycle":
        share = (step - rising) / max(1.0, steps - 1 - rising)
        return recipe.lr * (1e-4 + (1 - 1e-4) * (1 + math.cos(math.pi * min(1.0, share))) / 2)
    return recipe.lr * 0.1 ** sum(step >= milestone * steps for milestone in recipe.milestones)
