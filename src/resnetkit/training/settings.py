"""Settings as people type them, and the words for those that do not fit."""

from __future__ import annotations

import difflib
from typing import Any

import yaml

from ..errors import RecipeError


def parse_settings(pairs: list[str]) -> dict[str, Any]:
    """``["flip=false", "lr=0.01"]`` -> ``{"flip": False, "lr": 0.01}``; values are YAML.

    Raises:
        RecipeError: a pair without ``=``.
    """
    settings = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise RecipeError(f"--set takes key=value; got {pair!r}")
        try:
            settings[key.strip()] = _number(yaml.safe_load(value))
        except yaml.YAMLError as error:
            raise RecipeError(f"--set {pair}: the value is no valid YAML ({error})") from None
    return settings


def _number(value: Any) -> Any:
    """YAML 1.1 reads ``1e-4`` as text; a person means the number."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def plain(message: str) -> str:
    """The validator's words without its own terms."""
    message = message.removeprefix("Value error, ").removeprefix("Input should be ")
    return message.replace("a valid tuple", "a list, as in [0.5, 1.0]").rstrip(".?")


def did_you_mean(word: str, known: list[str]) -> str:
    """The nearest of ``known`` as a question, or nothing.

    >>> did_you_mean("epoch", ["epochs", "seed"])
    " (did you mean 'epochs'?)"
    """
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""
