"""Run folders, model files and data, as the user names them -> a report or a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..errors import RecipeError
from ..evaluation.evaluate import Evaluation, evaluate
from ..models.weights import modelfile
from ..storage import refuse_existing
from . import compare, html
from .record import Record, read_record


def write_report(
    sources: Sequence[Path],
    split: str | None = None,
    out: Path | None = None,
    device: str = "auto",
    workers: int | None = None,
) -> tuple[Path, tuple[str, ...]]:
    """Write the report on one run folder or model file, or compare several.

    Args:
        sources: run folders and model files, then the data. A run folder records its data.
        split: as in `evaluate`; for a run's own data, the default is the validation split.
        out: the file to write. By default ``report.html`` in the run folder or the current folder,
            or ``comparison.html`` in the current folder. The report on another model file in a
            run folder is named after that file, such as ``report-last.html``.
        device: as in `evaluate`.
        workers: as in `evaluate`.

    Returns:
        The file, and notes for the user.

    Raises:
        RecipeError: a model file is outside a run folder and no data is named, or the models to
            compare have different classes.
        ModelFileError, DataError, ImageError: see `evaluate`.
        OutputError: the file exists and is not the default one in the run folder.
    """
    records, data = _split_sources(sources)
    if len(records) > 1:
        target = out or Path("comparison.html")
        refuse_existing(target)
        notes = compare.write_comparison(
            target, records, data=data, split=split, device=device, workers=workers
        )
        return target, notes
    (record,) = records
    name = "report.html"
    if record.is_run and not record.is_kept:
        name = f"report-{record.file.stem}.html"
    target = out or (record.file.parent if record.is_run else Path()) / name
    if out is not None or not record.is_run:
        refuse_existing(target)
    evaluation = _evaluate_record(record, data, split=split, device=device, workers=workers)
    html.write_page(target, evaluation, model_file=record.file, device=device)
    return target, evaluation.notes


def _split_sources(sources: Sequence[Path]) -> tuple[list[Record], Path | None]:
    """Separate the models from the data, which comes last if it is named."""
    last = sources[-1]
    is_model = (last / "model.safetensors").is_file() or (
        last.is_file() and modelfile.is_model_file(last)
    )
    models, data = (sources, None) if is_model or len(sources) == 1 else (sources[:-1], last)
    return [read_record(path) for path in models], data


def _evaluate_record(
    record: Record, data: Path | None, *, split: str | None, device: str, workers: int | None
) -> Evaluation:
    source = data or record.evaluated_data
    if source is None:
        raise RecipeError(
            f"{record.file} is not in a run folder, so its data is unknown. Name it: "
            f"resnet report {record.file} DATA"
        )
    split = split or ("val" if data is None else None)
    evaluation = evaluate(record.file, source, split, device=device, workers=workers)
    if data is not None or record.corrections is None:
        return evaluation
    # Omit the note on where the paths in a run's split.csv lead: it names folders on this machine.
    notes = tuple(note for note in evaluation.notes if not note.startswith("the paths in "))
    return replace(evaluation, notes=notes)
