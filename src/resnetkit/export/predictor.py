"""Classify images with an exported file, without PyTorch."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import count, islice, tee
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from ..data.remote import read_ahead
from ..errors import ImageError
from ..inference.images import ImageLike, read_pixels, source_name
from ..inference.prediction import BATCH_SIZE, NOT_FINITE, Prediction, Predictions, classify
from ..inference.uncertainty import Uncertainty, resolve_uncertainty
from ..prefetch import prefetch_map
from ..processes import default_workers
from . import sessions
from .artefact import Artefact, read_artefact
from .preparation import prepare

_runtime_lock = Lock()  # threads that share a predictor start each runtime once

MAX_BATCH_PIXELS = 4_000_000
"""Images with more pixels than this in total do not run in one batch, so that memory is bounded."""


class ExportedPredictor:
    """An exported file that classifies images: the same calls and answers as `Predictor`.

    Several threads may share a predictor.

    Args:
        file: a file written by `resnet export`.
        note: called with a line of text when the runtime starts.
        threads: compute threads; by default one per available CPU.

    Attributes:
        path: the file.
        artefact: the file's description of itself, and its golden images.
        classes: the class names, in the order of the logits.
        digest: the first 12 hex digits of the SHA-256 of the model file that was exported.

    Raises:
        ArtefactError: ``file`` is not a valid exported file.
    """

    def __init__(
        self,
        file: str | os.PathLike[str],
        note: Callable[[str], None] = lambda text: None,
        threads: int | None = None,
    ) -> None:
        self.path = Path(file)
        self.artefact: Artefact = read_artefact(self.path)
        self.manifest = self.artefact.manifest
        self.classes = self.manifest.classes
        self.digest = self.manifest.digest
        self._note = note
        self._threads = threads
        self._runs: dict[tuple[str, ...], sessions.Run] = {}

    def __call__(
        self,
        images: ImageLike | Iterable[ImageLike],
        top_k: int = 5,
        threshold: float = 0.0,
        *,
        coverage: float | None = None,
        false_alarms: float | None = None,
    ) -> Prediction | Predictions:
        """Classify one image or several; the arguments are the same as in `Predictor.__call__`.

        Raises:
            ImageError: a single image cannot be read.
            RecipeError, ModelFileError: the model cannot promise the coverage or the share of false
                alarms.
        """
        stream = partial(
            self.stream,
            top_k=top_k,
            threshold=threshold,
            coverage=coverage,
            false_alarms=false_alarms,
        )
        return classify(stream, images)

    def stream(
        self,
        images: Iterable[ImageLike],
        top_k: int = 5,
        batch_size: int = BATCH_SIZE,
        workers: int | None = None,
        *,
        threshold: float = 0.0,
        coverage: float | None = None,
        false_alarms: float | None = None,
        features: bool = False,
        keep_images: bool = False,
        first: int = 0,
        total: int | None = None,
    ) -> Iterator[Prediction]:
        """Classify any number of images in constant memory; yield the answers in order.

        The arguments are the same as in `Predictor.stream`.
        """
        uncertainty = self.resolve_uncertainty(coverage, false_alarms)
        stages = ("features",) if features or uncertainty is not None else ()
        shown, computed = tee(islice(images, first, None))
        answers = self.outputs(computed, workers, batch_size=batch_size, stages=stages)
        fields: dict[str, Any] = {"model": self.digest, "threshold": threshold}
        fields |= {"coverage": coverage, "false_alarms": false_alarms}
        for image, answer in zip(shown, answers, strict=True):
            kept = image if keep_images or isinstance(image, str | os.PathLike) else None
            source = source_name(image)
            if isinstance(answer, ImageError):
                yield Prediction(source, (), error=str(answer), image=kept, **fields)
                continue
            if not np.isfinite(answer["probabilities"]).all():
                error = f"{source}: {NOT_FINITE}"
                yield Prediction(source, (), error=error, image=kept, **fields)
                continue
            requested: dict[str, Any] = {}
            if uncertainty is not None:
                logits, vectors = answer["logits"][None], answer["features"][None]
                (requested,) = uncertainty.answers(logits, vectors)
            vector = answer["features"] if features else None
            top = self._rank(answer, top_k)
            yield Prediction(source, top, features=vector, image=kept, **fields, **requested)

    def resolve_uncertainty(
        self, coverage: float | None, false_alarms: float | None
    ) -> Uncertainty | None:
        """Check and resolve a request before any image is read; see `__call__`."""
        return resolve_uncertainty(
            self.classes,
            self.manifest.calibration,
            self.path,
            coverage=coverage,
            false_alarms=false_alarms,
            all_trained=self.manifest.recipe.get("val_split") == 0,
        )

    def outputs(
        self,
        images: Iterable[ImageLike],
        workers: int | None = None,
        *,
        batch_size: int = BATCH_SIZE,
        stages: tuple[str, ...] = (),
    ) -> Iterator[dict[str, np.ndarray] | ImageError]:
        """Yield the outputs for each image, or the error if it cannot be read, in order.

        The next batches are decoded while the runtime computes.

        Args:
            images: the images.
            workers: threads that decode images; by default one per core.
            batch_size: images per batch.
            stages: intermediate values to return too; see `artefact.STAGES`.
        """
        workers = default_workers() if workers is None else workers
        source = iter(images)
        batches = iter(lambda: list(islice(source, batch_size)), [])
        for inputs in prefetch_map(self._prepare_batch, read_ahead(batches, iter), workers):
            readable = [item for item in inputs if isinstance(item, np.ndarray)]
            values = self.run(readable, stages)
            for item in inputs:
                yield item if isinstance(item, ImageError) else next(values)

    def prepare(self, image: ImageLike) -> np.ndarray:
        """Return an image as `run` expects it: ``(H, W, C)`` uint8.

        Raises:
            ImageError: the image cannot be read.
        """
        return read_pixels(image, lambda source: prepare(self.manifest, source))

    def run(
        self, inputs: Sequence[np.ndarray], stages: tuple[str, ...] = ()
    ) -> Iterator[dict[str, np.ndarray]]:
        """Run prepared images; yield the outputs of each, in order.

        Consecutive images of the same size run together, up to `MAX_BATCH_PIXELS`.

        Args:
            inputs: results of `prepare`.
            stages: intermediate values to return too; see `artefact.STAGES`.
        """
        start = 0
        while start < len(inputs):
            height, width = inputs[start].shape[:2]
            most = max(1, MAX_BATCH_PIXELS // (height * width))
            same = (i for i in count(start) if i == len(inputs) or not _alike(inputs, start, i))
            end = min(next(same), start + most)
            values = self.runtime(stages)(np.stack(inputs[start:end]))
            for row in range(end - start):
                yield {name: value[row] for name, value in values.items()}
            start = end

    def runtime(self, stages: tuple[str, ...] = ()) -> sessions.Run:
        """Return the runtime of the file, which starts on the first call.

        Args:
            stages: intermediate values to return too; see `artefact.STAGES`.
        """
        with _runtime_lock:
            if stages not in self._runs:
                self._runs[stages] = sessions.start(self.artefact, stages, self._threads)
                self._note(f"runtime {self.artefact.runtime}, {self.manifest.precision}")
            return self._runs[stages]

    def _prepare_batch(self, images: Sequence[ImageLike]) -> list[np.ndarray | ImageError]:
        return [self._prepare_image(image) for image in images]

    def _prepare_image(self, image: ImageLike) -> np.ndarray | ImageError:
        try:
            return self.prepare(image)
        except ImageError as error:
            return error

    def _rank(self, answer: dict[str, np.ndarray], top_k: int) -> tuple[tuple[str, float], ...]:
        shares = answer["probabilities"]
        best = np.argsort(-shares, kind="stable")[:top_k]
        return tuple((self.classes[i], float(shares[i])) for i in best)


def _alike(inputs: Sequence[np.ndarray], a: int, b: int) -> bool:
    return inputs[a].shape == inputs[b].shape
