"""Batches of a table -> the same batches with answers, for Ray Data, Daft and Spark."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from ..data.paths import object_url
from ..distribution import install_command
from ..errors import MissingPackageError, RecipeError
from ..inference.images import ImageLike, Unreadable
from ..inference.prediction import Prediction

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from ..export.predictor import ExportedPredictor
    from ..inference.predictor import Predictor

SPARK_SCHEMA = (
    "class string, probability float, top array<struct<class: string, probability: float>>, "
    "model string, error string"
)
"""The answer columns in Spark's type syntax, without ``coverage`` and ``false_alarms``."""


@dataclass(frozen=True)
class BatchPredictor:
    """A model file or exported file that classifies batches of a table. It can be pickled.

    Called with a batch, it returns the batch with the columns of `answer_schema` added. The first
    call in each process loads the model, which then stays loaded. A row whose image cannot be read
    has an ``error`` and no class.

    Args:
        model_file: a model file or exported file. Each host needs it at this path.
        column: the column with the images: paths, or the bytes of image files.
        top_k: the number of classes to return.
        threshold: below this probability, the class is ``unknown``.
        coverage, false_alarms: see `Predictor.__call__`.
        engine, precision, device: see `Predictor`; exported files ignore them.
        threads: number of compute threads, and of threads that read images; by default, one per CPU
            that Ray granted to the actor, or one per core outside Ray.
        workers: number of threads that read images, if it differs from ``threads``.
        many: whether to use the engine for many images, even for a small batch.
    """

    model_file: str | os.PathLike[str]
    column: str = "path"
    top_k: int = 5
    threshold: float = 0.0
    coverage: float | None = None
    false_alarms: float | None = None
    engine: str = "auto"
    precision: str = "auto"
    device: str = "auto"
    threads: int | None = None
    workers: int | None = None
    many: bool = True

    def __call__(self, batch: Any) -> Any:
        """Return a batch with its answers.

        Args:
            batch: a pyarrow Table, a pandas DataFrame, or a dict of arrays; the result has the same
                type. A dict is what Ray Data passes by default.

        Raises:
            RecipeError: the batch already has a column with the name of an answer column.
        """
        if isinstance(batch, Mapping):
            self._refuse_columns(batch)
            answers = self.answer(batch[self.column])
            return {**batch, **{name: _objects(answers[name]) for name in answers.column_names}}
        if hasattr(batch, "assign"):
            self._refuse_columns(batch.columns)
            answers = self.answer(batch[self.column])
            columns = {name: answers[name].to_pylist() for name in answers.column_names}
            return batch.assign(**columns)
        self._refuse_columns(batch.column_names)
        answers = self.answer(batch[self.column].to_pylist())
        for name in answers.column_names:
            batch = batch.append_column(answers.schema.field(name), answers[name])
        return batch

    def _refuse_columns(self, names: Iterable[str]) -> None:
        taken = sorted({*names} & {*self.answer_schema().names})
        if taken:
            raise RecipeError(
                f"The batch already has columns that answers are written to: {', '.join(taken)}. "
                "Rename them first, for example to true_class"
            )

    def map_pandas(self, batches: Iterable[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        """Yield batches with answers; pass this method to Spark's ``mapInPandas``."""
        return map(self, batches)

    def answer(self, images: Iterable[Any]) -> pa.Table:
        """Return one row per image, in order, with the columns of `answer_schema`.

        Args:
            images: paths, bytes, or any other form of an image. A missing value is treated as an
                image that cannot be read.
        """
        rows = [_row(answer) for answer in self.stream(map(_readable, images))]
        return _import_pyarrow().Table.from_pylist(rows, schema=self.answer_schema())

    def check(self) -> None:
        """Load the model once to check that it supports the request.

        Raises:
            ModelFileError: the file is not a valid model or exported file, or has no calibration.
            RecipeError: a setting is not valid for this model or this machine.
        """
        predictor = _load.__wrapped__(self, self.threads)
        predictor.resolve_uncertainty(self.coverage, self.false_alarms)

    def stream(self, images: Iterable[ImageLike]) -> Iterator[Prediction]:
        """Yield the answers for images in order, in constant memory."""
        threads = self.threads or _granted_cpus()
        predictor = _load(self, threads)
        return predictor.stream(
            images,
            self.top_k,
            workers=threads if self.workers is None else self.workers,
            threshold=self.threshold,
            coverage=self.coverage,
            false_alarms=self.false_alarms,
            total=sys.maxsize if self.many else 1,
        )

    def answer_schema(self) -> pa.Schema:
        """Return the names and types of the answer columns, those of ``resnet predict``."""
        pa = _import_pyarrow()
        ranked = pa.struct([("class", pa.string()), ("probability", pa.float32())])
        columns = {
            "class": pa.string(),
            "probability": pa.float32(),
            "top": pa.list_(ranked),
            "model": pa.string(),
            "error": pa.string(),
        }
        if self.coverage is not None:
            columns["set"] = pa.list_(pa.string())
        if self.false_alarms is not None:
            columns["strangeness"] = pa.float64()
        return pa.schema(list(columns.items()))


@lru_cache(maxsize=1)
def _load(wanted: BatchPredictor, threads: int | None) -> Predictor | ExportedPredictor:
    from ..export.artefact import is_artefact

    path = Path(wanted.model_file)
    if is_artefact(path):
        from ..export.predictor import ExportedPredictor

        return ExportedPredictor(path, threads=threads)
    import torch

    from ..inference.predictor import Predictor

    if threads is not None:  # this process is a worker, and has no other use for its threads
        torch.set_num_threads(threads)
    return Predictor(path, wanted.device, engine=wanted.engine, precision=wanted.precision)


def _granted_cpus() -> int | None:
    """Return the CPUs that Ray granted to this actor or task; None outside Ray.

    Ray limits OpenMP to that many threads, or to 1, but pins no processes: the system still reports
    all cores.
    """
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return None
    context = ray.get_runtime_context()
    if context.worker.mode != ray.WORKER_MODE:
        return None
    return max(1, int(context.get_assigned_resources().get("CPU", 1)))


def local_path(text: str) -> str:
    """Return the path in a ``file://`` URL; return other paths and object URLs unchanged.

    Raises:
        RecipeError: the address has another scheme.
    """
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", text)
    if scheme is None or object_url(text) is not None:
        return text
    url = urlsplit(text)
    if scheme[1].lower() != "file" or url.netloc not in ("", "localhost"):
        raise RecipeError(f"{text} cannot be read. Expected a path, file:///PATH, s3:// or gs://")
    return unquote(url.path)


def _readable(image: Any) -> ImageLike:
    if isinstance(image, str):
        try:
            return local_path(image)
        except RecipeError as error:
            return Unreadable(image, str(error))
    is_missing = image is None or image != image  # NaN is how pandas stores None in some columns
    return Unreadable("", "no image in this row") if is_missing is True else image


def _row(answer: Prediction) -> dict[str, Any]:
    """Return an answer as a row; class and file names may contain bytes that are not UTF-8."""
    row = answer.to_dict()
    for name in ("class", "error"):
        if row[name] is not None:
            row[name] = utf8(row[name])
    row["top"] = [{**ranked, "class": utf8(ranked["class"])} for ranked in row["top"]]
    if "set" in row:
        row["set"] = list(map(utf8, row["set"]))
    return row


def utf8(text: str) -> str:
    """Escape the bytes in a text that are not valid UTF-8, as `resnet predict --out` does."""
    return text.encode("utf-8", "backslashreplace").decode()


def _objects(column: pa.ChunkedArray) -> Any:
    import numpy as np

    values = np.empty(len(column), object)  # np.array would make a matrix of equally long lists
    values[:] = column.to_pylist()
    return values


def _import_pyarrow() -> Any:
    try:
        import pyarrow
    except ModuleNotFoundError:
        message = f"Bulk prediction needs pyarrow: {install_command('ray')}"
        raise MissingPackageError(message) from None
    return pyarrow
