"""``resnet similar``."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from .options import DEVICE, MODEL_FILE, ROW_FORMAT, WORKERS

if TYPE_CHECKING:
    from ..inference.predictor import Predictor
    from ..inference.similar import ImageIndex


def similar(
    model: MODEL_FILE,
    photos: Annotated[
        Optional[str],  # noqa: UP045
        typer.Argument(
            help="Where to search: a folder, a quoted glob, @list.txt, a CSV, or the .npz that "
            "`resnet predict --embeddings` wrote.",
            metavar="PHOTOS",
        ),
    ] = None,
    queries: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Argument(
            help="Files, folders, globs, @list.txt, @- (paths from standard input) or - (one "
            "image from standard input).",
            metavar="QUERY...",
        ),
    ] = None,
    top_k: Annotated[int, typer.Option(help="Photos to list per query.", min=1, metavar="N")] = 5,
    format: ROW_FORMAT = None,
    page: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            help="Also write a page that shows each query and its photos.", metavar="FILE.html"
        ),
    ] = None,
    device: DEVICE = "auto",
    workers: WORKERS = None,
) -> None:
    """Find the photos most similar to each query."""
    from .sources import check_usage

    arguments = [*([photos] if photos is not None else []), *(queries or [])]
    problems = {"PHOTOS": "No photos to search were given", "QUERY...": "No query was given"}
    check_usage(model, arguments, "similar", problems)
    assert photos is not None
    assert queries
    from ..errors import RecipeError
    from ..inference.predictor import Predictor
    from ..inference.similar_page import write_similar_page
    from ..inference.similar_rows import format_similar, format_similar_header
    from ..progress import Advance, bar, say
    from ..storage import refuse_existing, refuse_unwritable
    from .row_printer import RowPrinter
    from .sources import count_sources, expand_sources

    if photos == "@-" and {"-", "@-"} & set(queries):
        raise RecipeError(
            "Standard input cannot be both PHOTOS and a QUERY. Name a file: @list.txt"
        )
    if page is not None:
        refuse_existing(page)
        refuse_unwritable(page)
    printer = RowPrinter(format and format.value)
    # In fp32, equal images have equal features with every engine.
    predictor = Predictor(model, device, precision="fp32", note=say)
    index = _read_index(predictor, photos, workers)
    failed = len(index.errors)
    answers = []
    printer.write(format_similar_header(printer.format))
    with ExitStack() as stack:
        advance: Advance = lambda text: None  # noqa: E731
        if not printer.is_terminal:  # rows on a terminal show the progress themselves
            advance = stack.enter_context(bar("searching", count_sources(queries)))
        for answer in index.find(predictor, expand_sources(queries, say), top_k, workers=workers):
            printer.write(format_similar(answer, printer.format))
            failed += answer.error is not None
            if page is not None:
                answers.append(answer)
            advance("")
    if page is not None:
        write_similar_page(page, predictor, index, answers=answers, photos=photos)
        say(f"page: {page}")
    if failed:
        raise typer.Exit(3)


def _read_index(predictor: Predictor, photos: str, workers: int | None) -> ImageIndex:
    """Return the index of the photos, and report those left out."""
    from ..inference.similar import ImageIndex
    from ..progress import bar, say
    from ..text import pluralize, printable
    from .sources import expand_photos

    if photos.lower().endswith(".npz"):
        index = ImageIndex.from_file(Path(photos), predictor)
        for note in index.notes:
            say(f"Note: {photos} {note}.")
        return index
    images, labels = expand_photos(photos, say)
    with bar("reading photos", len(images)) as advance:
        index = ImageIndex.from_images(predictor, images, labels, workers=workers, advance=advance)
    for _, reason in index.errors:
        say(f"ERROR  {printable(reason)}")
    if index.errors:
        photo_count = pluralize(len(index.errors), "photo")
        say(f"{photo_count} of {len(images):,} cannot be read; left out of the search.")
    if index.repeated:
        paths = pluralize(index.repeated, "path")
        say(f"Left out of {printable(photos)}: {paths} to files already included.")
    return index
