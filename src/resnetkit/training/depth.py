"""Growing depth: a network whose blocks begin as the identity is trained without them at first.

Zero-init makes every block but those with a projection begin as y = x (Goyal et al.,
arXiv:1706.02677, section 5.1). Left out for the first part of a run they change no output, and cost
nothing; put in later they deepen a trained network without disturbing what it computes, as in
Chen et al., arXiv:1511.05641.
"""

from __future__ import annotations

from copy import copy
from typing import Any

from torch import nn

from ..errors import RecipeError
from ..models.resnet import ResNet
from .recipe import Recipe


def shallow(model: nn.Module, recipe: Recipe) -> nn.Module:
    """The network with the first block of each stage alone: (N, 3, H, W) -> (N, classes).

    It shares its modules with ``model`` and gives the same logits. Without ``shallow_share`` it is
    ``model``.

    Raises:
        RecipeError: a block that would be left out is not the identity.
    """
    if not recipe.shallow_share:
        return model
    if not isinstance(model, ResNet):
        raise RecipeError(f"shallow_share is for ResNets; {recipe.model} is none")
    short = copy(model)
    short._modules = dict(model._modules)
    for name in model.stages:
        stage = model.get_submodule(name)
        assert isinstance(stage, nn.Sequential)
        for number, block in enumerate(stage[1:], 1):
            if not _is_identity(block):
                raise RecipeError(
                    f"shallow_share leaves blocks out that are the identity at first, and {name}."
                    f"{number} is not: it needs random weights (--weights none), "
                    "zero_init_residual, and shortcut A or B"
                )
        short._modules[name] = stage[:1]
    return short


def _is_identity(block: Any) -> bool:
    last = getattr(block, "bn3", block.bn2)
    parameters = (getattr(last, "weight", None), getattr(last, "bias", None))
    zero = all(values is not None and not bool(values.any()) for values in parameters)
    return zero and block.residual and block.downsample is None
