"""Where the answers of ``resnet predict`` go: rows, pictures, embeddings; and the bar meanwhile."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from ..errors import RecipeError
from ..inference import drawing
from ..inference.embeddings import EmbeddingsFile
from ..inference.images import ImageLike
from ..inference.predictor import Prediction, Predictor
from ..inference.rows import RowsFile, format_header, format_row
from ..prefetch import prefetch_map
from ..progress import Advance, bar, say, shown, shown_json
from ..runtime import default_workers
from ..storage import make_output, refuse_used
from .sources import count, expand


class Sinks:
    """Everything that one run writes; what is refused is refused before the first picture."""

    def __init__(
        self,
        predictor: Predictor,
        format: str | None,
        out: Path | None,
        resume: bool,
        images: Path | None,
        embeddings: Path | None,
    ) -> None:
        if resume and out is None:
            raise RecipeError("--resume goes on with a file: name it with --out FILE")
        if resume and embeddings is not None:
            raise RecipeError("--embeddings holds all pictures or none: leave --resume away")
        if out is not None and format == "table":
            raise RecipeError("--out takes --format jsonl or csv; a table is for the terminal")
        screen = sys.stdout.isatty()
        of_file = "csv" if out is not None and out.suffix.lower() == ".csv" else "jsonl"
        self._format = format or ("table" if out is None and screen else of_file)
        self._to_screen = screen
        self._shown = out is None and screen  # rows on the terminal tell the progress
        self._images, self._stack = images, ExitStack()
        self.total: int | None = None
        self._rows: RowsFile | None = None
        self._embeddings: EmbeddingsFile | None = None
        if images is not None and not resume:
            refuse_used(images)
        if embeddings is not None:
            self._embeddings = self._stack.enter_context(EmbeddingsFile(embeddings))
        if out is not None:
            self._rows = self._stack.enter_context(
                RowsFile(out, self._format, predictor.digest, resume)
            )
        if images is not None:
            if not images.exists():
                make_output(images)
            self._say_missing(predictor.classes)
        self.first = self._rows.first if self._rows else 0
        self._handle = sys.stdout  # a live bar puts something else there

    def __enter__(self) -> Sinks:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, value, trace)

    def sources(self, arguments: Sequence[str]) -> Iterable[ImageLike]:
        """The pictures that the arguments name; those that have rows are compared with them."""
        self.total = count(arguments)
        found = expand(arguments, say)
        return self._rows.check_sources(found) if self._rows else found

    def write(self, answers: Iterator[Prediction]) -> int:
        """Write answers as they come; returns how many pictures could not be read."""
        if self._images is not None:
            workers = max(1, default_workers() // 2)
            answers = prefetch_map(self._draw, enumerate(answers, self.first), workers)
        if self._rows is None:
            self._handle.write(format_header(self._format))
        failed = self._rows.failed if self._rows else 0
        with ExitStack() as stack:
            advance: Advance = lambda text: None  # noqa: E731
            if not self._shown:
                advance = stack.enter_context(bar("predicting", self.total, self.first))
            for answer in answers:
                failed += answer.error is not None
                self._write_one(answer)
                advance("")
        return failed

    def _write_one(self, answer: Prediction) -> None:
        if self._rows is not None:
            self._rows.write(answer)
        else:
            text = format_row(answer, self._format)
            if self._to_screen:  # names may hold what a terminal takes for commands
                text = shown_json(text) if self._format == "jsonl" else shown(text)
            self._handle.write(text)
            self._handle.flush()
        if self._embeddings is not None and answer.features is not None:
            self._embeddings.add(answer.source, answer.features)

    def _draw(self, numbered: tuple[int, Prediction]) -> Prediction:
        number, answer = numbered
        assert self._images is not None
        drawing.save_labelled(answer, self._images, number)
        return answer

    def _say_missing(self, classes: tuple[str, ...]) -> None:
        missing = drawing.missing_letters(classes)
        if missing:
            say(
                f"Note: no installed font has {' '.join(missing[:20])}: such letters are drawn as "
                "their numbers. Install a font that has them (for Chinese, Japanese and Korean: "
                "apt install fonts-noto-cjk)"
            )
