"""The command that looks after data."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import typer

from .options import DATA, SHOWN, WORKERS, Shown

if TYPE_CHECKING:
    from ..data.check import CheckResult, Issue

EXAMPLES = 4
"""Groups of pictures that the table names of each issue."""


def check(data: DATA, format: SHOWN = Shown.table, workers: WORKERS = None) -> None:
    """Find what is wrong with photos before a run does; changes nothing.

    Errors, which would spoil a run or its figures, end it with exit code 1: pictures that cannot be
    read; exactly the same picture in two splits or under two classes; a class without a picture, of
    one picture where validation needs another, or that training does not have; a single class;
    folders that can be read as splits and as classes.

    Warnings and notes end it with 0: pictures that are nearly the same or more than once in a
    class, small or very unequal classes, a wrong extension, odd sizes and kinds of pictures.
    """
    from contextlib import ExitStack

    from ..data.check import check_dataset
    from ..progress import answer_json, bar

    with ExitStack() as shown:
        found = check_dataset(
            data, workers, lambda count: shown.enter_context(bar("looking at pictures", count))
        )
    if format is Shown.json:
        answer_json(found.to_dict())
    else:
        _print_table(found)
    if found.has_errors:
        raise typer.Exit(1)


def _print_table(found: CheckResult) -> None:
    from rich.console import Console

    from ..data.folder import UNDECIDED
    from ..progress import printable

    console = Console(file=sys.stdout, highlight=False, soft_wrap=True)
    styles = {"error": "bold red", "warning": "yellow", "note": "dim"}
    sizes = [f"{sum(classes.values()):,} ({split})" for split, classes in found.counts.items()]
    names = {name for classes in found.counts.values() for name in classes}
    root = printable(str(found.root))
    what = "folders" if UNDECIDED in found.counts else "classes"
    console.print(f"{root}: pictures {' + '.join(sizes)}, {len(names)} {what}", markup=False)
    for issue in found.issues:
        count = f"{len(issue.groups):,}" if issue.groups else ""
        console.print(f"\n{issue.level:7}", style=styles[issue.level], end="", markup=False)
        console.print(f"  {count:>6}  {printable(issue.text)}", markup=False)
        for line in _examples(issue):
            console.print(f"                 {line}", markup=False)
    if not found.issues:
        console.print("Nothing is wrong.")


def _examples(issue: Issue) -> list[str]:
    from ..progress import printable

    lines = []
    for index, group in enumerate(issue.groups[:EXAMPLES]):
        more = f" = {len(group) - 3} more" if len(group) > 3 else ""
        detail = f": {issue.details[index]}" if issue.details else ""
        lines.append(printable(" = ".join(group[:3])) + more + printable(detail))
    rest = len(issue.groups) - EXAMPLES
    return lines + ([f"and {rest:,} more; all of them: --format json"] if rest > 0 else [])
