"""Other people's checkpoints -> one model file, with the names of the classes."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import WeightsError
from ..storage import sha256
from .builders import ARCHITECTURES
from .download import hash_in_name
from .foreign import Recognised, recognise
from .reading import read_tensors
from .registry import list_weights
from .weights import WeightsEnum, imagenet_classes


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
    """Recognise the state dict in the file ``source`` and write it as a model file.

    Args:
        architecture, options: as in `recognise`.
        classes: names in the order of the logits; or a file with them (`read_classes`); or
            ``"imagenet"``. By default those of published weights, or else the numbers from 0.
        preprocessing: fields of `resnetkit.data.transforms.Preprocessing`; by default those of
            published weights, or else resize to 256 and crop to 224 px, or 32 px for nets with
            the small stem. The decoder is ``"full"`` for published weights and for
            ``classes="imagenet"``, so that they answer as they did when they were measured.
        prefix: which network to take, if the file has several: what its names begin with.
        head: which linear layer is the head, if several could be; ``none`` takes no head.

    Raises:
        WeightsError: the file cannot be read, fits no architecture, or has another number of
            classes than there are names.
    """
    from ..data.transforms import Preprocessing
    from .modelfile import Header, is_one, write

    if is_one(Path(source)):
        raise WeightsError(f"{source} is a model file already; there is nothing to convert")
    if (options or {}).get("num_classes") == 0:
        head = "none"
    checkpoint = read_tensors(Path(source), prefix=prefix, head=head)
    published = _published(Path(source))
    found = recognise(checkpoint, architecture=architecture, options=options, source=str(source))
    notes, count = list(found.notes), found.options["num_classes"]
    if published is not None:
        notes.append(f"it is {published!r}: took its classes and its preprocessing")
        classes = published.meta["categories"] if classes is None else classes
    names = _class_names(classes, count)
    if count == 0:
        notes.append("the file has no head: the model gives the pooled vector, not classes")
    elif classes is None:
        has = (
            "the class has a number for its name"
            if count == 1
            else (f"the {count} classes have numbers for names")
        )
        notes.append(f"{has}; --classes gives names")
    sizes = _input_sizes(found, published)
    if published is not None or (classes == "imagenet" and sizes["crop_size"] == 224):
        sizes["decoder"] = "full"  # as their accuracies were measured
    if preprocessing is None and published is None:
        notes.append(
            "the file does not say how its pictures were prepared; taken: shorter side "
            f"{sizes['resize_size']}, crop {sizes['crop_size']} px, ImageNet's mean and deviation"
        )
    prepared = Preprocessing.from_dict({**sizes, **(preprocessing or {})})
    header = Header(
        found.architecture, found.options, names, prepared, metrics=_published_metrics(published)
    )
    write(Path(target), found.tensors, header)
    return Recognised(found.architecture, found.options, found.tensors, tuple(notes))


def read_classes(path: Path) -> list[str]:
    """Class names in the order of the logits, from JSON (``{"0": "daisy"}``, ``{"daisy": 0}`` or a
    list) or from a text file with one a line.

    Raises:
        WeightsError: no such file, or its indices are not 0, 1, 2, ...
    """
    if not path.is_file():
        raise WeightsError(f"{path} is no file; expected class names as JSON or one a line")
    text = path.read_text(encoding="utf-8-sig")
    if path.suffix.lower() != ".json":
        return [line.strip() for line in text.splitlines() if line.strip()]
    try:
        content = json.loads(text)
        if isinstance(content, list):
            return [str(name) for name in content]
        pairs = content.items()
        by_name = all(isinstance(value, int) for _, value in pairs)
        names = (
            {int(v): str(k) for k, v in pairs} if by_name else {int(k): str(v) for k, v in pairs}
        )
    except (ValueError, AttributeError) as error:
        raise WeightsError(f"{path}: expected class names by index or a list ({error})") from error
    if sorted(names) != list(range(len(content))):
        raise WeightsError(
            f"{path}: expected the indices 0 to {len(content) - 1}; got {sorted(names)}"
        )
    return [names[index] for index in range(len(names))]


def _class_names(classes: Sequence[str] | str | Path | None, count: int) -> tuple[str, ...]:
    if classes is None:
        return tuple(map(str, range(count)))
    if classes == "imagenet":
        names: Sequence[str] = imagenet_classes()
    else:
        names = read_classes(Path(classes)) if isinstance(classes, str | Path) else classes
    if len(names) != count:
        raise WeightsError(f"{len(names)} class names for {count} logits; expected one for each")
    return tuple(names)


def _published(path: Path) -> WeightsEnum | None:
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
