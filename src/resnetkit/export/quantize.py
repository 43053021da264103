"""Quantize an exported file to int8 with NNCF, and compare it with fp32.

It is quantized per channel, and calibrated on training images of every class. See
Jacob et al., Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
Inference, arXiv:1712.05877.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from ..data.folder import Split
from ..errors import ArtefactError, RecipeError
from ..evaluation.selection import read_dataset_for, select_split
from ..models.weights.modelfile import Header
from ..progress import say
from ..randomness import permutation
from ..report.compare import Duel
from ..text import pluralize
from .artefact import (
    GOLDEN,
    MANIFEST,
    Artefact,
    GoldenImage,
    Manifest,
    golden_to_json,
    read_artefact,
)
from .bench import measure_exported
from .evaluate import evaluate_exported
from .preparation import prepare
from .sessions import start
from .verify import Report, verify

IMAGES = 300
"""Number of images to calibrate on; more if there are more classes."""


MAX_FALL = 0.003
"""Largest drop in accuracy that is accepted, provided that it is also not significant."""

SIGNIFICANT = 0.05

MARGIN = 1.5
"""The tolerance for golden images is this many times the largest difference that was measured."""

FLOOR = 0.02
"""The tolerance is at least this: OpenVINO computes 8-bit layers in only one way, so no difference
can be measured."""


@dataclass(frozen=True)
class Comparison:
    """An 8-bit file and the fp32 file it was quantized from, compared on the same images.

    Args:
        split: the split of the images.
        images: the number of images.
        before: the accuracy in fp32, in [0, 1].
        after: the accuracy in 8 bits.
        p_value: the p-value of McNemar's exact test.
        speedup: images per second in 8 bits, as a multiple of the fp32 rate.
    """

    split: str
    images: int
    before: float
    after: float
    p_value: float
    speedup: float

    @property
    def is_worse(self) -> bool:
        """Whether the accuracy drops by more than `MAX_FALL`, or significantly."""
        fall = self.before - self.after
        return fall > MAX_FALL + 1e-12 or (fall > 0 and self.p_value < SIGNIFICANT)

    def __str__(self) -> str:
        return (
            f"accuracy on {self.split} ({self.images:,} images): {self.before:.2%} in fp32, "
            f"{self.after:.2%} in int8 (McNemar's test: p = {self.p_value:.2g}); "
            f"{self.speedup:.2f} times the images per second"
        )


def check_can_quantize(to: str) -> None:
    """Raise unless files for a runtime can be quantized here.

    Raises:
        RecipeError: NNCF is not installed, or the runtime is PyTorch.
    """
    if to == "torch":
        raise RecipeError("--int8 works with --to onnx and --to openvino")
    if find_spec("nncf") is None:
        raise RecipeError('--int8 needs nncf: pip install "resnetkit[int8]"')


def quantize_file(
    file: Path, header: Header, data: str | os.PathLike[str], target: Path
) -> tuple[Report, tuple[str, ...]]:
    """Replace an fp32 file with its 8-bit form, after comparing their accuracies.

    Args:
        file: the fp32 file; it is replaced.
        header: the header of the model file.
        data: photos with known classes.
        target: the final path. A worse file is kept next to it under another name.

    Returns:
        The result of running the file on its golden images, and notes for the user.

    Raises:
        ArtefactError: the 8-bit file is worse.
        DataError: the data has no training images, or none to evaluate on.
    """
    artefact = read_artefact(file)
    dataset = read_dataset_for(header, Path(data))
    training = select_split(dataset, "train", header).samples
    images = calibration_images(training)
    say(f"Calibrating on {pluralize(len(images), 'training image')}.")
    network = quantize(artefact, images)
    small = file.with_name(f"int8{file.suffix}")
    manifest = replace(artefact.manifest, precision="int8")
    _save(small, network, manifest, artefact.golden)
    say("Comparing the accuracies.")
    comparison = compare(file, small, Path(data))
    manifest, golden = _with_own_answers(manifest, artefact.golden, small)
    manifest = replace(manifest, metrics={**manifest.metrics, "int8": asdict(comparison)})
    _save(small, network, manifest, golden)
    report = verify(read_artefact(small))
    if not report.agrees or comparison.is_worse:
        kept = worse_path(target)
        _replace(small, kept)
        reason = str(comparison) if report.agrees else f"its golden images differ:\n{report}"
        raise ArtefactError(
            f"int8 is worse than fp32: {reason}. The file was kept as {kept}. Calibrate on more "
            "images, or use fp32"
        )
    _replace(small, file)
    return report, (str(comparison),)


def worse_path(target: Path) -> Path:
    """Return where to keep an 8-bit file that is worse than its fp32 form."""
    return target.with_name(f"{target.stem}-worse{target.suffix}")


def compare(before: Path, after: Path, data: Path) -> Comparison:
    """Compare two exported files of one model on its test or validation images."""
    first, second = (evaluate_exported(file, data) for file in (before, after))
    labels = first.samples.labels
    right = [found.logits.argmax(1) == labels for found in (first, second)]
    duel = Duel(
        "fp32",
        "int8",
        int((right[0] & ~right[1]).sum()),
        int((right[1] & ~right[0]).sum()),
    )
    speeds = [
        measure_exported(file, [8], 2.0)["throughput"][0]["pictures_per_second"]
        for file in (before, after)
    ]
    return Comparison(
        first.split,
        len(labels),
        first.metrics["accuracy"],
        second.metrics["accuracy"],
        duel.p_value,
        speeds[1] / speeds[0],
    )


def calibration_images(samples: Split, count: int = IMAGES) -> list[Path]:
    """Return a sample with the same number of images from each class, as far as possible.

    The same split always gives the same sample.
    """
    labels = samples.labels
    order = permutation(0, 0, len(labels))
    rank = np.empty(len(labels), np.int64)
    seen: dict[int, int] = {}
    for index in order:
        label = int(labels[index])
        rank[index] = seen[label] = seen.get(label, 0) + 1
    wanted = max(count, len(seen))
    chosen = sorted(order, key=lambda index: rank[index])[:wanted]
    return [samples.path(int(index)) for index in chosen]


def quantize(artefact: Artefact, images: Sequence[Path]) -> Any:
    """Return the network of an exported ONNX or OpenVINO file with 8-bit weights and activations.

    The operations before the network stay in float, because an image already has 256 levels.
    Weights keep one bit in reserve: without VNNI instructions, 8-bit products are summed in 16
    bits, which could overflow.

    Args:
        artefact: the file, in fp32.
        images: the images to calibrate on.
    """
    with _quiet("nncf", "torch.utils.cpp_extension"):  # cpp_extension looks for CUDA
        import nncf

        network = _load(artefact)
        data = nncf.Dataset(list(_inputs(artefact.manifest, images)))
        return nncf.quantize(
            network,
            data,
            subset_size=len(images),
            preset=nncf.QuantizationPreset.MIXED,
            ignored_scope=nncf.IgnoredScope(names=_preparation(artefact, network), validate=False),
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                overflow_fix=nncf.OverflowFix.ENABLE
            ),
        )


@contextmanager
def _quiet(*names: str) -> Iterator[None]:
    """Show only the errors of some loggers; `nncf.set_log_level` would affect other loggers."""
    loggers = [logging.getLogger(name) for name in names]
    before = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def _preparation(artefact: Artefact, network: Any) -> list[str]:
    """Return the names of the operations that compute the network's input."""
    wanted = artefact.manifest.stages["normalized"]
    names: list[str] = []
    if artefact.runtime == "onnx":
        makers = {output: node for node in network.graph.node for output in node.output}
        pending = [makers[wanted]]
        seen = {wanted}
        while pending:
            node = pending.pop()
            names.append(node.name)
            inputs = [name for name in node.input if name in makers and name not in seen]
            seen.update(inputs)
            pending += [makers[name] for name in inputs]
        return names
    ports = (port for node in network.get_ops() for port in node.outputs())
    pending = [next(port.get_node() for port in ports if wanted in port.get_names())]
    while pending:
        node = pending.pop()
        name = node.get_friendly_name()
        if name not in names:
            names.append(name)
            pending += [port.get_source_output().get_node() for port in node.inputs()]
    return names


def _with_own_answers(
    manifest: Manifest, golden: Sequence[GoldenImage], file: Path
) -> tuple[Manifest, list[GoldenImage]]:
    """Return the manifest with the tolerances of an 8-bit file, and golden images with its answers.

    The integer layers are also computed in float, as the file specifies them. Answers
    from another processor may differ by as much as these two sets do.
    """
    artefact = read_artefact(file)
    integer = start(artefact)
    written = start(artefact, optimized=False)
    answers = []
    largest = dict.fromkeys(("logits", "probabilities"), 0.0)
    for image in golden:
        pixels = prepare(manifest, image.file)[None]
        answer = integer(pixels)
        other = written(pixels)
        for name in largest:
            largest[name] = max(largest[name], float(np.abs(answer[name] - other[name]).max()))
        answers.append(answer)
    probability = max(FLOOR, MARGIN * largest["probabilities"])
    deviation = min(float(answer["logits"].std()) for answer in answers)
    share = max(FLOOR, MARGIN * largest["logits"] / max(deviation, 1e-6))
    tolerances = {**manifest.tolerances, "probability": probability, "logit_share": share}
    own = []
    for image, answer in zip(golden, answers, strict=True):
        shares = answer["probabilities"][0]
        best = np.sort(shares)[-2:]
        own.append(
            replace(
                image,
                logits=answer["logits"][0],
                probabilities=shares,
                class_name=manifest.classes[int(shares.argmax())],
                near_tie=len(best) > 1 and bool(best[1] - best[0] < 2 * probability),
            )
        )
    return replace(manifest, tolerances=tolerances), own


def _save(path: Path, network: Any, manifest: Manifest, golden: Sequence[GoldenImage]) -> None:
    if path.suffix == ".onnx":
        import onnx

        del network.metadata_props[:]
        entries = {MANIFEST: manifest.to_json(), GOLDEN: golden_to_json(golden)}
        onnx.helper.set_model_props(network, entries)
        onnx.save(network, path)
        return
    import openvino

    from .writers import set_openvino_entries

    set_openvino_entries(network, manifest, golden)
    openvino.save_model(network, path, compress_to_fp16=False)


def _replace(source: Path, target: Path) -> None:
    """Move a file, together with its tensors if it is an OpenVINO file."""
    for ending in (".bin", source.suffix):
        if source.with_suffix(ending).is_file():
            os.replace(source.with_suffix(ending), target.with_suffix(ending))


def _inputs(manifest: Manifest, images: Sequence[Path]) -> Iterator[dict[str, np.ndarray]]:
    for image in images:
        yield {manifest.entrance: prepare(manifest, image)[None]}


def _load(artefact: Artefact) -> Any:
    if artefact.runtime == "onnx":
        import onnx

        return onnx.load(artefact.path)
    import openvino

    return openvino.Core().read_model(artefact.path)
