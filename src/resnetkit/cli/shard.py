"""``resnet shard``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import DATA, WORKERS


def shard(
    data: DATA,
    out: Annotated[Path, typer.Argument(help="The folder to create, or s3://BUCKET/PREFIX.")],
    size: Annotated[
        int, typer.Option(help="Size limit of a shard in megabytes.", min=1, metavar="MB")
    ] = 256,
    workers: WORKERS = None,
) -> None:
    """Pack a dataset into a few large files that are easier to copy and list than many small ones.

    The files are WebDataset tars with an index. train, evaluate, predict and check accept the new
    folder like any other dataset; training on it gives the same model file, bit for bit. Images
    that cannot be decoded are listed, and packed unchanged.
    """
    from contextlib import ExitStack

    from ..data.paths import shown
    from ..data.shard_writer import write_shards
    from ..progress import bar, print_result, say
    from ..text import pluralize, printable

    with ExitStack() as stack:
        written = write_shards(
            data,
            out,
            size,
            workers,
            lambda total: stack.enter_context(bar("packing images", total)),
        )
    for remark in written.remarks:
        say(f"Note: {printable(remark)}.")
    if written.unreadable:
        count = pluralize(len(written.unreadable), "image")
        say(f"{count} cannot be decoded. They are packed unchanged:")
        for path, error in written.unreadable.items():
            say(f"  {printable(path)}: {printable(error)}")
    manifest = written.manifest
    total = sum(one.bytes for one in manifest.shards)
    shards = pluralize(len(manifest.shards), "shard")
    images = pluralize(manifest.images, "image")
    print_result(f"{shown(out)}: {images} in {shards}, {total / 1e6:,.1f} MB")
