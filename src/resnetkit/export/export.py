"""Export a model file to another runtime, with its preprocessing and golden images."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from .. import __version__
from ..data.preprocessing import Preprocessing
from ..errors import ArtefactError, RecipeError
from ..evaluation.evaluate import evaluate
from ..evaluation.selection import read_dataset_for, select_split
from ..models.weights import modelfile
from ..progress import say
from ..runtime import pytorch_defaults
from ..storage import refuse_existing, refuse_unwritable, sha256
from ..text import pluralize
from .artefact import (
    ENTRANCES,
    RUNTIMES,
    Manifest,
    read_artefact,
)
from .evaluate import evaluate_exported
from .golden import choose_photos, drawn_images, photo_images, record
from .quantize import check_can_quantize, quantize_file
from .verify import Report, verify
from .writers import write

TARGETS = {runtime: ending for ending, runtime in RUNTIMES.items()}
_PACKAGES = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("openvino",),
    "torch": (),
}


@dataclass(frozen=True)
class Export:
    """An exported file that agrees with its model.

    Args:
        path: the file.
        report: the result of running it on its golden images.
        notes: remarks for the user.
    """

    path: Path
    report: Report
    notes: tuple[str, ...] = ()


@pytorch_defaults()
def export(
    model_file: str | os.PathLike[str],
    to: str = "onnx",
    out: str | os.PathLike[str] | None = None,
    *,
    entrance: str = "image",
    data: str | os.PathLike[str] | None = None,
    golden: str = "photos",
    int8: str | os.PathLike[str] | None = None,
    license: str | None = None,
) -> Export:
    """Export a model file, and verify the result with its runtime.

    Args:
        model_file: the model file.
        to: ``onnx``, ``openvino`` or ``torch`` (``torch.export``).
        out: the file to write; by default next to the model file, with the same name.
        entrance: ``image`` takes images of any size; ``crop`` takes images that are already resized
            and cropped.
        data: photos with known classes. Some become golden images, and the accuracies of the model
            file and of the exported file are compared on them.
        golden: ``photos`` uses photos from ``data`` and drawn images; ``made``, only drawn images.
        int8: photos with known classes, to calibrate 8-bit weights and activations on the training
            images and compare the accuracy on the test or validation images; see `quantize`.
        license: the license of the weights, for the file's description.

    Raises:
        ModelFileError: the model file is not valid.
        RecipeError: the target is unknown, a library is missing, or the model's preprocessing
            cannot be exported.
        ArtefactError: the exported file does not agree with the model, or the accuracy in 8 bits
            is worse.
        OutputError: the file exists or cannot be written.
    """
    path = Path(model_file)
    modelfile.read_header(path)
    target = _check_target(path, to, out, "" if int8 is None else "-int8")
    if int8 is not None:
        check_can_quantize(to)
    network, header = modelfile.read(path)
    modelfile.check_has_classes(header, path)
    preprocessing = replace(header.preprocessing, decoder="full")
    check_preprocessing(preprocessing, entrance)
    manifest = Manifest(
        entrance=entrance,
        classes=header.classes,
        preprocessing=preprocessing,
        source={
            "sha256": sha256(path),
            "architecture": header.architecture,
            "options": header.options,
        },
        metrics=header.metrics,
        recipe=header.recipe,
        data=header.data,
        calibration=header.calibration,
        license=license,
        versions=_versions(to),
    )
    say("Recording the golden images.")
    photos = _golden_photos(header, data or int8, golden)
    images = record([*drawn_images(), *photo_images(photos)], network, manifest)
    notes: tuple[str, ...] = ()
    with _folder_beside(target) as folder:
        say(f"Exporting to {to}.")
        unproven = folder / target.name
        write(unproven, network, manifest, images)
        say("Verifying it.")
        report = _verified(unproven, path)
        if int8 is not None:
            report, notes = quantize_file(unproven, header, int8, target)
        elif data is not None:
            notes = (_compare_accuracies(path, unproven, data),)
        _move(folder, target)
    return Export(target, replace(report, path=target), notes)


def _verified(unproven: Path, model_file: Path) -> Report:
    """Return the report of a file that agrees with its model.

    Raises:
        ArtefactError: the file does not agree.
    """
    report = verify(read_artefact(unproven))
    if not report.agrees:
        raise ArtefactError(
            f"the exported file does not agree with {model_file}, so it was not kept:\n{report}"
        )
    return report


def _move(folder: Path, target: Path) -> None:
    """Move the finished files into place, the target last."""
    for file in sorted(folder.iterdir(), key=lambda file: file.name == target.name):
        os.replace(file, target.parent / file.name)


def _golden_photos(
    header: modelfile.Header, data: str | os.PathLike[str] | None, golden: str
) -> list[Path]:
    """Return photos for the golden images."""
    if golden not in ("photos", "made"):
        raise RecipeError(f"--golden must be photos or made; got {golden!r}")
    if data is None or golden == "made":
        return []
    samples = select_split(read_dataset_for(header, Path(data)), None, header).samples
    paths = [samples.path(i) for i in range(len(samples))]
    return choose_photos(paths, samples.labels.tolist())


def _compare_accuracies(model_file: Path, exported: Path, data: str | os.PathLike[str]) -> str:
    """Return the accuracies of a model file and of its export as a line of text."""
    say("Comparing the accuracies.")
    own = evaluate(model_file, Path(data))
    other = evaluate_exported(exported, Path(data))
    before, after = own.metrics["accuracy"], other.metrics["accuracy"]
    decoder = modelfile.read_header(model_file).preprocessing.decoder
    changed = int((own.logits.argmax(1).numpy() != other.logits.argmax(1)).sum())
    return (
        f"accuracy on {own.split} ({own.metrics['pictures']:,} images): {before:.2%} as a model "
        f"file (decoder {decoder}), {after:.2%} as exported (decoder full), a difference of "
        f"{100 * (after - before):+.2f} points; {pluralize(changed, 'answer')} changed"
    )


def check_preprocessing(preprocessing: Preprocessing, entrance: str) -> None:
    """Raise unless an exported graph can compute the preprocessing.

    Raises:
        RecipeError: ``entrance`` is unknown, or the graph cannot apply the filter.
    """
    if entrance not in ENTRANCES:
        raise RecipeError(f"--input must be image or crop; got {entrance!r}")
    filter_name = preprocessing.interpolation
    if entrance == "image" and filter_name in ("nearest", "box"):  # rounding picks pixels
        raise RecipeError(
            f"The model resizes with {filter_name}, which cannot be exported. Add --input crop, "
            "and resize the images before you pass them to the exported model"
        )


def _check_target(path: Path, to: str, out: str | os.PathLike[str] | None, suffix: str) -> Path:
    """Return the file to write, after checking that the installed packages can write it."""
    if to not in TARGETS:
        raise RecipeError(f"--to must be {', '.join(TARGETS)}; got {to!r}")
    missing = [package for package in _PACKAGES[to] if find_spec(package) is None]
    if missing:
        raise RecipeError(
            f'Exporting to {to} needs {", ".join(missing)}: pip install "resnetkit[{to}]"'
        )
    default = path.with_name(f"{path.stem}{suffix}{TARGETS[to]}")
    target = default if out is None else Path(out)
    if target.suffix != TARGETS[to]:
        raise RecipeError(f"A file for {to} ends in {TARGETS[to]}; got --out {target}")
    refuse_existing(target)
    refuse_unwritable(target)
    if to == "openvino":
        refuse_existing(target.with_suffix(".bin"))  # where OpenVINO puts the tensors
    return target


def _versions(to: str) -> dict[str, str]:
    packages = ("torch", *_PACKAGES[to], "numpy", "pillow", "simplejpeg")
    return {"resnetkit": __version__, **{name: metadata.version(name) for name in packages}}


@contextmanager
def _folder_beside(target: Path) -> Iterator[Path]:
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
