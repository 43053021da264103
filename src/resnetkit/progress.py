"""What the user sees during long operations: messages, and a live bar on a terminal.

Messages are log records of the logger ``resnetkit``. This module gives it a handler that writes to
standard error, so that standard output holds only results. To silence messages and bars in a
notebook or a program::

    logging.getLogger("resnetkit").setLevel(logging.WARNING)

Only the main rank of a run prints. On the other ranks these functions do nothing, so
callers need not check.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from .errors import Interrupted
from .processes import rank
from .text import encodable_json, printable, printable_json, printable_lines

console = Console(stderr=True, highlight=False, soft_wrap=True)

_typed: list[str] = []  # names in the command's arguments that contain control characters

Advance = Callable[[str], None]
"""Called after each unit of work, with the text to show after the bar (may be empty)."""


class ConsoleHandler(logging.Handler):
    """A log handler that prints records to standard error, on the main rank only."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record as plain text: ``[`` and ``]`` are not markup."""
        if rank() == 0:
            console.print(_printable_message(self.format(record)), markup=False)


log = logging.getLogger("resnetkit")
log.addHandler(ConsoleHandler())
if log.level == logging.NOTSET:
    log.setLevel(logging.INFO)


def keep_on_one_line(arguments: Iterable[str]) -> None:
    """Escape names in the command's arguments whose line breaks would split a message.

    A message may have several lines. Once it is complete, nothing shows which of its line breaks
    come from a name.
    """
    parts = {part for argument in arguments for part in re.split("[/\\\\=]", argument)}
    _typed[:] = sorted(part for part in parts if part.strip() and printable(part) != part)


def _printable_message(text: str) -> str:
    for name in _typed:
        text = text.replace(name, printable(name))
    return printable_lines(text)


def say(text: str = "") -> None:
    """Log one or more lines at level INFO."""
    log.info("%s", text)


def print_result(text: str) -> None:
    """Print a result to standard output."""
    if rank() == 0:
        print(_printable_message(text), flush=True)


def print_json(value: Any) -> None:
    """Print a result to standard output as indented JSON."""
    if rank() == 0:
        text = printable_json(json.dumps(value, indent=2, ensure_ascii=False))
        print(encodable_json(text, sys.stdout.encoding), flush=True)


def print_error(error: Exception) -> None:
    """Print to standard error why the command ends.

    Each of the other ranks prints only one line, because all ranks usually hit the same error, and
    nothing if all ranks were asked to stop. The text and its newline are written in one call:
    `print` writes them in two, and output from another process could come between them.
    """
    if rank() == 0:
        sys.stderr.write(f"resnet: {_printable_message(str(error))}\n")
    elif not isinstance(error, Interrupted):
        line = _printable_message(f"resnet: process {rank()}: {error}").splitlines()[0]
        sys.stderr.write(f"{line}\n")


@contextmanager
def bar(label: str, total: int | None, done: int = 0, every: float = 10.0) -> Iterator[Advance]:
    """Show progress while this context is open.

    On a terminal, this shows a live bar with the time left, which disappears at the end. Elsewhere,
    it prints at most one line every ``every`` seconds. It shows nothing if messages are silenced.

    Args:
        label: what is being done.
        total: units of work; None if unknown.
        done: units that are already done.
        every: minimum number of seconds between two lines.

    Yields:
        The function to call after each additional unit.
    """
    if rank() != 0 or not log.isEnabledFor(logging.INFO):
        yield lambda text: None
        return
    if not console.is_terminal:
        yield _line_printer(label, total, done=done, every=every)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TextColumn("{task.fields[text]}"),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as live:
        task = live.add_task(label, total=total, completed=done, text="")

        def advance(text: str = "") -> None:
            live.update(task, advance=1, text=printable(text))

        yield advance


def _line_printer(label: str, total: int | None, *, done: int, every: float) -> Advance:
    last = time.monotonic()

    def advance(text: str = "") -> None:
        nonlocal done, last
        done += 1
        if time.monotonic() - last >= every and done != total:
            last = time.monotonic()
            count = f"{done}/{total}" if total is not None else f"{done}"
            line = printable_lines(f"{label} {count} {text}".rstrip())
            print(line, file=sys.stderr, flush=True)

    return advance
