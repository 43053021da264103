"""Run an exported file on its golden images, and name the first stage that disagrees."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..data.decode import decode
from ..errors import ArtefactError, ImageError
from ..text import pluralize
from .artefact import STAGES, Artefact, GoldenImage, sample_positions
from .preparation import decode_for, to_crop
from .sessions import Run, start

ORDER = ("decoded", "cropped", "normalized", "logits", "probabilities", "class")
"""The stages, in order of computation."""


@dataclass(frozen=True)
class StageResult:
    """How one stage of all golden images compares with the recorded values.

    Args:
        stage: a name in `ORDER`.
        largest: the largest difference.
        images: the number of golden images that were compared.
        failed: the names of the images that differ by more than the tolerance.
        note: why the stage was not compared, if it was not.
    """

    stage: str
    largest: float
    images: int
    failed: tuple[str, ...]
    note: str = ""


@dataclass(frozen=True)
class Report:
    """The result of `verify`, by stage."""

    path: Path
    runtime: str
    stages: tuple[StageResult, ...]

    @property
    def agrees(self) -> bool:
        """Whether every stage agrees."""
        return not any(result.failed for result in self.stages)

    @property
    def first_failure(self) -> StageResult | None:
        """The first stage that disagrees, in the order of computation."""
        return next((result for result in self.stages if result.failed), None)

    def to_dict(self) -> dict[str, Any]:
        """Return the content of ``resnet verify --format json``."""
        failure = self.first_failure
        return {
            "file": str(self.path),
            "runtime": self.runtime,
            "agrees": self.agrees,
            "first_failure": None if failure is None else failure.stage,
            "stages": [asdict(result) for result in self.stages],
        }

    def __str__(self) -> str:
        lines = [f"{'stage':<15}{'images':>7}{'largest difference':>21}"]
        for result in self.stages:
            verdict = result.note or (
                "differs: " + _few(result.failed) if result.failed else "agrees"
            )
            lines.append(f"{result.stage:<15}{result.images:>7}{result.largest:>21.6g}   {verdict}")
        return "\n".join(lines)


def verify(artefact: Artefact, threads: int | None = None, run: Run | None = None) -> Report:
    """Run the golden images through the file's runtime, and compare each stage.

    Args:
        artefact: the file.
        threads: compute threads for the runtime.
        run: the file's runtime, if it is already running. The stages ``cropped`` and ``normalized``
            are then not compared.

    Raises:
        ArtefactError: the file has no golden images, or its runtime cannot read it.
        RecipeError: the runtime is not installed.
    """
    if not artefact.golden:
        raise ArtefactError(f"{artefact.path} has no golden images to verify it with")
    visible: tuple[str, ...] = ()
    if run is None:
        run, visible = _start(artefact, threads)
    comparison = _Comparison(artefact)
    for golden in artefact.golden:
        comparison.add(golden, run, visible)
    return Report(artefact.path, artefact.runtime, comparison.results(visible))


def _start(artefact: Artefact, threads: int | None) -> tuple[Run, tuple[str, ...]]:
    """Start the runtime with two intermediate stages, if the file exposes them; return both."""
    wanted = STAGES[:2]
    try:
        return start(artefact, wanted, threads), wanted
    except ArtefactError:  # its tensors were renamed, or the file does not run at all
        return start(artefact, (), threads), ()


class _Comparison:
    """Collects the differences for all golden images."""

    def __init__(self, artefact: Artefact) -> None:
        self._path = artefact.path
        self._manifest = artefact.manifest
        self._limits = artefact.manifest.tolerances
        self._largest = dict.fromkeys(ORDER, 0.0)
        self._count = dict.fromkeys(ORDER, 0)
        self._failed: dict[str, list[str]] = {stage: [] for stage in ORDER}

    def add(self, golden: GoldenImage, run: Run, visible: tuple[str, ...]) -> None:
        """Compare the stages for an image."""
        try:
            pixels = decode_for(self._manifest, golden.file)
        except ImageError:
            self._note("decoded", golden, float("inf"), False)
            return
        self._compare_pixels("decoded", golden, *_decoded(pixels, golden))
        is_crop = self._manifest.entrance == "crop"
        inputs = to_crop(pixels, self._manifest.preprocessing) if is_crop else pixels
        values = run(inputs[None])
        if "cropped" in visible:
            crop = self._recorded_crop(golden)
            found = values["cropped"][0].transpose(1, 2, 0)
            self._compare_pixels("cropped", golden, found, crop)
            expected = self._normalize(found)
            difference = _largest(values["normalized"][0].transpose(1, 2, 0), expected)
            self._note("normalized", golden, difference, difference <= self._limits["normalized"])
        logits = values["logits"][0]
        difference = _largest(logits, golden.logits)
        self._note("logits", golden, difference, difference <= self._logit_limit(golden))
        shares = values["probabilities"][0]
        difference = _largest(shares, golden.probabilities)
        consistent = _largest(shares, _softmax(logits)) <= 1e-4
        within = difference <= self._limits["probability"]
        self._note("probabilities", golden, difference, within and consistent)
        if len(shares) == len(self._manifest.classes):
            same = self._manifest.classes[int(shares.argmax())] == golden.class_name
            self._note("class", golden, float(not same), same or golden.near_tie)

    def _recorded_crop(self, golden: GoldenImage) -> np.ndarray:
        try:
            return decode(golden.crop, channels=self._manifest.preprocessing.channels)
        except ImageError as error:
            raise ArtefactError(
                f"{self._path}: the golden image {golden.name!r} is damaged ({error})"
            ) from error

    def results(self, visible: tuple[str, ...]) -> tuple[StageResult, ...]:
        """Return the result of each stage."""
        hidden = [] if visible else list(STAGES[:2])
        return tuple(
            StageResult(
                stage,
                self._largest[stage],
                self._count[stage],
                tuple(self._failed[stage]),
                "the file does not expose it" if stage in hidden else "",
            )
            for stage in ORDER
        )

    def _compare_pixels(
        self, stage: str, golden: GoldenImage, found: np.ndarray, expected: np.ndarray
    ) -> None:
        if found.shape != expected.shape:
            self._note(stage, golden, float("inf"), False)
            return
        levels = np.abs(found.astype(np.float32) - expected.astype(np.float32))
        share = float((levels <= self._limits["levels"]).mean()) if levels.size else 1.0
        largest = float(levels.max(initial=0))
        within = largest <= self._limits["most_levels"] and share >= self._limits["level_share"]
        self._note(stage, golden, largest, within)

    def _note(self, stage: str, golden: GoldenImage, difference: float, agrees: bool) -> None:
        self._count[stage] += 1
        self._largest[stage] = max(self._largest[stage], difference)
        if not agrees:
            self._failed[stage].append(golden.name)

    def _normalize(self, crop: np.ndarray) -> np.ndarray:
        preprocessing = self._manifest.preprocessing
        mean = np.array(preprocessing.mean, np.float32)
        std = np.array(preprocessing.std, np.float32)
        return (crop.astype(np.float32) / 255 - mean) / std

    def _logit_limit(self, golden: GoldenImage) -> float:
        return self._limits["logit_share"] * float(golden.logits.std()) + 1e-3


def _decoded(pixels: np.ndarray, golden: GoldenImage) -> tuple[np.ndarray, np.ndarray]:
    """Return the decoded values to compare; none if the digests are equal."""
    if pixels.shape != golden.shape:
        return np.zeros(0), np.zeros(1)
    if hashlib.sha256(pixels.tobytes()).hexdigest() == golden.sha256:
        return np.zeros(0), np.zeros(0)
    return pixels.reshape(-1)[sample_positions(pixels.size)], golden.sample


def _largest(found: np.ndarray, expected: np.ndarray) -> float:
    if found.shape != expected.shape:
        return float("inf")
    difference = np.abs(found.astype(np.float64) - expected)
    return float(np.nan_to_num(difference, nan=np.inf).max(initial=0))


def _softmax(logits: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):  # damaged weights may give infinite logits
        shares: np.ndarray = np.exp(logits.astype(np.float64) - logits.max())
        shares /= shares.sum()
    return shares


def _few(names: tuple[str, ...]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {pluralize(len(names) - 3, 'other')}"
