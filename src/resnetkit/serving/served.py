"""The two kinds of model that the server accepts, behind one interface.

Only `ModelFile` needs PyTorch, and imports it inside its methods.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ..errors import ArtefactError, RecipeError, ResnetkitError
from ..export.artefact import is_artefact
from ..export.predictor import ExportedPredictor
from ..inference.uncertainty import Uncertainty
from ..limits import cores
from ..storage import sha256

if TYPE_CHECKING:
    from ..inference.predictor import Predictor

Compute = Callable[[Sequence[Any]], Iterator[dict[str, np.ndarray]]]
"""Prepared images -> for each, ``logits`` and ``probabilities``, ``(classes,)`` float32. If the
model has calibration data, also ``features`` ``(C,)``."""


class Served(Protocol):
    """A model as the server sees it."""

    classes: tuple[str, ...]
    digest: str
    can_explain: bool

    def describe(self) -> dict[str, Any]:
        """Return the file's metadata."""
        ...

    def resolve_uncertainty(
        self, coverage: float | None, false_alarms: float | None
    ) -> Uncertainty | None:
        """Resolve ``coverage`` and ``false_alarms`` for this model; None if neither is given."""
        ...

    def prepare(self, contents: bytes) -> Any:
        """Decode an image into the model's input. Several threads may call it at once.

        Raises:
            ImageError: the image cannot be read.
        """
        ...

    def example(self) -> Any:
        """Return an input to warm up the engine."""
        ...

    def input_size(self, inputs: Any) -> tuple[int, int]:
        """Return the height and width of an input."""
        ...

    def verify(self) -> str:
        """Check the model before it serves, and return what was checked.

        Raises:
            ArtefactError: the model's answers are not the expected ones.
        """
        ...

    def start(self) -> Compute:
        """Start a new engine."""
        ...

    def show(self, contents: bytes) -> np.ndarray:
        """Decode an image for `explain`; only if ``can_explain``. Thread-safe, like `prepare`.

        Raises:
            ImageError: the image cannot be read.
        """
        ...

    def explain(self, inputs: Any, shown: np.ndarray, target: int) -> bytes:
        """Return a Grad-CAM overlay as a PNG; only if ``can_explain``.

        Args:
            inputs: the result of `prepare`.
            shown: the result of `show`.
            target: the index of the class to explain.
        """
        ...


def open_served(path: Path, *, device: str = "auto", engine: str = "auto") -> Served:
    """Open a model file or an exported file.

    Args:
        path: the file. For an exported file, PyTorch is not imported unless it is a ``.pt2``.
        device: for a model file, the device that runs it.
        engine: for a model file, the engine that runs it.

    Raises:
        ModelFileError: the file is not a valid model.
        RecipeError: the device or engine is not available, or does not apply.
    """
    if not is_artefact(path):
        return ModelFile(path, device, engine)
    given = {"--device": device, "--engine": engine}
    for name, value in given.items():
        if value != "auto":
            raise RecipeError(
                f"{name} cannot be used with an exported file ({path}). Remove it, or use the "
                "model file"
            )
    return ExportedFile(path)


class ExportedFile:
    """An exported file, run by its own runtime."""

    can_explain = False

    def __init__(self, path: Path) -> None:
        self._predictor = ExportedPredictor(path)
        self._sha256 = sha256(path)
        self._is_verified = False  # the runtime is verified but not yet serving
        self.classes = self._predictor.classes
        self.digest = self._predictor.digest

    def describe(self) -> dict[str, Any]:
        """Return the file's metadata, without its recipe and calibration data."""
        manifest = self._predictor.manifest
        return {
            "file": self._predictor.path.name,
            "model": self.digest,
            "runtime": self._predictor.artefact.runtime,
            "precision": manifest.precision,
            "architecture": manifest.source.get("architecture"),
            "options": manifest.source.get("options", {}),
            "classes": len(self.classes),
            "preprocessing": manifest.preprocessing.to_dict(),
            "metrics": manifest.metrics,
            "coverage": manifest.calibration is not None,
            "false_alarms": manifest.calibration is not None,
            "explain": self.can_explain,
            "license": manifest.license,
            "versions": manifest.versions,
        }

    def resolve_uncertainty(
        self, coverage: float | None, false_alarms: float | None
    ) -> Uncertainty | None:
        """Resolve ``coverage`` and ``false_alarms`` for this model; None if neither is given."""
        return _resolve_uncertainty(self._predictor, coverage, false_alarms)

    def prepare(self, contents: bytes) -> np.ndarray:
        """Return ``(H, W, C)`` uint8."""
        return self._predictor.prepare(contents)

    def example(self) -> np.ndarray:
        """Return a gray image of the usual size of an input."""
        manifest = self._predictor.manifest
        sizes = manifest.preprocessing
        side = sizes.crop_size if manifest.entrance == "crop" else sizes.resize_size
        return np.full((side, side, manifest.input_channels), 128, np.uint8)

    def input_size(self, inputs: np.ndarray) -> tuple[int, int]:
        """Return the height and width of an input."""
        return inputs.shape[0], inputs.shape[1]

    def verify(self) -> str:
        """Classify the golden images, and raise if any answer differs from the recorded one."""
        from ..export.verify import verify

        artefact = self._predictor.artefact
        if not artefact.golden:
            return "the file has no golden images"
        failure = verify(artefact, run=self._predictor.runtime(self._stages)).first_failure
        if failure is not None:
            failure = verify(artefact).first_failure or failure  # compare inside the network too
            raise ArtefactError(
                f"{artefact.path} does not give the recorded answers for its golden images: the "
                f"stage {failure.stage!r} differs. `resnet verify {artefact.path}` shows the "
                "details; export the model again"
            )
        self._is_verified = True
        return f"{len(artefact.golden)} golden images agree"

    def start(self) -> Compute:
        """Start the file's runtime: the verified one, or a new one after a crash.

        Raises:
            ArtefactError: the file has changed since it was opened.
        """
        if sha256(self._predictor.path) != self._sha256:
            raise ArtefactError(f"{self._predictor.path} has changed. Restart the server")
        if not self._is_verified:
            self._predictor = ExportedPredictor(self._predictor.path)
        self._is_verified = False
        return partial(self._predictor.run, stages=self._stages)

    @property
    def _stages(self) -> tuple[str, ...]:
        return ("features",) if self._predictor.manifest.calibration is not None else ()

    def show(self, contents: bytes) -> np.ndarray:
        """Refuse, as `explain` does."""
        raise NotImplementedError

    def explain(self, inputs: np.ndarray, shown: np.ndarray, target: int) -> bytes:
        """Refuse: a runtime returns no gradients."""
        raise NotImplementedError


class ModelFile:
    """A model file, run by PyTorch, OpenVINO or ONNX Runtime in fp32.

    In bf16, an image's answer could depend on the other images in its batch.
    """

    can_explain = True

    def __init__(self, path: Path, device: str, engine: str) -> None:
        import torch

        from ..inference.predictor import Predictor
        from ..models.weights import modelfile

        if torch.get_num_threads() > cores():  # PyTorch does not see a container's CPU quota
            torch.set_num_threads(cores())
        self._predictor: Predictor = Predictor(path, device, engine=engine, precision="fp32")
        self._next_engine = engine
        modelfile.check_has_classes(self._predictor.header, path)
        self.classes = self._predictor.classes
        self.digest = self._predictor.digest

    def describe(self) -> dict[str, Any]:
        """Return the file's metadata, without its recipe and calibration data."""
        header = self._predictor.header
        return {
            "file": self._predictor.path.name,
            "model": self.digest,
            "runtime": "torch",
            "precision": "fp32",
            "architecture": header.architecture,
            "options": header.options,
            "classes": len(self.classes),
            "preprocessing": header.preprocessing.to_dict(),
            "metrics": header.metrics,
            "coverage": header.calibration is not None,
            "false_alarms": header.calibration is not None,
            "explain": self.can_explain,
            "license": None,
            "versions": {},
        }

    def resolve_uncertainty(
        self, coverage: float | None, false_alarms: float | None
    ) -> Uncertainty | None:
        """Resolve ``coverage`` and ``false_alarms`` for this model; None if neither is given."""
        return _resolve_uncertainty(self._predictor, coverage, false_alarms)

    def prepare(self, contents: bytes) -> Any:
        """Return a tensor ``(C, S, S)`` uint8."""
        return self._predictor.prepare(contents)

    def example(self) -> Any:
        """Return a gray image with the size of the network's input."""
        import torch

        sizes = self._predictor.preprocessing
        side = sizes.crop_size
        return torch.full((sizes.channels, side, side), 128, dtype=torch.uint8)

    def input_size(self, inputs: Any) -> tuple[int, int]:
        """Return the height and width of an input."""
        return inputs.shape[1], inputs.shape[2]

    def verify(self) -> str:
        """Report that there is nothing to check: reading the file already checked it."""
        return "a model file has no golden images"

    def start(self) -> Compute:
        """Start a new engine for the network that is already in memory.

        After a crash, the new engine is ``eager``, which starts at once: exporting the network for
        another runtime can take 10 seconds.
        """
        import matplotlib  # noqa: F401  imported now, not during the first explanation

        self._predictor = self._predictor.with_engine(self._next_engine, "fp32")
        self._next_engine = "eager"
        return self._predictor.run

    def show(self, contents: bytes) -> np.ndarray:
        """Return the crop that the network sees, ``(V, V, 3)`` uint8."""
        from ..evaluation.explain import shown_crop

        return shown_crop(contents, self._predictor.preprocessing)

    def explain(self, inputs: Any, shown: np.ndarray, target: int) -> bytes:
        """Return the crop that the network sees, overlaid with its Grad-CAM map, as a PNG."""
        from PIL import Image

        from ..evaluation.explain import heat_map
        from ..report.thumbnails import overlay

        predictor = self._predictor
        heat = heat_map(predictor.model, predictor.preprocessing, inputs, target, len(shown))
        buffer = io.BytesIO()
        Image.fromarray(overlay(shown, heat)).save(buffer, "PNG")
        return buffer.getvalue()


def _resolve_uncertainty(
    predictor: Predictor | ExportedPredictor, coverage: float | None, false_alarms: float | None
) -> Uncertainty | None:
    """Resolve ``coverage`` and ``false_alarms``; errors do not reveal the model file's folder."""
    try:
        return predictor.resolve_uncertainty(coverage, false_alarms)
    except ResnetkitError as error:
        raise type(error)(str(error).replace(str(predictor.path), predictor.path.name)) from error
