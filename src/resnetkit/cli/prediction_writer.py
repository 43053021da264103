"""The outputs of ``resnet predict``: rows, labeled images, embeddings, and a progress bar."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from ..errors import RecipeError
from ..inference import drawing
from ..inference.embeddings import EmbeddingsFile
from ..inference.images import ImageLike
from ..inference.prediction import Prediction
from ..inference.rows import RowsFile, format_header, format_row
from ..prefetch import prefetch_map
from ..processes import default_workers
from ..progress import Advance, bar, say
from ..storage import make_output, refuse_used
from .row_printer import RowPrinter
from .sources import count_sources, expand_sources

if TYPE_CHECKING:
    from ..export.predictor import ExportedPredictor
    from ..inference.predictor import Predictor


class PredictionWriter:
    """All outputs of one `resnet predict` run, opened and checked before any image is read.

    Args:
        predictor: the model that predicts.
        format: ``table``, ``jsonl`` or ``csv``. None selects a table on a terminal, CSV for an
            ``out`` that ends in ``.csv``, and JSON Lines otherwise.
        out: the file for the rows; None writes them to standard output.
        resume: continue the rows in ``out``.
        image_folder: folder for the images with the class drawn on them.
        embeddings: file for the features.
        columns: the columns of CSV rows.
        threshold, false_alarms: the settings of the predictions. The continued rows must have the
            same settings.

    Attributes:
        first: index of the first image to predict; above 0 only for continued rows.
        total: number of images, known after `open_sources`; None if they can be read only once.

    Raises:
        RecipeError: the options cannot be combined.
        OutputError: an output exists or cannot be written.
    """

    def __init__(
        self,
        predictor: Predictor | ExportedPredictor,
        format: str | None,
        *,
        out: Path | None,
        resume: bool,
        image_folder: Path | None,
        embeddings: Path | None,
        columns: Sequence[str],
        threshold: float,
        false_alarms: float | None,
    ) -> None:
        if resume and out is None:
            raise RecipeError("--resume continues a file of rows. Name it with --out FILE")
        if resume and embeddings is not None:
            raise RecipeError(
                "--embeddings cannot be combined with --resume: the file holds either all images "
                "or none"
            )
        if out is not None and format == "table":
            raise RecipeError("--out takes --format jsonl or csv; a table is only for the terminal")
        self._printer = RowPrinter(format)
        self._format = self._printer.format
        if out is not None:
            self._format = format or ("csv" if out.suffix.lower() == ".csv" else "jsonl")
        # Rows on a terminal show the progress themselves.
        self._needs_bar = not (out is None and self._printer.is_terminal)
        self._columns = columns
        self._image_folder = image_folder
        self._stack = ExitStack()
        self.total: int | None = None
        self._rows: RowsFile | None = None
        self._embeddings: EmbeddingsFile | None = None
        if image_folder is not None and not resume:
            refuse_used(image_folder)
        if embeddings is not None:
            self._embeddings = self._stack.enter_context(
                EmbeddingsFile(embeddings, model=predictor.digest)
            )
        if out is not None:
            self._rows = self._stack.enter_context(
                RowsFile(
                    out,
                    self._format,
                    digest=predictor.digest,
                    resume=resume,
                    columns=columns,
                    threshold=threshold,
                    false_alarms=false_alarms,
                    classes=predictor.classes,
                )
            )
        if image_folder is not None:
            if not image_folder.exists():
                make_output(image_folder)
            _warn_about_missing_glyphs(predictor.classes)
        self.first = self._rows.first if self._rows else 0

    def __enter__(self) -> PredictionWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, value, trace)

    def open_sources(self, arguments: Sequence[str]) -> Iterable[ImageLike]:
        """Return the images named by the arguments, checked against the rows already in ``out``."""
        self.total = count_sources(arguments)
        images = expand_sources(arguments, say)
        return self._rows.check_sources(images) if self._rows else images

    def write(self, predictions: Iterator[Prediction]) -> int:
        """Write predictions as they arrive, and return the number of unreadable images."""
        if self._image_folder is not None:
            workers = max(1, default_workers() // 2)
            numbered = enumerate(predictions, self.first)
            predictions = prefetch_map(self._draw, numbered, workers=workers)
        if self._rows is None:
            self._printer.write(format_header(self._format, self._columns))
        failed = self._rows.failed if self._rows else 0
        with ExitStack() as stack:
            advance: Advance = lambda text: None  # noqa: E731
            if self._needs_bar:
                advance = stack.enter_context(bar("predicting", self.total, done=self.first))
            for prediction in predictions:
                failed += prediction.error is not None
                self._write_prediction(prediction)
                advance("")
        return failed

    def _write_prediction(self, prediction: Prediction) -> None:
        if self._rows is not None:
            self._rows.write(prediction)
        else:
            self._printer.write(format_row(prediction, self._format))
        if self._embeddings is not None and prediction.features is not None:
            self._embeddings.add(prediction.source, prediction.features)

    def _draw(self, numbered: tuple[int, Prediction]) -> Prediction:
        number, prediction = numbered
        assert self._image_folder is not None
        path = drawing.save_labeled(prediction, self._image_folder, number=number)
        if path is None and prediction.error is None:
            say(
                f"Note: {prediction.source} was moved, deleted or damaged after its prediction, so "
                f"{self._image_folder} has no image of it"
            )
        return prediction


def _warn_about_missing_glyphs(classes: tuple[str, ...]) -> None:
    missing = drawing.missing_letters(classes)
    if missing:
        say(
            f"Note: no installed font has {' '.join(missing[:20])}. These letters are drawn as "
            "their code points. Install a font that covers them (for Chinese, Japanese and Korean: "
            "apt install fonts-noto-cjk)"
        )
