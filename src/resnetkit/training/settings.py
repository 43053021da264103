"""Settings as users type them, and error messages about settings."""

from __future__ import annotations

from typing import Any

import yaml

from ..errors import RecipeError


def parse_settings(pairs: list[str]) -> dict[str, Any]:
    """Parse ``key=value`` pairs, whose values are YAML.

    >>> parse_settings(["flip=false", "lr=1e-2"])
    {'flip': False, 'lr': 0.01}

    Raises:
        RecipeError: a pair has no ``=``, or its value is not valid YAML.
    """
    settings = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise RecipeError(f"--set takes key=value; got {pair!r}")
        try:
            settings[key.strip()] = _to_number(yaml.safe_load(value))
        except yaml.YAMLError as error:
            raise RecipeError(f"--set {pair}: the value is not valid YAML ({error})") from None
    return settings


def _to_number(value: Any) -> Any:
    """Convert text to a number if possible, because YAML 1.1 reads ``1e-4`` as text."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def plain_message(message: str) -> str:
    """Return a pydantic message without pydantic's own terms."""
    message = message.removeprefix("Value error, ").removeprefix("Input should be ")
    return message.replace("a valid tuple", "a list, as in [0.5, 1.0]").rstrip(".?")
