"""Builders by name."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

Builder = Callable[..., nn.Module]

_BUILDERS: dict[str, Builder] = {}


def register_model(name: str | None = None) -> Callable[[Builder], Builder]:
    """Decorator that lists a builder under ``name`` (by default its own).

    Raises:
        ValueError: the name is taken.
    """

    def register(builder: Builder) -> Builder:
        key = name or builder.__name__
        if key in _BUILDERS:
            raise ValueError(f"An entry is already registered under the name {key!r}.")
        _BUILDERS[key] = builder
        return builder

    return register


def list_models(
    include: Iterable[str] | str | None = None, exclude: Iterable[str] | str | None = None
) -> list[str]:
    """Names of the registered builders, sorted; ``include`` and ``exclude`` are shell patterns.

    >>> list_models("resnext*")
    ['resnext101_32x8d', 'resnext101_64x4d', 'resnext50_32x4d']
    """

    def matches(name: str, patterns: Iterable[str] | str) -> bool:
        patterns = [patterns] if isinstance(patterns, str) else patterns
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)

    names = [n for n in _BUILDERS if include is None or not include or matches(n, include)]
    return sorted(n for n in names if not exclude or not matches(n, exclude))


def get_model_builder(name: str) -> Builder:
    """The builder registered under ``name``, in any case of its letters.

    Raises:
        ValueError: there is none; the message names the nearest.
    """
    try:
        return _BUILDERS[name.lower()]
    except KeyError:
        nearest = difflib.get_close_matches(name.lower(), _BUILDERS, n=3, cutoff=0.5)
        hint = f"Did you mean {' or '.join(nearest)}?" if nearest else "`resnet models` lists all."
        raise ValueError(f"Unknown model {name!r}. {hint}") from None


def get_model(name: str, **config: Any) -> nn.Module:
    """Build the model ``name`` with the options ``config``.

    >>> import torch
    >>> get_model("resnet18", num_classes=3)(torch.zeros(2, 3, 64, 64)).shape
    torch.Size([2, 3])
    """
    return get_model_builder(name)(**config)


def get_skeleton(name: str, **config: Any) -> nn.Module:
    """`get_model` with shapes and no numbers: it lies on PyTorch's ``meta`` device.

    It takes no memory, whatever ``config`` claims, and no time for initial weights.
    """
    with torch.device("meta"), ShapesOnly():
        return get_model(name, **config)


class ShapesOnly(TorchFunctionMode):
    """Leaves out, on ``meta``, what changes no shape: drawing random numbers, and batch norm. For
    these two PyTorch would import half a compiler, which takes two seconds."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in (torch.Tensor.normal_, torch.Tensor.uniform_, F.batch_norm):
            return args[0]
        return func(*args, **(kwargs or {}))
