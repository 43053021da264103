"""The list of commands, in the order of ``resnet --help``.

Command modules import what they need inside their functions, so that ``--help`` is fast.
"""

from __future__ import annotations

from typing import Annotated

import typer

from .bench import bench
from .check import check
from .convert import convert
from .demo import demo
from .evaluate import evaluate
from .explain import explain
from .export import export
from .models import models
from .predict import predict
from .report import report
from .serve import serve
from .shard import shard
from .similar import similar
from .study import study
from .summary import summary
from .train import train
from .verify import verify

app = typer.Typer(
    name="resnet",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    help="From a folder of photos to a classifier you can trust, with the ResNet family.",
)


def _print_version(requested: bool) -> None:
    if requested:
        from .. import __version__

        print(f"resnetkit {__version__}")
        raise typer.Exit


@app.callback()
def _common_options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    pass


app.command()(demo)
app.command()(train)
app.command()(evaluate)
app.command()(predict)
app.command()(explain)
app.command()(report)
app.command()(similar)
app.command()(models)
app.command()(summary)
app.command()(convert)
app.command()(export)
app.command()(verify)
app.command()(serve)
app.command()(bench)
app.command()(check)
app.command()(shard)
app.add_typer(study)
