"""Idea 1: a model is one file.

``model.safetensors`` holds the tensors, and in its header one JSON entry, ``resnetkit``, with the
architecture and its options, the classes, the preprocessing, the measured metrics, the recipe and
the digests of the data. The same model gives the same bytes. Nothing in it can execute.
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

from ...data.transforms import STATISTICS, Preprocessing
from ...errors import ModelFileError, OutputError
from ...runtime import pytorch_defaults
from ...storage import atomic
from ..registry import get_skeleton

FORMAT_VERSION = 1
MAX_HEADER = 64 * 2**20  # bytes; a header that claims more is refused unread
KEY = "resnetkit"


@dataclass(frozen=True)
class Header:
    """What a model file knows beside its tensors.

    Args:
        architecture: a name in the registry.
        options: what its builder was called with; JSON values.
        classes: names of the logits, in order.
        preprocessing: how a picture becomes the input.
        metrics: what was measured with these weights.
        recipe: what they were trained with.
        data: name of the data set, and ``{part: {"count", "digests"}}`` of the parts it saw.
    """

    architecture: str
    options: dict[str, Any]
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    metrics: dict[str, Any] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        content = {
            "format_version": FORMAT_VERSION,
            "architecture": self.architecture,
            "options": self.options,
            "classes": list(self.classes),
            "preprocessing": self.preprocessing.to_dict(),
            "metrics": self.metrics,
            "recipe": self.recipe,
            "data": self.data,
        }
        text = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        # A name that is no text comes back from its escape.
        return text.encode("utf-8", "backslashreplace").decode()


def write(path: Path, tensors: dict[str, Tensor], header: Header) -> None:
    """Write a model file, atomically.

    Args:
        tensors: the network's ``state_dict``; memory layout and device do not matter, nor whether
            two names share their memory.

    Raises:
        OutputError: there is no writing to ``path``.
    """
    plain = {name: _own(tensor.detach().cpu()) for name, tensor in tensors.items()}
    with atomic(path) as temporary:
        try:
            save_file(plain, temporary, metadata={KEY: header.to_json()})
        except SafetensorError as error:  # its word for a full disk, too
            raise OutputError(f"{path} cannot be written ({error})") from error


def read_header(path: str | Path) -> Header:
    """What a model file says of itself; its tensors are not read.

    Raises:
        ModelFileError: no such file, no model file, a damaged one, or one of a newer version.
    """
    path = Path(path)
    content = _read_json(path)
    version = content.get("format_version")
    if type(version) is not int or version < 1:  # True is an int, too
        raise ModelFileError(f"{path}: its header has no format_version; it is damaged")
    if version > FORMAT_VERSION:
        raise ModelFileError(
            f"{path} has format version {version}; this resnetkit reads up to {FORMAT_VERSION}. "
            "Upgrade it: pip install --upgrade resnetkit"
        )
    try:
        options, recipe = _typed(content, "options", dict), _typed(content, "recipe", dict)
        return Header(
            architecture=_typed(content, "architecture", str),
            options=options,
            classes=_names(content),
            preprocessing=_preprocessing(content, options, recipe),
            metrics=_typed(content, "metrics", dict),
            recipe=recipe,
            data=_typed(content, "data", dict),
        )
    except ModelFileError as error:
        raise ModelFileError(f"{path}: {error}") from None


def check_has_classes(header: Header, path: str | Path) -> None:
    """Make sure that a model names classes.

    Raises:
        ModelFileError: it has no head.
    """
    if not header.classes:
        raise ModelFileError(
            f"{path} is a network without a head: it turns an image into a vector, and names no "
            "class. `resnet predict --embeddings FILE` writes these vectors; `resnet train DATA "
            "--weights MODEL` trains a head for your classes"
        )


def is_model_file(path: Path) -> bool:
    """Whether a file is a model file, of any version, damaged or not."""
    try:
        _read_json(path)
    except ModelFileError:
        return False
    return True


@pytorch_defaults()
def read(path: str | Path) -> tuple[nn.Module, Header]:
    """The network in eval mode, on the CPU, in fp32, and its header.

    Raises:
        ModelFileError: as `read_header`, and where tensors are missing or have other shapes than
            the architecture.
    """
    path = Path(path)
    header = read_header(path)
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ModelFileError(f"{path} is damaged or cut short ({error})") from error
    try:
        model = get_skeleton(header.architecture, **header.options)  # allocates nothing
    except (TypeError, ValueError, RuntimeError) as error:
        raise ModelFileError(f"{path}: its architecture cannot be built ({error})") from error
    _check_tensors(path, model, tensors, header)
    # The file's tensors begin at any multiple of 8 bytes, where some kernels take another path and
    # end in other last bits. A copy begins where PyTorch's own tensors do.
    model.load_state_dict({name: _own(t) for name, t in tensors.items()}, assign=True)
    return model.eval(), header


def _own(tensor: Tensor) -> Tensor:
    return tensor.clone(memory_format=torch.contiguous_format)


def _check_tensors(
    path: Path, model: nn.Module, tensors: dict[str, Tensor], header: Header
) -> None:
    expected = model.state_dict()
    problems = [f"{name} is missing" for name in expected if name not in tensors]
    problems += [f"{name} is unknown" for name in tensors if name not in expected]
    for name, tensor in tensors.items():
        shape = tuple(tensor.shape)
        if name in expected and (shape, tensor.dtype) != (
            tuple(expected[name].shape),
            expected[name].dtype,
        ):
            problems.append(f"{name} is {tensor.dtype} {shape}, not {tuple(expected[name].shape)}")
        elif not bool(torch.isfinite(tensor).all()):
            problems.append(f"{name} has numbers that are infinite or none")
    logits = header.options.get("num_classes")
    if logits != len(header.classes):
        problems.append(f"{len(header.classes)} class names for {logits} logits")
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ModelFileError(
            f"{path} does not fit its architecture {header.architecture}: "
            f"{'; '.join(problems[:3])}{more}"
        )


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise ModelFileError(f"{path} {what}; expected a model file (model.safetensors)")
    size = path.stat().st_size
    not_one = f"{path} is no resnetkit model file"
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if start[:2] in (b"PK", b"\x80\x02"):
            raise ModelFileError(
                f"{not_one}: it is a PyTorch file (.pth). To make one of it: "
                f"resnet convert {path} model.safetensors"
            )
        if length > MAX_HEADER:
            raise ModelFileError(
                f"{not_one}: it does not begin as a safetensors file does (its header would have "
                f"{length:,} bytes). Give the model.safetensors that training wrote first"
            )
        if length == 0 or 8 + length > size:
            raise ModelFileError(f"{not_one}, or it is cut short ({size:,} bytes)")
        header = file.read(length)
    try:
        metadata = json.loads(header).get("__metadata__", {})
        content = json.loads(metadata[KEY])
    except KeyError:
        raise ModelFileError(f"{not_one}: a safetensors file without the entry {KEY!r}") from None
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise ModelFileError(f"{not_one}, or its header is damaged ({error})") from None
    if not isinstance(content, dict):
        raise ModelFileError(f"{not_one}: its header is damaged")
    return content


def _preprocessing(
    content: dict[str, Any], options: dict[str, Any], recipe: dict[str, Any]
) -> Preprocessing:
    """How images become the input of the network, which has as many channels as it takes."""
    found = Preprocessing.from_dict(_typed(content, "preprocessing", dict))
    taken = options.get("in_channels", 3)
    if taken in range(1, 1000) and taken not in STATISTICS:
        raise ModelFileError(
            f"its network takes {taken!r} channels, and images have 1, 3 or 4: resnetkit.models "
            "can use it in Python, with inputs that you make"
        )
    if found.channels == 3 and taken in (1, 4):  # converted by a version that knew colour alone
        mean, std = STATISTICS[taken]
        found = replace(found, mean=mean, std=std)
    if found.channels != taken and taken in list(STATISTICS):  # others no network can have
        raise ModelFileError(
            f"its header is damaged: its images have {found.channels} channels, its network takes "
            f"{taken}"
        )
    if recipe and "value_range" not in recipe:  # trained when each image decided for itself
        found = replace(found, value_range="image")
    return found


def _names(content: dict[str, Any]) -> tuple[str, ...]:
    classes = _typed(content, "classes", list)
    if not all(isinstance(name, str) for name in classes):
        raise ModelFileError("its header is damaged (a class is no text)")
    return tuple(classes)


def _typed(content: dict[str, Any], key: str, kind: type) -> Any:
    value = content.get(key)
    if not isinstance(value, kind):
        raise ModelFileError(f"its header is damaged ({key} is {type(value).__name__})")
    return value
