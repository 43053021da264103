"""What the user sees during long work: messages, and a live bar on a terminal.

Messages are log records of the logger ``resnetkit``, which this module gives a handler for standard
error, so that standard output holds only results. To silence messages and bars in a notebook or a
program::

    logging.getLogger("resnetkit").setLevel(logging.WARNING)

Only the main rank of a run prints. On the other ranks these functions do nothing, so
callers need not check.
"""

from __future__ import annotations

import json
import logging
import sys
import time
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from . import runtime
from .errors import Interrupted

console = Console(stderr=True, highlight=False, soft_wrap=True)

Advance = Callable[[str], None]
"""Called after each unit of work, with the text to show after the bar (may be empty)."""


class ConsoleHandler(logging.Handler):
    """A log handler that prints records on standard error, on the main rank."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record; ``[`` and ``]`` have no special meaning."""
        if runtime.rank() == 0:
            console.print(printable_lines(self.format(record)), markup=False)


log = logging.getLogger("resnetkit")
log.addHandler(ConsoleHandler())
if log.level == logging.NOTSET:
    log.setLevel(logging.INFO)


def say(text: str = "") -> None:
    """Log one or more lines at the level INFO."""
    log.info("%s", text)


def print_result(text: str) -> None:
    """Print a result on standard output."""
    if runtime.rank() == 0:
        print(printable_lines(text), flush=True)


def print_json(value: Any) -> None:
    """Print a result as indented JSON on standard output."""
    if runtime.rank() == 0:
        print(printable_json(json.dumps(value, indent=2, ensure_ascii=False)), flush=True)


def print_error(error: Exception) -> None:
    """Print on standard error why the command ends.

    Other ranks print one line each, because they usually hit the same error, and nothing if all
    ranks were asked to stop. Text and newline are written in one call: `print` writes them in two,
    and the output of another process could get in between.
    """
    if runtime.rank() == 0:
        sys.stderr.write(f"resnet: {printable_lines(str(error))}\n")
    elif not isinstance(error, Interrupted):
        line = f"resnet: process {runtime.rank()}: {error}".splitlines()[0]
        sys.stderr.write(f"{printable(line)}\n")


def pluralize(number: int, noun: str) -> str:
    """Return a number with its noun.

    >>> pluralize(1, "compute thread"), pluralize(2, "epoch")
    ('1 compute thread', '2 epochs')
    """
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def printable(text: str) -> str:
    r"""Return ``text`` on one line, with control characters and the like as escapes.

    >>> print(printable("new\nline 花"))
    new\nline 花
    """
    return "".join(c if _is_printable(c) else repr(c)[1:-1] for c in text)


def printable_lines(text: str) -> str:
    """Return ``text`` with each of its lines `printable`.

    File and class names may hold escape sequences that a terminal would execute.
    """
    return "\n".join(map(printable, text.split("\n")))


def printable_json(text: str) -> str:
    r"""Return the same JSON document with control characters as JSON escapes.

    >>> print(printable_json('"a\x9bb"'))
    "a\u009bb"
    """
    return "".join(c if c == "\n" or _is_printable(c) else json.dumps(c)[1:-1] for c in text)


def _is_printable(c: str) -> bool:
    return c.isprintable() or unicodedata.category(c) == "Zs"  # all kinds of spaces


def pad_to_width(text: str, width: int) -> str:
    """Return `printable` text, padded with spaces to ``width`` terminal columns.

    >>> pad_to_width("花", 4) + "|"
    '花  |'
    """
    text = printable(text)
    return text + " " * (width - display_width(text))


def display_width(text: str) -> int:
    """Return the terminal columns that `printable` text takes.

    Chinese, Japanese and Korean characters take two columns, combining marks none.
    """
    return cell_len(printable(text))


@contextmanager
def bar(label: str, total: int | None, done: int = 0, every: float = 10.0) -> Iterator[Advance]:
    """Show progress while this context is open.

    On a terminal this is a live bar with the time left, which disappears at the end. Elsewhere it
    is a line at most every ``every`` seconds. It is silent if messages are.

    Args:
        label: what is being done.
        total: units of work; None if unknown.
        done: units that are already done.
        every: seconds between two lines.

    Yields:
        The function to call after each further unit.
    """
    if runtime.rank() != 0 or not log.isEnabledFor(logging.INFO):
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
