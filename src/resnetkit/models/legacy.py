"""How builders were called before weights had names: ``resnet50(True)``, ``pretrained=True``.

These calls still work, mean the first published weights (V1), and warn; the new way is
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
    """Decorate a builder so that calls in the old style work, and warn.

    Args:
        published: the enum of its published weights.
    """

    def decorate(builder: Callable[P, T]) -> Callable[P, T]:
        @functools.wraps(builder)
        def call(*args: Any, **given: Any) -> T:
            return builder(**modern(builder.__name__, published, args, given))  # type: ignore[call-arg]

        return call

    return decorate


def modern(
    name: str, published: type[WeightsEnum] | None, args: tuple[Any, ...], given: Mapping[str, Any]
) -> dict[str, Any]:
    """The keywords that a call in the old style stands for; one in today's style stays as it is.

    Raises:
        TypeError: too many arguments, or weights that are nothing of the kind.
        ValueError: ``pretrained=True`` for a model without published weights.
    """
    keywords = dict(given)
    if args:
        keywords.update(_named(name, args, keywords))
    if "weights" in keywords:
        value = keywords["weights"]
        if value is None or (
            value != "legacy" and isinstance(value, str | os.PathLike | WeightsEnum)
        ):
            return keywords
        if not isinstance(value, bool | int) and value != "legacy":
            kind = f"{type(value).__module__}.{type(value).__qualname__}"
            raise TypeError(
                f"{name}: weights are a member of resnetkit's enum, its name, a file or address; "
                f"got a {kind}"
            )
        keywords["weights"] = _first(name, published, value)
    elif "pretrained" in keywords:
        _warn("'pretrained' is deprecated; write weights=... instead")
        keywords["weights"] = _first(name, published, keywords["pretrained"])
    keywords.pop("pretrained", None)
    return keywords


def _named(name: str, args: tuple[Any, ...], keywords: Mapping[str, Any]) -> dict[str, Any]:
    if len(args) > len(_POSITIONAL):
        raise TypeError(f"{name}() takes options by keyword only; got {len(args)} positional ones")
    named = dict(zip(_POSITIONAL, args, strict=False))
    _warn(f"{' and '.join(named)} by position is deprecated; write {name}(weights=...)")
    return named


def _first(name: str, published: type[WeightsEnum] | None, wanted: object) -> WeightsEnum | None:
    if not wanted:
        _warn("weights=False is deprecated; it means weights=None")
        return None
    if published is None:
        raise ValueError(f"No weights are published for {name}; give a file or an address")
    first = published["IMAGENET1K_V1"]
    best = f"{published.__name__}.DEFAULT"
    _warn(f"weights=True is deprecated; it means {first}. The best ones are {best}")
    return first


def _warn(message: str) -> None:
    level, frame = 1, inspect.currentframe()
    while frame is not None and frame.f_globals.get("__name__", "").startswith(f"{__package__}."):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, UserWarning, stacklevel=level)  # shows the line that called us
