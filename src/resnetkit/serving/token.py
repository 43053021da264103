"""Read the token that clients must send."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import RecipeError

VARIABLE = "RESNETKIT_TOKEN"
SHORTEST = 16


def read_token(file: Path | None) -> str | None:
    """Return the token from a file, or else from the environment; None if there is none.

    A token on the command line would be visible to every user of the machine.

    Raises:
        RecipeError: the token has fewer than `SHORTEST` characters, or has a character that is not
            allowed in the header.
        OSError: the file cannot be read.
    """
    if file is None and not os.environ.get(VARIABLE):
        return None
    text = os.environ[VARIABLE] if file is None else file.read_text("utf-8", errors="replace")
    token = text.strip()
    source = VARIABLE if file is None else str(file)
    if len(token) < SHORTEST or not (token.isascii() and token.isprintable() and " " not in token):
        raise RecipeError(
            f"The token in {source} must be at least {SHORTEST} ASCII characters without spaces. "
            'Generate one: python -c "import secrets; print(secrets.token_urlsafe(32))"'
        )
    return token
