"""Averaged weights: a second network that follows the trained one slowly.

Its weights are an exponential moving average over the steps (Polyak averaging); it often
classifies better than the network at any single step, the more so while the rate is high.
"""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import nn


class ModelEma:
    """Follows ``model``.

    Args:
        decay: the share of the old average that stays at each step, in [0, 1). The first steps
            use less, ``(1 + step) / (10 + step)``, so that the initial weights are forgotten.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = deepcopy(model).eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move towards ``model`` after the step numbered ``step`` (0-based)."""
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        old, new = self.model.state_dict(), model.state_dict()
        floats = [name for name, value in old.items() if value.is_floating_point()]
        torch._foreach_lerp_([old[name] for name in floats], [new[name] for name in floats], weight)
        for name in old.keys() - floats:  # counters of batches
            old[name].copy_(new[name])
