"""The optimizer: PyTorch's fused kernels, without the import time of `torch.optim`."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adam import adam
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd


class Optimizer:
    """Adam, AdamW (Loshchilov and Hutter, arXiv:1711.05101) or SGD with momentum.

    It calls PyTorch's fused kernels, once per parameter group, and is bit-identical to the
    classes in `torch.optim`. Those would add two seconds to every startup, because creating the
    first one imports PyTorch's compiler.

    The CPU kernels read tensors in memory order (torch 2.15). A gradient whose order differs from
    its parameter's would silently be added to the wrong weights, and one that is channels_last
    would be copied needlessly. So every tensor is passed in the memory order of its parameter.

    Args:
        kind: ``"adam"``, ``"adamw"`` or ``"sgd"``.
        groups: the parameter groups, each with ``params``, ``weight_decay`` and ``scale``, a factor
            on the learning rate.
        lr: the initial learning rate; `set_learning_rate` changes it.
        momentum: momentum of SGD.
        nesterov: whether SGD uses Nesterov momentum.
    """

    # `torch.amp.GradScaler` sets ``found_inf`` around a step in fp16: 1 if a gradient overflowed.
    # The kernels then skip the update on the device, so the CPU does not have to wait for the flag.
    _step_supports_amp_scaling = True
    found_inf: Tensor | None = None

    def __init__(
        self,
        kind: str,
        groups: list[dict[str, Any]],
        lr: float,
        momentum: float = 0.0,
        nesterov: bool = False,
    ) -> None:
        self.kind = kind
        self.momentum = momentum
        self.nesterov = nesterov
        self.param_groups = [{"lr": lr, **group} for group in groups]
        self.state: defaultdict[nn.Parameter, dict[str, Tensor]] = defaultdict(dict)

    @torch.no_grad()
    def step(self) -> None:
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            trained = [p for p in group["params"] if p.grad is not None]
            if trained and self.kind == "sgd":
                self._sgd(trained, group["lr"], group["weight_decay"])
            elif trained:
                self._adam(trained, group["lr"], group["weight_decay"])

    def zero_grad(self) -> None:
        """Drop the gradients of all parameters."""
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    def _sgd(self, trained: list[nn.Parameter], lr: float, decay: float) -> None:
        buffers: list[Tensor | None] = [None] * len(trained)
        if self.momentum:
            for parameter in trained:
                if "momentum_buffer" not in self.state[parameter]:
                    self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
            buffers = [_in_memory_order(self.state[p]["momentum_buffer"], p) for p in trained]
        sgd(
            [_in_memory_order(p, p) for p in trained],
            _gradients(trained),
            buffers,
            fused=True,
            found_inf=self.found_inf,
            lr=lr,
            weight_decay=decay,
            momentum=self.momentum,
            nesterov=self.nesterov,
            dampening=0.0,
            maximize=False,
        )

    def _adam(self, trained: list[nn.Parameter], lr: float, decay: float) -> None:
        for parameter in trained:
            if "step" not in self.state[parameter]:
                self.state[parameter] |= {
                    "step": torch.zeros((), device=parameter.device),
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                }
        update = adamw if self.kind == "adamw" else adam
        update(
            [_in_memory_order(p, p) for p in trained],
            _gradients(trained),
            [_in_memory_order(self.state[p]["exp_avg"], p) for p in trained],
            [_in_memory_order(self.state[p]["exp_avg_sq"], p) for p in trained],
            [],
            [self.state[p]["step"] for p in trained],
            fused=True,
            found_inf=self.found_inf,
            lr=lr,
            weight_decay=decay,
            beta1=0.9,
            beta2=0.999,
            eps=1e-8,
            amsgrad=False,
            maximize=False,
        )


def _gradients(parameters: list[nn.Parameter]) -> list[Tensor]:
    return [_in_memory_order(p.grad, p).contiguous() for p in parameters if p.grad is not None]


def _in_memory_order(tensor: Tensor, like: Tensor) -> Tensor:
    """Return a view of a tensor with its axes in the memory order of ``like``."""
    is_channels_last = like.ndim == 4 and not like.is_contiguous()  # (O, H, W, I) in memory
    return tensor.permute(0, 2, 3, 1) if is_channels_last else tensor


def set_learning_rate(optimizer: Optimizer, lr: float) -> None:
    """Set the learning rate of each group: ``lr`` times the ``scale`` of the group."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["scale"]
