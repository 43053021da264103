"""``resnet check``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import typer

from .options import DATA, OUTPUT_FORMAT, WORKERS, OutputFormat

if TYPE_CHECKING:
    from ..data.check import CheckResult, Issue

EXAMPLES = 4
"""Maximum number of groups of images that the table lists for each issue."""


def check(data: DATA, format: OUTPUT_FORMAT = OutputFormat.table, workers: WORKERS = None) -> None:
    """Find problems in a dataset before training. Changes nothing.

    It exits with code 1 on errors, which would ruin training or its results: unreadable images;
    the same image in two splits or under two classes; a class with no images, with 1 image where
    validation needs another, or missing from the training split; a single class; folders that can
    be read both as splits and as classes.

    It exits with code 0 on warnings and notes: near duplicates and copies within a class, small or
    very unequal classes, wrong file extensions, unusual sizes and kinds of images.
    """
    from contextlib import ExitStack

    from ..data.check import check_dataset
    from ..progress import bar, print_json

    with ExitStack() as stack:
        result = check_dataset(
            data, workers, lambda total: stack.enter_context(bar("checking images", total))
        )
    if format is OutputFormat.json:
        print_json(result.to_dict())
    else:
        _print_table(result)
    if result.has_errors:
        raise typer.Exit(1)


def _print_table(result: CheckResult) -> None:
    from rich.console import Console

    from ..data.folder import UNDECIDED
    from ..data.paths import shown
    from ..text import printable

    console = Console(file=sys.stdout, highlight=False, soft_wrap=True)
    styles = {"error": "bold red", "warning": "yellow", "note": "dim"}
    sizes = [f"{sum(classes.values()):,} ({split})" for split, classes in result.counts.items()]
    names = {name for classes in result.counts.values() for name in classes}
    root = printable(shown(result.root))
    kind = "folders" if UNDECIDED in result.counts else "classes"
    console.print(f"{root}: images {' + '.join(sizes)}, {len(names)} {kind}", markup=False)
    for issue in result.issues:
        count = f"{len(issue.groups):,}" if issue.groups else ""
        console.print(f"\n{issue.level:7}", style=styles[issue.level], end="", markup=False)
        console.print(f"  {count:>6}  {printable(issue.text)}", markup=False)
        for line in _example_lines(issue):
            console.print(f"                 {line}", markup=False)
    if not result.issues:
        console.print("No problems found.")


def _example_lines(issue: Issue) -> list[str]:
    from ..text import printable

    lines = []
    for index, group in enumerate(issue.groups[:EXAMPLES]):
        more = f" = {len(group) - 3} more" if len(group) > 3 else ""
        detail = f": {issue.details[index]}" if issue.details else ""
        lines.append(printable(" = ".join(group[:3])) + more + printable(detail))
    rest = len(issue.groups) - EXAMPLES
    return lines + ([f"and {rest:,} more; list all with --format json"] if rest > 0 else [])
