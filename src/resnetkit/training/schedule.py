"""The learning rate as a function of the step."""

from __future__ import annotations

import math

from .recipe import Recipe


def learning_rate(recipe: Recipe, step: int, steps: int) -> float:
    """Return the learning rate at a step.

    - ``onecycle`` (Smith, arXiv:1708.07120): linear from lr/25 to lr in the ``warmup`` share of the
      steps, then half a cosine down to lr/10,000.
    - ``cosine`` (Loshchilov and Hutter, arXiv:1608.03983, without restarts): linear from lr/100 to
      lr, then half a cosine down to 0, which it would reach one step after the last.
    - ``steps``: warmup as in ``onecycle``, then lr, divided by ten at each milestone.
    - ``constant``: lr at every step.

    Args:
        recipe: its ``schedule``, ``lr``, ``warmup`` and ``milestones`` are used.
        step: the step, from 0.
        steps: number of steps in the run.
    """
    warmup_steps = recipe.warmup * steps
    if recipe.schedule != "constant" and step < warmup_steps:
        start = 1 / 100 if recipe.schedule == "cosine" else 1 / 25
        return recipe.lr * (start + (1 - start) * step / warmup_steps)
    if recipe.schedule == "cosine":
        angle = math.pi * (step - warmup_steps) / (steps - warmup_steps)
        return recipe.lr * (1 + math.cos(angle)) / 2
    if recipe.schedule == "onecycle":
        share = (step - warmup_steps) / max(1.0, steps - 1 - warmup_steps)
        return recipe.lr * (1e-4 + (1 - 1e-4) * (1 + math.cos(math.pi * min(1.0, share))) / 2)
    return recipe.lr * 0.1 ** sum(step >= milestone * steps for milestone in recipe.milestones)
