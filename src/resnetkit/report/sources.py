"""From what a person names (runs, model files, data) to a report or a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..errors import RecipeError
from ..evaluation.evaluate import Evaluation, evaluate
from ..models.weights import modelfile
from ..storage import refuse_existing
from . import compare, html
from .record import Record, read


def write_report(
    sources: Sequence[Path],
    split: str | None = None,
    out: Path | None = None,
    device: str = "auto",
    workers: int | None = None,
) -> tuple[Path, tuple[str, ...]]:
    """Write the report on one run or model file, or compare several.

    Args:
        sources: runs and model files; then the data, which a run knows itself.
        split: as in `evaluate`; of a run by default the validation part.
        out: the file; by default ``report.html`` in the run, else here; or ``comparison.html``.

    Returns:
        The file, and notes for the reader.

    Raises:
        RecipeError: no run or model file is named, or no data for a model file.
        ModelFileError, DataError, PictureError: as `evaluate`.
        OutputError: the file is there, and is not the run's own report.
    """
    records, data = _sort(sources)
    if len(records) > 1:
        target = out or Path("comparison.html")
        refuse_existing(target)
        return target, compare.write(target, records, data, split, device, workers)
    (record,) = records
    target = out or (record.file.parent if record.is_run else Path()) / "report.html"
    if out is not None or not record.is_run:
        refuse_existing(target)
    found = _evaluate(record, data, split, device, workers)
    html.write(target, found, record.file, device)
    return target, found.notes


def _sort(sources: Sequence[Path]) -> tuple[list[Record], Path | None]:
    """The models that are named, and the data behind them."""
    last = sources[-1]
    is_model = (last / "model.safetensors").is_file() or (
        last.is_file() and modelfile.is_model_file(last)
    )
    models, data = (sources, None) if is_model or len(sources) == 1 else (sources[:-1], last)
    return [read(path) for path in models], data


def _evaluate(
    record: Record, data: Path | None, split: str | None, device: str, workers: int | None
) -> Evaluation:
    where = data or record.data
    if where is None:
        raise RecipeError(
            f"{record.file} does not lie in the folder of its run and so does not know its data; "
            f"name them: resnet report {record.file} DATA"
        )
    chosen = split or ("val" if data is None else None)
    return evaluate(record.file, where, chosen, device=device, workers=workers)
