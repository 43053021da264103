"""Convert a checkpoint from other code to a model file, with class names and preprocessing."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ...data.imagenet import imagenet_classes
from ...errors import WeightsError
from ...runtime import pytorch_defaults
from ...storage import sha256
from ...text import pluralize
from ..architectures import ARCHITECTURES
from ..registry import list_weights
from .classnames import check_names, read_classes, select_names
from .download import hash_in_name
from .enums import WeightsEnum
from .foreign import Recognised, recognise
from .prepared import (
    describe_fields,
    find_preprocessing,
    override_fields,
    read_hub_configs,
    read_preprocessing,
    read_timm_architecture,
)
from .reading import check_finite, read_tensors
from .resolve import FILE_KINDS


@pytorch_defaults()
def convert(
    source: str | Path,
    target: str | Path,
    *,
    architecture: str | None = None,
    options: Mapping[str, Any] | None = None,
    classes: Sequence[str] | str | Path | None = None,
    preprocessing: Mapping[str, Any] | None = None,
    preprocessing_file: str | Path | None = None,
    prefix: str | None = None,
    head: str | None = None,
) -> Recognised:
    """Write the checkpoint in ``source`` as a model file, and return what was recognized.

    Args:
        source: a file, or a folder from a model hub.
        target: the model file to write.
        architecture, options: as in `recognise`.
        classes: names in the order of the logits; a file or folder that lists them (see
            `classnames.read_classes`); or ``"imagenet"``. By default, the names come from the
            published weights, or from the file itself (``class_to_idx`` and similar keys).
        preprocessing: fields of `resnetkit.data.preprocessing.Preprocessing`. Mean and std may be
            on a scale of 0 to 255. Set ``bgr`` if the network takes channels in that order. The
            other fields come from ``preprocessing_file`` or the published weights. Without either,
            images are resized to 256 px and cropped to 224 px, or resized to 32 px for networks
            with the small stem. The decoder is ``"full"``, so that the model sees the same pixels
            as in its original code.
        preprocessing_file: YAML or JSON with these fields. By default, the YAML file next to the
            checkpoint (``model.yaml`` for ``model.pth``, or ``preprocessing.yaml``), or else
            ``config.json`` and ``preprocessor_config.json`` from a model hub.
        prefix: prefix of the tensor names of the network to use, if the file has several networks.
        head: name of the head, if several linear layers qualify; ``none`` for no head.

    Raises:
        WeightsError: the file cannot be read, fits no architecture, or its number of classes
            differs from the number of names.
        OutputError: ``target`` cannot be written, or has the extension of an exported file.
    """
    from ...data.preprocessing import Preprocessing
    from .modelfile import Header, is_model_file, refuse_exported_name, write

    refuse_exported_name(Path(target))
    file = _find_checkpoint(Path(source))
    if is_model_file(file):
        raise WeightsError(f"{file} is already a model file; there is nothing to convert")
    _check_architecture(file, architecture)
    prepared_in = find_preprocessing(file) if preprocessing_file is None else preprocessing_file
    fields, known_options, hub_names, notes = read_hub_configs(
        file, preprocessing=prepared_in is None
    )
    if prepared_in is not None:
        fields = read_preprocessing(Path(prepared_in))
    if prepared_in is not None and preprocessing_file is None:
        notes.append(
            f"{Path(prepared_in).name} next to the file says how images were prepared: "
            f"{describe_fields(fields)}; override with --preprocessing FILE"
        )
    known_options |= options or {}
    head = "none" if known_options.get("num_classes") == 0 else head
    checkpoint = read_tensors(file, prefix=prefix, head=head)
    published = find_published(file)
    found = recognise(
        checkpoint, architecture=architecture, options=known_options, source=str(file)
    )
    check_finite(found.tensors, str(file))
    if published is not None:
        notes.append(f"this is {published!r}: used its classes and preprocessing")
        classes = published.meta["categories"] if classes is None else classes
    stored_names = {**checkpoint.classes, **hub_names}
    found, names, name_notes = _resolve_names(found, classes, stored=stored_names, source=file)
    fields = override_fields(fields, preprocessing or {})
    found, fields, input_notes = _resolve_input(found, fields, published=published)
    header = Header(
        architecture=found.architecture,
        options=found.options,
        classes=names,
        preprocessing=Preprocessing.from_dict(fields),
        metrics=_published_metrics(published),
    )
    write(Path(target), found.tensors, header=header)
    return replace(found, notes=(*found.notes, *notes, *name_notes, *input_notes))


def _find_checkpoint(source: Path) -> Path:
    """Return the checkpoint in a folder from a model hub; ``source`` itself if it is a file."""
    is_folder = source.is_dir()
    files = [source]
    if is_folder:
        files = sorted(path for path in source.iterdir() if path.suffix.lower() in FILE_KINDS)
    if is_folder and source / "model.safetensors" in files:
        return source / "model.safetensors"
    if any(re.search(r"-of-(?!0*1\.)\d+\.|\.index\.json$", path.name) for path in files):
        raise WeightsError(
            f"{source} is part of a checkpoint in several files. Join them in their folder:\n"
            "  from glob import glob\n"
            "  from safetensors.torch import load_file, save_file\n"
            "  files = sorted(glob('*-of-*.safetensors'))\n"
            "  tensors = {n: t for file in files for n, t in load_file(file).items()}\n"
            "  save_file(tensors, 'model.safetensors')\n"
            "For .bin files, use torch.load(file, weights_only=True) and torch.save"
        )
    if not is_folder:
        return source
    for name in ("model.safetensors", "pytorch_model.bin"):  # the hub's libraries prefer these
        if source / name in files:
            return source / name
    if len(files) != 1:
        shown = ", ".join(path.name for path in files[:5]) or "none"
        raise WeightsError(f"{source} has {len(files)} checkpoints ({shown}); pass one file")
    return files[0]


def _check_architecture(file: Path, given: str | None) -> None:
    """Raise if config.json names a network that differs from ours despite similar tensors."""
    named, arguments = read_timm_architecture(file)
    if named is None or given is not None:
        return
    if arguments:
        shown = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
        raise WeightsError(
            f"config.json next to {file} names {named} with {shown}, which no network in "
            f"resnetkit has, although the tensors may look like {named}. If the difference does "
            f"not matter, pass --arch {named}"
        )
    if named not in ARCHITECTURES:
        raise WeightsError(
            f"config.json next to {file} names {named}, which is not a network in resnetkit, "
            "although the tensors may look like one. If you know the equivalent network, pass "
            "--arch"
        )


def _resolve_input(
    found: Recognised, fields: Mapping[str, Any], *, published: WeightsEnum | None
) -> tuple[Recognised, dict[str, Any], list[str]]:
    """Return the network for RGB, its complete preprocessing, and notes on what was assumed.

    A network that takes BGR becomes one that takes RGB: the order of the first convolution's
    input channels, of mean and of std is reversed. Only the order of summation changes.
    """
    from ...data.preprocessing import STATISTICS

    given = {key: value for key, value in fields.items() if key != "bgr"}
    channels = found.options.get("in_channels", 3)
    if channels not in STATISTICS:
        raise WeightsError(
            f"the first convolution takes {channels} channels, but images have 1 (gray), 3 (RGB) "
            "or 4 (RGB and transparency), so a model file cannot use this network"
        )
    usual = dict(zip(("mean", "std"), STATISTICS[channels], strict=True))
    for key in sorted(usual.keys() & given.keys()):
        if len(given[key]) == 1:
            given[key] = given[key] * channels
        if len(given[key]) != channels:
            raise WeightsError(
                f"the network takes {channels} channels, but {key} has {len(given[key])} values"
            )
    resolved = {**_default_sizes(found, published), **usual, "decoder": "full", **given}
    notes = []
    if channels == 1:
        notes.append("the network takes 1 channel: images are read as gray")
    elif channels == 4:
        notes.append("the network takes 4 channels: images are read as RGB and transparency")
    sizes = f"shorter side {resolved['resize_size']}, crop {resolved['crop_size']} px"
    if published is None and not given.keys() & {"resize_size", "mean"}:
        notes.append(
            f"the file does not say how its images were prepared; assumed {sizes}, ImageNet's mean "
            "and std, RGB. Change these with --preprocessing, --resize, --crop, --mean and --std"
        )
    elif published is None:
        if "resize_size" not in given:
            notes.append(f"no size was given; assumed {sizes} (--resize, --crop)")
        if not {"mean", "std"} <= given.keys():
            notes.append("used ImageNet's values where mean or std was not given")
    if resolved["decoder"] == "full":
        notes.append(
            "images are decoded at full size, as in other code; --decoder scaled is faster"
        )
    if fields.get("bgr") and channels == 3:
        weight = found.tensors["conv1.weight"].flip(1)
        found = replace(found, tensors={**found.tensors, "conv1.weight": weight})
        resolved |= {key: list(resolved[key])[::-1] for key in ("mean", "std") if key in given}
        notes.append("the network takes BGR: reversed its first convolution to take RGB")
    return found, resolved, notes


def _resolve_names(
    found: Recognised,
    classes: Sequence[str] | str | Path | None,
    *,
    stored: Mapping[str, object],
    source: Path,
) -> tuple[Recognised, tuple[str, ...], list[str]]:
    """Return the network, the names of its logits, and notes.

    A network with one logit z and a sigmoid gets two logits, 0 and z. This gives the same
    probability, because softmax([0, z])[1] = sigmoid(z).
    """
    count = found.options["num_classes"]
    notes: list[str] = []
    names = None if classes is None else _read_given_names(classes)
    if names is None:
        names, notes = select_names(stored, max(count, 2) if count else 0, source=str(source))
    if count == 1:
        if names is None or len(names) != 2:
            raise WeightsError(
                f"{source} has one logit, which a sigmoid turns into the probability of the second "
                f"of two classes; got {len(names or ())} class names. Name both classes, the one "
                "for 0 first: --classes FILE (Python: classes=['cat', 'dog']). A network that "
                "predicts a number instead of a class cannot become a model file; --head none "
                "converts it without its head"
            )
        head = {n: found.tensors[n] for n in ("fc.weight", "fc.bias")}
        doubled = {n: torch.cat([torch.zeros_like(t), t]) for n, t in head.items()}
        found = replace(
            found,
            options={**found.options, "num_classes": 2},
            tensors={**found.tensors, **doubled},
        )
        notes.append(
            f"its one logit z became two, 0 for {names[0]!r} and z for {names[1]!r}: their "
            "softmax equals the sigmoid of z"
        )
        count = 2
    if names is None:
        names, more = _make_names(count)
        notes += more
    if len(names) != count:
        raise WeightsError(
            f"{pluralize(len(names), 'class name')} for {pluralize(count, 'logit')}; expected one "
            "per logit"
        )
    return found, tuple(names), notes


def _read_given_names(classes: Sequence[str] | str | Path) -> list[str]:
    if classes == "imagenet":
        return imagenet_classes()
    if isinstance(classes, str | Path):
        return read_classes(Path(classes))
    return check_names(classes, "classes")


def _make_names(count: int) -> tuple[list[str], list[str]]:
    """Return names for a file that has none, and notes."""
    if count == 0:
        return [], ["the file has no head: the model returns the pooled vector, not classes"]
    if count <= 10:
        names = [str(i) for i in range(count)]
        return names, [f"the {count} classes are named by number; set names with --classes"]
    return [f"class {i}" for i in range(count)], [
        f"the file does not name its {count} classes, so they are called `class 0` and so on. Set "
        "names with --classes; --classes FOLDER uses the folders of the training data, in the "
        "order of ImageFolder, which sorts as text (0, 1, 10, 11, 2)"
    ]


def find_published(path: Path) -> WeightsEnum | None:
    """Return the published weights with this file's SHA-256, whatever its name; or None."""
    digest = sha256(path)
    for member in itertools.chain.from_iterable(list_weights().values()):
        if digest.startswith(hash_in_name(member.url)):
            return member
    return None


def _published_metrics(published: WeightsEnum | None) -> dict[str, Any]:
    """Return the published accuracy as fractions, under its own key."""
    if published is None:
        return {}
    ((images, percent),) = published.meta["_metrics"].items()
    fractions = {"accuracy": percent["acc@1"] / 100, "top5_accuracy": percent["acc@5"] / 100}
    return {"published": {"weights": repr(published), "data": images, **fractions}}


def _default_sizes(found: Recognised, published: WeightsEnum | None) -> dict[str, Any]:
    if published is not None:
        preset: Any = published.transforms()
        return {"resize_size": preset.resize_size[0], "crop_size": preset.crop_size[0]}
    known = ARCHITECTURES.get(found.architecture)
    numbers = {**(known.numbers if known else {}), **found.options}
    if numbers.get("stem") == "small":
        return {"resize_size": 32, "crop_size": 32}
    return {"resize_size": 256, "crop_size": 224}
