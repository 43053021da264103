"""Rows of results on standard output."""

from __future__ import annotations

import sys

from ..text import encodable_json, printable_json, printable_lines


class RowPrinter:
    """A writer of rows to standard output. On a terminal, it prints no escape sequences.

    Args:
        format: ``table``, ``jsonl`` or ``csv``. None selects a table on a terminal, and JSON Lines
            otherwise.

    Attributes:
        format: the selected format.
        is_terminal: whether the rows go to a terminal, where they show progress.
    """

    def __init__(self, format: str | None) -> None:
        self.is_terminal = sys.stdout.isatty()
        self.format = format or ("table" if self.is_terminal else "jsonl")
        self._stdout = sys.stdout  # kept, because a live bar replaces sys.stdout

    def write(self, text: str) -> None:
        """Write one or more rows. File and class names in them may contain escape sequences."""
        if self.is_terminal:
            text = printable_json(text) if self.format == "jsonl" else printable_lines(text)
        if self.format == "jsonl":
            text = encodable_json(text, self._stdout.encoding)
        self._stdout.write(text)
        self._stdout.flush()
