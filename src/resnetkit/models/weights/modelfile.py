"""Read and write a model as one file, ``model.safetensors``.

The file holds the tensors. One JSON entry in its header, ``resnetkit``, holds the architecture and
its options, the classes, the preprocessing, the measured metrics, the recipe and the digests of the
data. If the model was trained with a validation split, the entry also holds calibration data
(`Calibration`). The same model always gives the same bytes. Nothing in the file can execute.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ...calibration import Calibration
from ...data.preprocessing import STATISTICS, Preprocessing
from ...errors import ModelFileError, OutputError
from ...runtime import pytorch_defaults
from ...storage import atomic, kept_permissions
from ...text import pluralize
from ..skeleton import get_skeleton

FORMAT_VERSION = 2
"""Version 2 allows float16. Other files are written as version 1, which older releases can read."""

MAX_HEADER = 64 * 2**20  # bytes; a larger header is refused without being read
KEY = "resnetkit"

EXPORTED = (".onnx", ".xml", ".pt2")
"""Extensions of files that `resnet export` writes."""


@dataclass(frozen=True)
class Header:
    """Everything in a model file except its tensors.

    Args:
        architecture: a name in the registry.
        options: the keyword arguments for its builder, as JSON values.
        classes: names in the order of the logits.
        preprocessing: how an image becomes the network's input.
        metrics: the metrics measured with these weights. ``cross_validation`` was measured with the
            weights of the folds; see `training.folds`.
        recipe: the recipe the weights were trained with.
        data: ``name`` of the dataset, and ``parts``: ``{split: {"count", "digests"}}``.
        calibration: the calibration data for predicting sets and finding strange images. None for
            weights that were converted, or trained by older versions.
    """

    architecture: str
    options: dict[str, Any]
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    metrics: dict[str, Any] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    calibration: Calibration | None = None

    def to_json(self, version: int = FORMAT_VERSION) -> str:
        """Return the header's JSON entry for a format version; equal headers give equal text."""
        content = {
            "format_version": version,
            "architecture": self.architecture,
            "options": self.options,
            "classes": list(self.classes),
            "preprocessing": self.preprocessing.to_dict(),
            "metrics": self.metrics,
            "recipe": self.recipe,
            "data": self.data,
        }
        if self.calibration is not None:
            content["calibration"] = self.calibration.to_dict()
        text = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        # Class names from file names may hold lone surrogates, which UTF-8 cannot encode.
        # Written as escapes, they survive a round trip through JSON.
        return text.encode("utf-8", "backslashreplace").decode()


def write(path: Path, tensors: dict[str, Tensor], header: Header) -> None:
    """Write a model file, atomically.

    Args:
        path: the file.
        tensors: the network's ``state_dict``, on any device and in any memory layout; tensors may
            share memory. float16 parameters take half the space and are read back as float32.
        header: everything else.

    Raises:
        OutputError: ``path`` cannot be written, or has the extension of an exported file.
    """
    refuse_exported_name(path)
    copies = {name: _copy_contiguous(t.detach().cpu()) for name, t in tensors.items()}
    version = 2 if any(t.dtype == torch.float16 for t in copies.values()) else 1
    with atomic(path) as temporary:
        try:
            with kept_permissions(temporary):
                save_file(copies, temporary, metadata={KEY: header.to_json(version)})
        except SafetensorError as error:  # also raised when the disk is full
            raise OutputError(f"{path} cannot be written ({error})") from error


def refuse_exported_name(path: Path) -> None:
    """Raise if a model file at ``path`` would be taken for an exported one.

    Raises:
        OutputError: ``path`` has one of the extensions in `EXPORTED`.
    """
    if path.suffix in EXPORTED:
        raise OutputError(
            f"{path} would be a model file with the extension of an exported one, which "
            "nothing could read. Name it .safetensors. To export a model file: resnet export MODEL"
        )


def add_metrics(path: Path, metrics: dict[str, Any]) -> None:
    """Add metrics to the header of a model file, atomically; its tensors do not change.

    Raises:
        ModelFileError: for the same reasons as in `read_header`.
        OutputError: for the same reasons as in `write`.
    """
    header = read_header(path)
    write(path, load_file(path), replace(header, metrics={**header.metrics, **metrics}))


def read_header(path: str | Path) -> Header:
    """Return a model file's header without reading its tensors.

    Raises:
        ModelFileError: the file is missing, not a model file, damaged, or from a newer version.
    """
    path = Path(path)
    content = _read_json(path)
    version = content.get("format_version")
    if type(version) is not int or version < 1:  # isinstance would accept True
        raise ModelFileError(f"{path}: its header is damaged (no format_version)")
    if version > FORMAT_VERSION:
        raise ModelFileError(
            f"{path} has format version {version}; this resnetkit reads up to {FORMAT_VERSION}. "
            "Upgrade it: pip install --upgrade resnetkit"
        )
    try:
        options = _get_field(content, "options", kind=dict)
        recipe = _get_field(content, "recipe", kind=dict)
        return Header(
            architecture=_get_field(content, "architecture", kind=str),
            options=options,
            classes=_get_classes(content),
            preprocessing=_get_preprocessing(content, options, recipe=recipe),
            metrics=_get_field(content, "metrics", kind=dict),
            recipe=recipe,
            data=_get_field(content, "data", kind=dict),
            calibration=_get_calibration(content),
        )
    except ModelFileError as error:
        raise ModelFileError(f"{path}: {error}") from None


def check_has_classes(header: Header, path: str | Path) -> None:
    """Raise unless a model has classes to predict.

    Args:
        header: the model's header.
        path: the model's path, for the message.

    Raises:
        ModelFileError: the network has no head.
    """
    if not header.classes:
        raise ModelFileError(
            f"{path} is a network without a head: it turns an image into a vector and does not "
            "predict classes. To write these vectors, run `resnet predict --embeddings FILE`. To "
            "train a head for your classes, run `resnet train DATA --weights MODEL`"
        )


def is_model_file(path: Path) -> bool:
    """Return whether a file has a model file's header; its values are not checked."""
    try:
        _read_json(path)
    except ModelFileError:
        return False
    return True


@pytorch_defaults()
def read(path: str | Path) -> tuple[nn.Module, Header]:
    """Return the network, in eval mode on the CPU in fp32, and its header.

    Raises:
        ModelFileError: for the same reasons as in `read_header`, or because the tensors do not fit
            the architecture.
    """
    path = Path(path)
    header = read_header(path)
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ModelFileError(f"{path} is damaged or cut short ({error})") from error
    tensors = {name: t.float() if t.dtype == torch.float16 else t for name, t in tensors.items()}
    try:
        model = get_skeleton(header.architecture, **header.options)  # allocates nothing
    except (TypeError, ValueError, RuntimeError) as error:
        raise ModelFileError(f"{path}: its architecture cannot be built ({error})") from error
    _check_tensors(path, model, tensors=tensors, header=header)
    # The file's tensors start at multiples of 8 bytes, where some kernels take a different path and
    # round differently. Copies have the alignment of PyTorch's own tensors.
    model.load_state_dict({name: _copy_contiguous(t) for name, t in tensors.items()}, assign=True)
    return model.eval(), header


def _copy_contiguous(tensor: Tensor) -> Tensor:
    return tensor.clone(memory_format=torch.contiguous_format)


def _check_tensors(
    path: Path, model: nn.Module, *, tensors: dict[str, Tensor], header: Header
) -> None:
    """Raise unless names, shapes, dtypes and the number of classes fit, and values are finite."""
    expected = model.state_dict()
    problems = [f"{name} is missing" for name in expected if name not in tensors]
    problems += [f"{name} is unknown" for name in tensors if name not in expected]
    for name, tensor in tensors.items():
        found = (tensor.dtype, tuple(tensor.shape))
        wanted = found
        if name in expected:
            wanted = (expected[name].dtype, tuple(expected[name].shape))
        if found != wanted:
            problems.append(f"{name} is {found[0]} {found[1]}, not {wanted[0]} {wanted[1]}")
        elif not bool(torch.isfinite(tensor).all()):
            problems.append(f"{name} has infinite or NaN values")
    logits = header.options.get("num_classes")
    if logits != len(header.classes):
        problems.append(f"{pluralize(len(header.classes), 'class name')} for {logits} logits")
    if header.calibration is not None and not problems:
        classes, features = expected["fc.weight"].shape if logits else (0, 0)
        problems += header.calibration.problems(classes, features)
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ModelFileError(
            f"{path} does not fit its architecture {header.architecture}: "
            f"{'; '.join(problems[:3])}{more}"
        )


def _read_json(path: Path) -> dict[str, Any]:
    """Return the header's JSON entry, without checking its values."""
    if not path.is_file():
        problem = "is a folder" if path.is_dir() else "does not exist"
        raise ModelFileError(f"{path} {problem}; expected a model file (model.safetensors)")
    not_a_model = f"{path} is not a resnetkit model file"
    if path.suffix in EXPORTED:
        raise ModelFileError(
            f"{not_a_model}, but has the extension of an exported file. `resnet predict`, "
            "`evaluate`, `bench` and `verify` accept it, as does resnetkit.ExportedPredictor in "
            "Python; everything else needs the model file"
        )
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if start[:2] in (b"PK", b"\x80\x02"):
            raise ModelFileError(
                f"{not_a_model}: it is a PyTorch file (.pth). To convert it: "
                f"resnet convert {path} model.safetensors"
            )
        if length > MAX_HEADER:
            raise ModelFileError(
                f"{not_a_model}: it does not begin like a safetensors file (its header would have "
                f"{length:,} bytes). Pass the model.safetensors that training wrote"
            )
        if length == 0 or 8 + length > size:
            raise ModelFileError(f"{not_a_model}, or is cut short ({size:,} bytes)")
        header = file.read(length)
    try:
        metadata = json.loads(header).get("__metadata__", {})
        content = json.loads(metadata[KEY])
    except KeyError:
        raise ModelFileError(
            f"{not_a_model}: it is a safetensors file without the entry {KEY!r}"
        ) from None
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise ModelFileError(f"{not_a_model}, or its header is damaged ({error})") from None
    if not isinstance(content, dict):
        raise ModelFileError(f"{not_a_model}: its header is damaged")
    return content


def _get_preprocessing(
    content: dict[str, Any], options: dict[str, Any], *, recipe: dict[str, Any]
) -> Preprocessing:
    """Return the preprocessing, with as many channels as the network's input.

    Files from older versions get the values that those versions used.
    """
    preprocessing = Preprocessing.from_dict(_get_field(content, "preprocessing", kind=dict))
    channels = options.get("in_channels", 3)
    if channels in range(1, 1000) and channels not in STATISTICS:
        raise ModelFileError(
            f"its network takes {channels!r} channels, but images have 1, 3 or 4. Use it from "
            "Python, with resnetkit.models and inputs you make yourself"
        )
    if preprocessing.channels == 3 and channels in (1, 4):  # from a version for color images only
        mean, std = STATISTICS[channels]
        preprocessing = replace(preprocessing, mean=mean, std=std)
    # Any other value of in_channels is not valid for a network, and building it fails.
    if preprocessing.channels != channels and channels in list(STATISTICS):
        raise ModelFileError(
            f"its header is damaged: its images have {preprocessing.channels} channels, but its "
            f"network takes {channels}"
        )
    if recipe and "value_range" not in recipe:  # from a version that used each image's own range
        preprocessing = replace(preprocessing, value_range="image")
    return preprocessing


def _get_classes(content: dict[str, Any]) -> tuple[str, ...]:
    classes = _get_field(content, "classes", kind=list)
    if not all(isinstance(name, str) for name in classes):
        raise ModelFileError("its header is damaged (a class name is not text)")
    return tuple(classes)


def _get_calibration(content: dict[str, Any]) -> Calibration | None:
    """Return the entry ``calibration``; None if there is none."""
    if "calibration" not in content:
        return None
    return Calibration.from_dict(content["calibration"])


def _get_field(content: dict[str, Any], key: str, *, kind: type) -> Any:
    value = content.get(key)
    if not isinstance(value, kind):
        raise ModelFileError(f"its header is damaged ({key} is {type(value).__name__})")
    return value
