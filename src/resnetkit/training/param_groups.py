"""Which parameters are trained, and their weight decay and learning-rate scale.

A layer here is a direct child of the network that has parameters: conv1, bn1, layer1, ..., fc.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from ..errors import RecipeError
from .optimizer import Optimizer
from .recipe import Recipe


def make_optimizer(model: nn.Module, recipe: Recipe) -> Optimizer:
    """Return the recipe's optimizer, with two parameter groups for each layer.

    One group holds the weights, which decay. The other holds norms and biases, which decay only
    with ``decay_norms``: decaying the scale of a norm, or a bias, regularizes nothing (He et al.,
    arXiv:1812.01187, section 3.1). The learning rate of a layer is ``layer_decay`` times that of
    the layer above it, which is nearer to the head (Howard and Ruder, arXiv:1801.06146, section
    3.2). If ``layer_decay`` is 1, all layers share the two groups.

    Raises:
        RecipeError: ``freeze`` names a layer that the network does not have, or leaves nothing to
            train.
    """
    _check_frozen(model, recipe)
    groups = []
    for depth, layer in enumerate(reversed(_layers(model))):
        scale = recipe.layer_decay**depth
        parameters = list(layer.parameters())
        weights = [p for p in parameters if p.ndim > 1]
        others = [p for p in parameters if p.ndim <= 1]
        decay = recipe.weight_decay if recipe.decay_norms else 0.0
        groups.append({"params": weights, "weight_decay": recipe.weight_decay, "scale": scale})
        groups.append({"params": others, "weight_decay": decay, "scale": scale})
    if recipe.layer_decay == 1:  # two groups are faster than two per layer
        groups = [_merge_groups(groups[0::2]), _merge_groups(groups[1::2])]
    groups = [group for group in groups if group["params"]]
    if recipe.optimizer != "sgd":
        return Optimizer(recipe.optimizer, groups, lr=recipe.lr)
    return Optimizer(
        "sgd",
        groups,
        lr=recipe.lr,
        momentum=recipe.momentum,
        nesterov=recipe.nesterov and recipe.momentum > 0,
    )


def _check_frozen(model: nn.Module, recipe: Recipe) -> None:
    children = dict(model.named_children())
    trained = _layers(model)
    names = [name for name, layer in children.items() if layer in trained]
    unknown = [name for name in recipe.freeze if name not in children]
    if unknown:
        raise RecipeError(f"freeze: unknown layer {unknown[0]!r}; expected {', '.join(names)}")
    if set(names) <= set(recipe.freeze):
        raise RecipeError(
            f"freeze names every layer of the network. Remove one of {', '.join(names)}"
        )
    if recipe.head_share and names[-1] in recipe.freeze:
        raise RecipeError(
            f"freeze names {names[-1]}, the only layer that head_share trains at first. Set "
            "head_share=0"
        )


def _layers(model: nn.Module) -> list[nn.Module]:
    """Return the children with parameters, from the input to the head: conv1, bn1, layer1, ..."""
    return [layer for layer in model.children() if any(True for _ in layer.parameters())]


def _merge_groups(groups: list[dict[str, Any]]) -> dict[str, Any]:
    return {**groups[0], "params": [p for group in reversed(groups) for p in group["params"]]}


def set_trainable(model: nn.Module, recipe: Recipe, step: int, steps: int) -> None:
    """Set the network to training mode for a step.

    A layer that is not trained, because it is frozen or because only the head is trained at this
    step, gets no gradient, and its norms use their running statistics. Blocks that are skipped at
    this step get no gradient either.

    Args:
        model: the network.
        recipe: its ``freeze``, ``head_share`` and ``shallow_share`` are used.
        step: the step, from 0.
        steps: number of steps in the run.
    """
    head = _layers(model)[-1]
    only_head = step < recipe.head_share * steps
    is_shallow = step < recipe.shallow_share * steps
    model.train()
    for name, layer in model.named_children():
        is_trained = name not in recipe.freeze and (layer is head or not only_head)
        layer.train(is_trained)
        layer.requires_grad_(is_trained)
        if is_shallow and isinstance(layer, nn.Sequential):
            layer[1:].requires_grad_(False)
