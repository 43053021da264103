"""Calls from before weights had names: ``resnet50(True)``, ``resnet50(pretrained=True)``.

They still work: they load the first published weights (V1) and warn. The current form is
``weights="DEFAULT"`` or a member of the enum.
"""

from __future__ import annotations

import functools
import inspect
import os
import warnings
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

from .weights import WeightsEnum

P = ParamSpec("P")
T = TypeVar("T")

_POSITIONAL = ("weights", "progress")


def accept_legacy_calls(
    published: type[WeightsEnum] | None,
) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Decorate a builder to accept calls in the old style, with a warning.

    Args:
        published: the enum of its published weights, if any.
    """

    def decorate(builder: Callable[P, T]) -> Callable[P, T]:
        @functools.wraps(builder)
        def call(*args: Any, **keywords: Any) -> T:
            current = modernize_arguments(builder.__name__, published, args=args, keywords=keywords)
            return builder(**current)  # type: ignore[call-arg]

        return call

    return decorate


def modernize_arguments(
    name: str,
    published: type[WeightsEnum] | None,
    *,
    args: tuple[Any, ...],
    keywords: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the current keywords for a call in the old style; leave a current call unchanged.

    Args:
        name: the builder's name.
        published: the enum of its published weights, if any.
        args: the positional arguments of the call.
        keywords: the keyword arguments of the call.

    Raises:
        TypeError: too many positional arguments, or weights of an unsupported type.
        ValueError: ``pretrained=True`` for a network without published weights.
    """
    current = dict(keywords)
    if args:
        current.update(_name_positional(name, args))
    if "weights" in current:
        value = current["weights"]
        if value is None or (
            value != "legacy" and isinstance(value, str | os.PathLike | WeightsEnum)
        ):
            return current
        if not isinstance(value, bool | int) and value != "legacy":
            kind = f"{type(value).__module__}.{type(value).__qualname__}"
            raise TypeError(
                f"{name}: weights must be a member of resnetkit's enum, its name, a file or an "
                f"address; got a {kind}"
            )
        current["weights"] = _first_weights(name, published, pretrained=value)
    elif "pretrained" in current:
        _warn("'pretrained' is deprecated; use weights=... instead")
        current["weights"] = _first_weights(name, published, pretrained=current["pretrained"])
    current.pop("pretrained", None)
    return current


def _name_positional(name: str, args: tuple[Any, ...]) -> dict[str, Any]:
    if len(args) > len(_POSITIONAL):
        raise TypeError(f"{name}() takes options by keyword only; got {len(args)} by position")
    named = dict(zip(_POSITIONAL, args, strict=False))
    _warn(f"passing {' and '.join(named)} by position is deprecated; use {name}(weights=...)")
    return named


def _first_weights(
    name: str, published: type[WeightsEnum] | None, *, pretrained: object
) -> WeightsEnum | None:
    if not pretrained:
        _warn("weights=False is deprecated; use weights=None")
        return None
    if published is None:
        raise ValueError(f"No weights are published for {name}; pass a file or an address")
    first = published["IMAGENET1K_V1"]
    best = f"{published.__name__}.DEFAULT"
    _warn(f"weights=True is deprecated; it means {first}. The best weights are {best}")
    return first


def _warn(message: str) -> None:
    """Warn at the line outside this package that made the call."""
    level = 1
    frame = inspect.currentframe()
    while frame is not None and frame.f_globals.get("__name__", "").startswith(f"{__package__}."):
        level += 1
        frame = frame.f_back
    warnings.warn(message, UserWarning, stacklevel=level)
