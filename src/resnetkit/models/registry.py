"""Look up builders and weights by name."""

from __future__ import annotations

import fnmatch
import inspect
import re
from collections.abc import Callable, Iterable, Iterator
from types import ModuleType
from typing import Any, TypeVar, get_args

from torch import nn

from ..errors import did_you_mean
from .weights import WeightsEnum

Builder = Callable[..., nn.Module]
B = TypeVar("B", bound=Builder)

_BUILDERS: dict[str, Builder] = {}


def register_model(name: str | None = None) -> Callable[[B], B]:
    """Decorate a builder to register it under ``name``, by default its own name.

    Raises:
        ValueError: the name is taken.
    """

    def register(builder: B) -> B:
        key = name or builder.__name__
        if key in _BUILDERS:
            raise ValueError(f"An entry is already registered under the name {key!r}.")
        _BUILDERS[key] = builder
        return builder

    return register


def list_models(
    include: Iterable[str] | str | None = None,
    exclude: Iterable[str] | str | None = None,
    *,
    module: ModuleType | None = None,
) -> list[str]:
    """Return the names of the registered builders, sorted.

    Args:
        include: shell patterns; a name must match one of them.
        exclude: shell patterns; a name must match none of them.
        module: keep only builders defined in this package.

    >>> list_models("resnext*")
    ['resnext101_32x8d', 'resnext101_64x4d', 'resnext50_32x4d']
    """

    def as_list(patterns: Iterable[str] | str | None) -> list[str]:
        return [patterns] if isinstance(patterns, str) and patterns else list(patterns or ())

    def matches(name: str, patterns: list[str]) -> bool:
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)

    included = as_list(include)
    excluded = as_list(exclude)
    package = module and module.__name__
    names = [
        name
        for name, builder in _BUILDERS.items()
        if (not included or matches(name, included))
        and (not package or builder.__module__.rpartition(".")[0] == package)
    ]
    return sorted(name for name in names if not matches(name, excluded))


def get_model_builder(name: str) -> Builder:
    """Return the builder registered under ``name``, ignoring case.

    Raises:
        ValueError: there is no such builder; the message suggests similar names.
    """
    try:
        return _BUILDERS[name.lower()]
    except KeyError:
        raise ValueError(f"Unknown model {name!r}. {_hint(name.lower(), _BUILDERS)}") from None


def get_model(name: str, **config: Any) -> nn.Module:
    """Return the network ``name``, built with the options ``config``.

    >>> import torch
    >>> get_model("resnet18", num_classes=3)(torch.zeros(2, 3, 64, 64)).shape
    torch.Size([2, 3])
    """
    return get_model_builder(name)(**config)


def get_model_weights(name: Builder | str) -> type[WeightsEnum]:
    """Return the enum of a network's published weights.

    Args:
        name: the builder or its name. Its parameter ``weights`` is annotated with the enum.

    Raises:
        ValueError: there is no such network, or it has no published weights.
    """
    builder = get_model_builder(name) if isinstance(name, str) else name
    enum = _enum_of(builder)
    if enum is not None:
        return enum
    raise ValueError(f"No weights are published for {name if isinstance(name, str) else builder!r}")


def list_weights(
    include: Iterable[str] | str | None = None, exclude: Iterable[str] | str | None = None
) -> dict[str, list[WeightsEnum]]:
    """Return the published weights by network, oldest first.

    The arguments are the same as for `list_models`.

    >>> list_weights("resnext50*")
    {'resnext50_32x4d': [ResNeXt50_32X4D_Weights.IMAGENET1K_V1,
                         ResNeXt50_32X4D_Weights.IMAGENET1K_V2]}
    """
    enums = {name: _enum_of(_BUILDERS[name]) for name in list_models(include, exclude)}
    return {name: list(enum) for name, enum in enums.items() if enum is not None}


def get_weight(name: str) -> WeightsEnum:
    """Return the published weights with this full name.

    >>> get_weight("ResNet50_Weights.IMAGENET1K_V2")
    ResNet50_Weights.IMAGENET1K_V2

    Raises:
        ValueError: there is no such enum; the message suggests similar names.
        UnknownWeightsError: the enum has no such member; this is also a KeyError.
    """
    enum_name, _, member = name.partition(".")
    if name.count(".") != 1:
        raise ValueError(f"Expected a name like ResNet50_Weights.IMAGENET1K_V2; got {name!r}")
    enums = {enum.__name__: enum for enum in _all_enums(WeightsEnum)}
    if enum_name not in enums:
        raise ValueError(f"Unknown weights {enum_name!r}. {_hint(enum_name, enums)}")
    weights = enums[enum_name].verify(member)
    assert weights is not None
    return weights


def _enum_of(builder: Builder) -> type[WeightsEnum] | None:
    parameter = inspect.signature(builder).parameters.get("weights")
    annotation = None if parameter is None else parameter.annotation
    if isinstance(annotation, str):  # with `from __future__ import annotations`
        names = set(re.findall(r"\w+", annotation))
        return next((enum for enum in _all_enums(WeightsEnum) if enum.__name__ in names), None)
    for kind in (annotation, *get_args(annotation)):
        if isinstance(kind, type) and issubclass(kind, WeightsEnum):
            return kind
    return None


def _all_enums(base: type[WeightsEnum]) -> Iterator[type[WeightsEnum]]:
    for enum in base.__subclasses__():
        yield enum
        yield from _all_enums(enum)


def _hint(name: str, known: Iterable[str]) -> str:
    return did_you_mean(name, known, count=3) or "`resnet models` lists the known ones."
