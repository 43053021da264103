"""Parameter groups, the optimiser, and the learning rate as a function of the step."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adam import adam
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

from ..errors import RecipeError
from .recipe import Recipe


class Optimizer:
    """Adam, AdamW (Loshchilov and Hutter, arXiv:1711.05101) or SGD with momentum: PyTorch's fused
    kernels, one call for each group of parameters.

    The bits are those of the classes in `torch.optim`, which take two seconds of every start,
    because the first one that is made imports PyTorch's compiler. And what the kernels for the CPU
    are given lies in one order in memory: they read a gradient as it lies, so that one in another
    order than its parameter would silently be added to other weights, and they first copy one that
    is channels_last for nothing (torch 2.15).

    Args:
        kind: ``"adam"``, ``"adamw"`` or ``"sgd"``.
        groups: each with its ``params``, ``weight_decay``, and ``scale`` of the learning rate.
        lr: the rate until `set_learning_rate` sets another.
        momentum, nesterov: of SGD.
    """

    # `torch.amp.GradScaler` sets ``found_inf`` around a step in fp16: 1 if a gradient overflowed.
    # The kernels then change nothing, so that the CPU does not wait for the answer.
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
        self.kind, self.momentum, self.nesterov = kind, momentum, nesterov
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
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    def _sgd(self, trained: list[nn.Parameter], lr: float, decay: float) -> None:
        buffers: list[Tensor | None] = [None] * len(trained)
        if self.momentum:
            for parameter in trained:
                if "momentum_buffer" not in self.state[parameter]:
                    self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
            buffers = [_rows(self.state[p]["momentum_buffer"], p) for p in trained]
        sgd(
            [_rows(p, p) for p in trained],
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
            [_rows(p, p) for p in trained],
            _gradients(trained),
            [_rows(self.state[p]["exp_avg"], p) for p in trained],
            [_rows(self.state[p]["exp_avg_sq"], p) for p in trained],
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
    return [_rows(p.grad, p).contiguous() for p in parameters if p.grad is not None]


def _rows(tensor: Tensor, like: Tensor) -> Tensor:
    """``tensor`` seen with the axes in the order in which those of ``like`` lie in memory."""
    lies_last = like.ndim == 4 and not like.is_contiguous()  # (O, H, W, I) in memory
    return tensor.permute(0, 2, 3, 1) if lies_last else tensor


def make_optimizer(model: nn.Module, recipe: Recipe) -> Optimizer:
    """The recipe's optimiser: for each part of the network a group of weights that decay, and one
    of norms and biases.

    Decaying the scale of a norm, or a bias, regularises nothing: He et al., arXiv:1812.01187,
    section 3.1. The rate of a part is ``layer_decay`` times that of the part above it (Howard and
    Ruder, arXiv:1801.06146, section 3.2).

    Raises:
        RecipeError: ``freeze`` names a part that the network has not, or leaves nothing to train.
    """
    _check_parts(model, recipe)
    groups = []
    for depth, part in enumerate(reversed(_parts(model))):
        scale, parameters = recipe.layer_decay**depth, list(part.parameters())
        weights = [p for p in parameters if p.ndim > 1]
        others = [p for p in parameters if p.ndim <= 1]
        decay = recipe.weight_decay if recipe.decay_norms else 0.0
        groups.append({"params": weights, "weight_decay": recipe.weight_decay, "scale": scale})
        groups.append({"params": others, "weight_decay": decay, "scale": scale})
    if recipe.layer_decay == 1:  # two groups are faster than two for each part
        groups = [_merged(groups[0::2]), _merged(groups[1::2])]
    groups = [group for group in groups if group["params"]]
    if recipe.optimizer != "sgd":
        return Optimizer(recipe.optimizer, groups, recipe.lr)
    nesterov = recipe.nesterov and recipe.momentum > 0
    return Optimizer("sgd", groups, recipe.lr, recipe.momentum, nesterov)


def _check_parts(model: nn.Module, recipe: Recipe) -> None:
    all_parts, trained = dict(model.named_children()), _parts(model)
    parts = [name for name, part in all_parts.items() if part in trained]
    unknown = [name for name in recipe.freeze if name not in all_parts]
    if unknown:
        raise RecipeError(f"freeze: there is no part {unknown[0]!r}; expected {', '.join(parts)}")
    if set(parts) <= set(recipe.freeze):
        raise RecipeError(f"freeze names all parts of the network; one of {', '.join(parts)} stays")
    if recipe.head_share and parts[-1] in recipe.freeze:
        raise RecipeError(
            f"freeze has {parts[-1]}, which alone is trained at first: set head_share=0 too"
        )


def _parts(model: nn.Module) -> list[nn.Module]:
    """What a network is made of, from the input to the head: conv1, bn1, layer1, ..., fc."""
    return [part for part in model.children() if any(True for _ in part.parameters())]


def _merged(groups: list[dict[str, Any]]) -> dict[str, Any]:
    return {**groups[0], "params": [p for group in reversed(groups) for p in group["params"]]}


def set_trainable(model: nn.Module, recipe: Recipe, step: int, steps: int) -> None:
    """Put the network into training mode for ``step`` of ``steps``.

    Parts that are not trained, because they are frozen or because only the head is at this step,
    get no gradient and use the statistics that their norms have. Nor do blocks that are left out.
    """
    parts = dict(model.named_children())
    head = _parts(model)[-1]
    only_head, short = step < recipe.head_share * steps, step < recipe.shallow_share * steps
    model.train()
    for name, part in parts.items():
        trained = name not in recipe.freeze and (part is head or not only_head)
        part.train(trained)
        part.requires_grad_(trained)
        if short and isinstance(part, nn.Sequential):
            part[1:].requires_grad_(False)


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


def set_learning_rate(optimizer: Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate * group["scale"]


def class_weights(recipe: Recipe, counts: Sequence[int], device: torch.device) -> Tensor | None:
    """Weights of the classes in the loss, of mean 1 over the pictures: total / (classes * count),
    as scikit-learn's ``balanced``; None where all count the same."""
    if recipe.class_weights == "none":
        return None
    numbers = torch.tensor(counts, dtype=torch.float32, device=device)
    return numbers.sum() / (len(counts) * numbers)
