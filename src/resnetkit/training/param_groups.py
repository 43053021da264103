"""Which parameters are trained, with which weight decay and which share of the learning rate."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..errors import RecipeError
from .optimizer import Optimizer
from .recipe import Recipe


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
