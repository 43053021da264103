"""Text for people: counted nouns, and text that is safe to print or padded to a given width."""

from __future__ import annotations

import codecs
import json
import unicodedata


def pluralize(number: int, noun: str) -> str:
    """Return a number with its noun.

    >>> pluralize(1, "compute thread"), pluralize(2, "epoch")
    ('1 compute thread', '2 epochs')
    """
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def printable(text: str) -> str:
    r"""Return ``text`` on one line, with control and other unprintable characters escaped.

    >>> print(printable("new\nline 花"))
    new\nline 花
    """
    return "".join(c if _is_printable(c) else repr(c)[1:-1] for c in text)


def printable_lines(text: str) -> str:
    """Return ``text`` with each line made `printable`.

    File and class names may contain escape sequences that a terminal would execute.
    """
    return "\n".join(map(printable, text.split("\n")))


def printable_json(text: str) -> str:
    r"""Return the same JSON document with control characters as JSON escapes.

    >>> print(printable_json('"a\x9bb"'))
    "a\u009bb"
    """
    return "".join(c if c == "\n" or _is_printable(c) else json.dumps(c)[1:-1] for c in text)


def encodable_json(text: str, encoding: str | None) -> str:
    r"""Return the same JSON document, in ASCII if the encoding is not UTF-8.

    >>> print(encodable_json('"é"', "cp1252"))
    "\u00e9"
    """
    if encoding is None or codecs.lookup(encoding).name == "utf-8":
        return text
    return "".join(c if c.isascii() else json.dumps(c)[1:-1] for c in text)


def _is_printable(c: str) -> bool:
    return c.isprintable() or unicodedata.category(c) == "Zs"  # any kind of space


def pad_to_width(text: str, width: int) -> str:
    """Return `printable` text, padded with spaces to ``width`` terminal columns.

    >>> pad_to_width("花", 4) + "|"
    '花  |'
    """
    text = printable(text)
    return text + " " * (width - display_width(text))


def display_width(text: str) -> int:
    """Return the number of terminal columns that `printable` text takes up.

    Chinese, Japanese and Korean characters take two columns, combining marks none.
    """
    from rich.cells import cell_len

    return cell_len(printable(text))
