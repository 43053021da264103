"""Growing depth: training starts without the blocks that are initialized as the identity.

Zero-init makes every block without a projection start as y = x (Goyal et al., arXiv:1706.02677,
section 5.1). Skipping these blocks for the first part of a run changes no output and saves their
cost. Adding them later deepens a trained network without changing what it computes, as in Chen et
al., arXiv:1511.05641.
"""

from __future__ import annotations

from copy import copy
from typing import Any

from torch import nn

from ..errors import RecipeError
from ..models.resnet import ResNet
from .recipe import Recipe


def shallow_model(model: nn.Module, recipe: Recipe) -> nn.Module:
    """Return the network with only the first block of each stage: (N, C, H, W) -> (N, classes).

    It shares its modules with ``model`` and gives the same logits. Without ``shallow_share`` in the
    recipe, it is ``model`` itself.

    Raises:
        RecipeError: a block that would be skipped is not the identity, or ``model`` is not a
            ResNet.
    """
    if not recipe.shallow_share:
        return model
    if not isinstance(model, ResNet):
        raise RecipeError(f"shallow_share works only for ResNets; {recipe.model} is not one")
    shallow = copy(model)
    shallow._modules = dict(model._modules)
    for name in model.stages:
        stage = model.get_submodule(name)
        assert isinstance(stage, nn.Sequential)
        for number, block in enumerate(stage[1:], 1):
            if not _is_identity(block):
                raise RecipeError(
                    "shallow_share skips blocks that start as the identity, but "
                    f"{name}.{number} does not. shallow_share needs random weights (--weights "
                    "none), zero_init_residual, and shortcut A or B"
                )
        shallow._modules[name] = stage[:1]
    return shallow


def _is_identity(block: Any) -> bool:
    last_norm = getattr(block, "bn3", block.bn2)
    parameters = (getattr(last_norm, "weight", None), getattr(last_norm, "bias", None))
    is_zero = all(values is not None and not bool(values.any()) for values in parameters)
    return is_zero and block.residual and block.downsample is None
