"""EMA: an exponential moving average of the weights over the steps (Polyak averaging).

The averaged weights often classify better than the weights of any single step, especially while
the learning rate is high.
"""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import nn


class ModelEma:
    """A copy of a network whose weights are the EMA of the trained weights.

    Args:
        model: the network that is trained.
        decay: share of the old EMA that each update keeps, in [0, 1). The first updates keep less,
            ``(1 + number) / (10 + number)``, so that the initial weights are forgotten.
        every: steps between updates.
    """

    def __init__(self, model: nn.Module, decay: float, every: int = 1) -> None:
        self.model = deepcopy(model).eval().requires_grad_(False)
        self.decay = decay
        self.every = every

    @torch.no_grad()
    def update(self, model: nn.Module, step: int, is_last: bool = False) -> None:
        """Move the EMA toward the weights of ``model`` after a step (0-based), if an update is due.

        After the last step, an update is always due, so that the EMA includes the final weights.
        """
        if step % self.every and not is_last:
            return
        number = -(-step // self.every)  # of this update, from 0
        weight = 1 - min(self.decay, (1 + number) / (10 + number))
        old = self.model.state_dict()
        new = model.state_dict()
        floats = [name for name, value in old.items() if value.is_floating_point()]
        torch._foreach_lerp_([old[name] for name in floats], [new[name] for name in floats], weight)
        for name in old.keys() - floats:  # batch counters
            old[name].copy_(new[name])
