"""``resnet predict --on``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import RecipeError
from ..export.artefact import is_artefact
from ..progress import say
from ..scale.batches import BatchPredictor
from ..scale.listing import list_items
from ..scale.ray_data import predict_on_ray
from .options import refuse_engine_options
from .sources import expand_sources


def predict_on(
    address: str,
    model: Path,
    images: Sequence[str],
    *,
    out: Path | None,
    unusable: Mapping[str, object],
    settings: Mapping[str, Any],
) -> int:
    """Predict with Ray, and return the number of unreadable images.

    Args:
        address: the argument of ``--on``.
        model: the model file or exported file.
        images: the arguments that name images.
        out: the folder for the rows.
        unusable: options that do not work with ``--on``; a false value means not given.
        settings: the other fields of `BatchPredictor`.

    Raises:
        RecipeError: the options cannot be combined.
    """
    given = [name for name, value in unusable.items() if value]
    if given:
        them = "it" if len(given) == 1 else "them"
        raise RecipeError(f"{', '.join(given)} cannot be used with --on. Remove {them}, or --on")
    if out is None:
        raise RecipeError("--on writes a folder of Parquet files. Name it with --out DIR")
    if is_artefact(model):
        engine = {name: settings[name] for name in ("engine", "precision", "device")}
        refuse_engine_options(model, **engine)
    predictor = BatchPredictor(model, **settings)
    items = list_items(images, lambda arguments: expand_sources(arguments, say))
    written = predict_on_ray(predictor, items, out, address=address)
    say(f"{out}: {written.rows:,} rows, {written.failed:,} of them with an error.")
    return written.failed
