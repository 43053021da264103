"""What long work shows while it works: a live bar on a terminal, plain lines elsewhere.

Everything goes to standard error, so that standard output holds results alone. Of the processes of
one run, the first one speaks for all; the others are silent here, so that nobody else asks.
"""

from __future__ import annotations

import json
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
"""Called after each unit of work with the text to show behind the bar (may be empty)."""


def say(text: str = "") -> None:
    """One line (or several) on standard error; ``[`` and ``]`` have no special meaning."""
    if runtime.rank() == 0:
        console.print(shown(text), markup=False)


def answer(text: str) -> None:
    """A result, on standard output."""
    if runtime.rank() == 0:
        print(shown(text), flush=True)


def answer_json(value: Any) -> None:
    """A result as indented JSON, on standard output."""
    if runtime.rank() == 0:
        print(shown_json(json.dumps(value, indent=2, ensure_ascii=False)), flush=True)


def complain(error: Exception) -> None:
    """Why the command ends. Of the other processes one line each: most often they met the same; and
    none where all were asked to stop.

    The end of the line is written with it: print would write it by itself, and what another process
    says at the same moment would come between."""
    if runtime.rank() == 0:
        sys.stderr.write(f"resnet: {shown(str(error))}\n")
    elif not isinstance(error, Interrupted):
        line = f"resnet: process {runtime.rank()}: {error}".splitlines()[0]
        sys.stderr.write(f"{printable(line)}\n")


def counted(number: int, noun: str) -> str:
    """
    >>> counted(1, "compute thread"), counted(2, "epoch")
    ('1 compute thread', '2 epochs')
    """
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def printable(text: str) -> str:
    """``text`` on one line: what cannot be shown, such as a newline in a file's name, as an escape.

    >>> print(printable("new\\nline 花"))
    new\\nline 花
    """
    return "".join(c if _is_shown(c) else repr(c)[1:-1] for c in text)


def shown(text: str) -> str:
    """Return ``text`` as a terminal may get it: each of its lines `printable`. Names of files and
    classes may hold escape sequences, which would reach the terminal as commands."""
    return "\n".join(map(printable, text.split("\n")))


def shown_json(text: str) -> str:
    """Return the same JSON without what a terminal would take for commands.

    >>> print(shown_json('"a\x9bb"'))
    "a\\u009bb"
    """
    return "".join(c if c == "\n" or _is_shown(c) else json.dumps(c)[1:-1] for c in text)


def _is_shown(c: str) -> bool:
    return c.isprintable() or unicodedata.category(c) == "Zs"  # all kinds of spaces


def padded(text: str, width: int) -> str:
    """`printable` text, filled up with blanks to ``width`` columns of a terminal, of which Chinese,
    Japanese and Korean letters take two each, and marks above or below a letter none.

    >>> padded("花", 4) + "|"
    '花  |'
    """
    text = printable(text)
    return text + " " * (width - columns(text))


def columns(text: str) -> int:
    """How many columns of a terminal a text takes as `printable`."""
    return cell_len(printable(text))


@contextmanager
def bar(what: str, total: int | None, done: int = 0, every: float = 10.0) -> Iterator[Advance]:
    """Shows ``what`` as ``total`` units of work (None: nobody knows), of which ``done`` are; yields
    the function to call after each further unit.

    On a terminal this is a live bar with the time left, which goes away when the work is done;
    elsewhere a line appears at most ``every`` seconds.
    """
    if runtime.rank() != 0:
        yield lambda text: None
        return
    if not console.is_terminal:
        yield _lines(what, total, done, every)
        return
    shown = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TextColumn("{task.fields[text]}"),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*shown, console=console, transient=True) as live:
        task = live.add_task(what, total=total, completed=done, text="")

        def advance(text: str = "") -> None:
            live.update(task, advance=1, text=printable(text))

        yield advance


def _lines(what: str, total: int | None, done: int, every: float) -> Advance:
    last = time.monotonic()

    def advance(text: str = "") -> None:
        nonlocal done, last
        done += 1
        if time.monotonic() - last >= every and done != total:
            last = time.monotonic()
            count = f"{done}/{total}" if total is not None else f"{done}"
            print(shown(f"{what} {count} {text}".rstrip()), file=sys.stderr, flush=True)

    return advance
