"""Other people's checkpoints -> one model file, with the names of the classes."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ...errors import WeightsError
from ...runtime import pytorch_defaults
from ...storage import sha256
from ..architectures import ARCHITECTURES
from ..registry import list_weights
from .classnames import check_names, read_classes, select_names
from .download import hash_in_name
from .enums import WeightsEnum, imagenet_classes
from .foreign import Recognised, recognise
from .prepared import architecture_beside, beside, checked
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
    prefix: str | None = None,
    head: str | None = None,
) -> Recognised:
    """Recognise the state dict in ``source``, a file or a folder of a model hub, and write it as a
    model file.

    Args:
        architecture, options: as in `recognise`.
        classes: names in the order of the logits; or a file or folder with them (see
            `classnames.read_classes`); or ``"imagenet"``. By default those of published
            weights, or those that the file holds (``class_to_idx`` and the like).
        preprocessing: fields of `resnetkit.data.transforms.Preprocessing`, mean and deviation
            also on a scale to 255; ``bgr`` if the network takes the colours in that order. By
            default those of published weights, or what ``config.json`` and
            ``preprocessor_config.json`` beside the file say; or else resize to 256 and crop to
            224 px, or 32 px for nets with the small stem. The decoder is ``"full"``, so that the
            model sees the pixels that its own code saw.
        prefix: which network to take, if the file has several: what its names begin with.
        head: which linear layer is the head, if several could be; ``none`` takes no head.

    Raises:
        WeightsError: the file cannot be read, fits no architecture, or has another number of
            classes than there are names.
    """
    from ...data.transforms import Preprocessing
    from .modelfile import Header, is_model_file, write

    file = _file_of(Path(source))
    if is_model_file(file):
        raise WeightsError(f"{file} is a model file already; there is nothing to convert")
    _check_architecture(file, architecture)
    fields, settings, labels, notes = beside(file)
    settings |= options or {}
    head = "none" if settings.get("num_classes") == 0 else head
    checkpoint, published = read_tensors(file, prefix=prefix, head=head), find_published(file)
    found = recognise(checkpoint, architecture=architecture, options=settings, source=str(file))
    check_finite(found.tensors, str(file))
    if published is not None:
        notes.append(f"it is {published!r}: took its classes and its preprocessing")
        classes = published.meta["categories"] if classes is None else classes
    found, names, said = _with_names(found, classes, {**checkpoint.classes, **labels}, file)
    fields |= checked(preprocessing or {}, "preprocessing")
    found, taken, guessed = _with_input(found, fields, published)
    made = Preprocessing.from_dict(taken)
    metrics = _published_metrics(published)
    header = Header(found.architecture, found.options, names, made, metrics=metrics)
    write(Path(target), found.tensors, header)
    notes = [*found.notes, *notes, *said, *guessed]
    return Recognised(found.architecture, found.options, found.tensors, tuple(notes))


def _file_of(source: Path) -> Path:
    """The file of tensors in a folder of a model hub; ``source`` itself if it is no folder."""
    if not source.is_dir():
        return source
    there = sorted(path for path in source.iterdir() if path.suffix.lower() in FILE_KINDS)
    for name in ("model.safetensors", "pytorch_model.bin"):  # as the hub's libraries choose
        if source / name in there:
            return source / name
    if len(there) != 1:
        shown = ", ".join(path.name for path in there[:5]) or "none"
        raise WeightsError(f"{source} has {len(there)} checkpoints ({shown}); name one file")
    return there[0]


def _check_architecture(file: Path, given: str | None) -> None:
    """Make sure that a config.json does not name a network whose tensors only look like ours."""
    named, arguments = architecture_beside(file)
    if named is None or given is not None:
        return
    if arguments:
        said = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
        raise WeightsError(
            f"config.json beside {file} says {named} with {said}, which no network here has, "
            f"although its tensors look like one. If it makes no difference: --arch {named}"
        )
    if named not in ARCHITECTURES:
        raise WeightsError(
            f"config.json beside {file} says {named}, which is no network here, although its "
            "tensors may look like one. If you know it is the same, name the network: --arch"
        )


def _with_input(
    found: Recognised, fields: Mapping[str, Any], published: WeightsEnum | None
) -> tuple[Recognised, dict[str, Any], list[str]]:
    """The network for RGB, its preprocessing, and what was guessed of that. A network that takes
    BGR becomes one that takes RGB: its first convolution is turned round, and so are mean and
    deviation, which change no number but the order of the sum."""
    from ...data.transforms import STATISTICS

    given = {key: value for key, value in fields.items() if key != "bgr"}
    channels = found.options.get("in_channels", 3)
    if channels not in STATISTICS:
        raise WeightsError(
            f"its first convolution takes {channels} channels, and images have 1 (grey), 3 (RGB) "
            "or 4 (RGB and transparency); no model file can feed it"
        )
    usual = dict(zip(("mean", "std"), STATISTICS[channels], strict=True))
    for key in usual.keys() & given.keys():
        given[key] = given[key] * channels if len(given[key]) == 1 else given[key]
        if len(given[key]) != channels:
            has = len(given[key])
            raise WeightsError(f"it takes {channels} channels; {key} is given for {has}")
    taken = {**_input_sizes(found, published), **usual, "decoder": "full", **given}
    notes = []
    if channels != 3:
        form = "1 channel: images are read as grey"
        other = "4 channels: images are read as RGB and transparency"
        notes.append(f"it takes {form if channels == 1 else other}")
    sizes = f"shorter side {taken['resize_size']}, crop {taken['crop_size']} px"
    if published is None and not given.keys() & {"resize_size", "mean"}:
        notes.append(
            f"the file does not say how its images were prepared; taken: {sizes}, ImageNet's mean "
            "and deviation, RGB. --preprocessing, --resize, --crop, --mean and --std decide"
        )
    elif published is None:
        if "resize_size" not in given:
            notes.append(f"no size was given; taken: {sizes} (--resize, --crop)")
        if not {"mean", "std"} <= given.keys():
            notes.append("took ImageNet's mean or deviation, since not both were given")
    if taken["decoder"] == "full":
        notes.append("images are decoded in full, as other code does; --decoder scaled is faster")
    if fields.get("bgr") and channels == 3:
        weight = found.tensors["conv1.weight"].flip(1)
        found = replace(found, tensors={**found.tensors, "conv1.weight": weight})
        taken |= {key: list(taken[key])[::-1] for key in ("mean", "std") if key in given}
        notes.append("it takes BGR: turned its first convolution round, so that it takes RGB")
    return found, taken, notes


def _with_names(
    found: Recognised,
    classes: Sequence[str] | str | Path | None,
    said: Mapping[str, object],
    source: Path,
) -> tuple[Recognised, tuple[str, ...], list[str]]:
    """The network, the names of its logits, and notes. One logit with a sigmoid becomes two: since
    ``softmax([0, z])[1] = sigmoid(z)``, a row of zeros before it gives the same probability."""
    count = found.options["num_classes"]
    notes: list[str] = []
    names = None if classes is None else _given_names(classes)
    if names is None:
        names, notes = select_names(said, max(count, 2) if count else 0, str(source))
    if count == 1:
        if names is None or len(names) != 2:
            raise WeightsError(
                f"{source} has one logit, which a sigmoid makes the probability of the second of "
                f"two classes; got {len(names or ())} class names. Name both, the one at 0 first: "
                "--classes FILE (Python: classes=['cat', 'dog']). A network that gives a number, "
                "not a class, cannot become a model file; --head none takes its body"
            )
        head = {n: found.tensors[n] for n in ("fc.weight", "fc.bias")}
        doubled = {n: torch.cat([torch.zeros_like(t), t]) for n, t in head.items()}
        options = {**found.options, "num_classes": 2}
        found = replace(found, options=options, tensors={**found.tensors, **doubled})
        notes.append(
            f"its one logit became two, 0 for {names[0]!r} and itself for {names[1]!r}: their "
            "softmax is its sigmoid"
        )
        count = 2
    if names is None:
        names, more = _made_up(count)
        notes += more
    if len(names) != count:
        raise WeightsError(f"{len(names)} class names for {count} logits; expected one for each")
    return found, tuple(names), notes


def _given_names(classes: Sequence[str] | str | Path) -> list[str]:
    if classes == "imagenet":
        return imagenet_classes()
    if isinstance(classes, str | Path):
        return read_classes(Path(classes))
    return check_names(classes, "classes")


def _made_up(count: int) -> tuple[list[str], list[str]]:
    if count == 0:
        return [], ["the file has no head: the model gives the pooled vector, not classes"]
    if count <= 10:
        names = [str(i) for i in range(count)]
        return names, [f"the {count} classes have numbers for names; --classes gives names"]
    return [f"class {i}" for i in range(count)], [
        f"the file does not name its {count} classes, which are called `class 0` and so on. "
        "--classes gives names; --classes FOLDER those of the training data in the order of "
        "ImageFolder, which sorts as text (0, 1, 10, 11, 2)"
    ]


def find_published(path: Path) -> WeightsEnum | None:
    """The published weights whose file this is, by its hash; its name does not matter."""
    digest = sha256(path)
    for member in itertools.chain.from_iterable(list_weights().values()):
        if digest.startswith(hash_in_name(member.url)):
            return member
    return None


def _published_metrics(published: WeightsEnum | None) -> dict[str, Any]:
    """What was published of the weights, as shares: beside it stands what is measured later."""
    if published is None:
        return {}
    measured = published.meta["_metrics"]["ImageNet-1K"]
    shares = {"accuracy": measured["acc@1"] / 100, "top5_accuracy": measured["acc@5"] / 100}
    return {"published": {"weights": repr(published), "data": "ImageNet-1K", **shares}}


def _input_sizes(found: Recognised, published: WeightsEnum | None) -> dict[str, Any]:
    if published is not None:
        preset: Any = published.transforms()
        return {"resize_size": preset.resize_size[0], "crop_size": preset.crop_size[0]}
    known = ARCHITECTURES.get(found.architecture)
    numbers = {**(known.numbers if known else {}), **found.options}
    small = numbers.get("stem") == "small"
    return {"resize_size": 32, "crop_size": 32} if small else {"resize_size": 256, "crop_size": 224}
