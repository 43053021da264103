"""Networks that take no memory: names and shapes on PyTorch's ``meta`` device."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from .registry import get_model


def get_skeleton(name: str, **config: Any) -> nn.Module:
    """Return the network ``name`` on PyTorch's ``meta`` device: shapes without values.

    However large the network, building it takes no memory and no time to initialize weights.

    Raises:
        TypeError: ``config`` asks for weights, which a file's header must not be able to load.
        ValueError: the network cannot be built with the options in ``config``.
    """
    if {"weights", "pretrained"} & config.keys():
        raise TypeError(f"a skeleton of {name} takes no weights; got {config!r}")
    try:
        with torch.device("meta"), ShapesOnly():
            return get_model(name, **config)
    except (RuntimeError, ArithmeticError, LookupError, AttributeError) as error:  # from PyTorch
        given = ", ".join(f"{key}={value!r}" for key, value in config.items())
        raise ValueError(f"{name} cannot be built with {given or 'no options'}: {error}") from error


class ShapesOnly(TorchFunctionMode):
    """A mode for the ``meta`` device that skips random initialization and batch norm.

    Neither changes a shape, but both would make PyTorch import compiler modules, which takes two
    seconds.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in (torch.Tensor.normal_, torch.Tensor.uniform_, F.batch_norm):
            return args[0]
        return func(*args, **(kwargs or {}))
