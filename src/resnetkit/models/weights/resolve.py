"""Weights from wherever they are -> into a network, also one with another head or input."""

from __future__ import annotations

import functools
import logging
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn

from ...errors import DownloadError, UnknownWeightsError, WeightsError
from .download import fetch, is_offline
from .enums import WeightsEnum
from .reading import Checkpoint, differences, drop_unused, read_tensors

Source = WeightsEnum | str | os.PathLike[str]
"""A member; its name; a local ``.pth`` or ``.safetensors``; ``https://...``; ``hf://owner/name``"""

FILE_KINDS = (".safetensors", ".bin", ".pth", ".pt", ".ckpt", ".tar", ".pkl", ".weights")
"""What files of weights end with, whether they exist or not."""

Network = TypeVar("Network", bound=nn.Module)

_log = logging.getLogger(__name__)


def build_network(
    construct: Callable[..., Network],
    options: Mapping[str, Any],
    weights: Source | None,
    published: type[WeightsEnum] | None = None,
    progress: bool = True,
) -> Network:
    """Construct a network and load weights into it.

    The number of classes and of input channels are those of the weights unless ``options`` say
    otherwise.

    Args:
        construct: makes the network from keyword options.
        options: what the caller asked for.
        weights: what to load; None for random weights.
        published: the enum that gives names such as ``DEFAULT`` their meaning.
        progress: show a bar while weights are downloaded.

    Raises:
        UnknownWeightsError, WeightsError, DownloadError: see `resnetkit.errors`.
        TypeError: the member of another network's enum.
    """
    if weights is None:
        return construct(**options)
    member = resolve_weights(weights, published)
    if member is not None:  # construct first: a wrong option must not cost a download
        model = construct(**{"num_classes": len(member.meta["categories"]), **options})
        tensors = load_tensors(member, published, progress).tensors
    else:
        checkpoint = load_tensors(weights, published, progress)
        if checkpoint.unclear and "num_classes" not in options:
            raise WeightsError(f"{weights} {checkpoint.unclear}")
        for note in (*checkpoint.notes, *filter(None, [checkpoint.unclear])):
            _log.warning("%s: %s", weights, note)
        tensors = checkpoint.tensors
        model = construct(**{**options_of(tensors), **options})
    source = member if member is not None else weights
    load_into(model, tensors, str(source))
    _say_what_changes(str(source), options, member is not None)
    return model


def _say_what_changes(source: str, options: Mapping[str, Any], published: bool) -> None:
    """Options that no tensor shows: the weights load, but perhaps into another network."""
    given = {n: options.get(n) for n in ("stride_on", "replace_stride_with_dilation")}
    if published and given.pop("stride_on") not in (None, "3x3"):
        told = "%s was trained with stride_on='3x3', the network has %r: it will do worse"
        _log.warning(told, source, options["stride_on"])
    for name, value in given.items():
        if value is not None:
            told = "%s cannot tell whether it was trained with %s=%r, as the network has it"
            _log.info(told, source, name, value)


def load_tensors(
    source: Source,
    published: type[WeightsEnum] | None = None,
    progress: bool = True,
    *,
    prefix: str | None = None,
    head: str | None = None,
) -> Checkpoint:
    """The tensors by name that ``source`` stands for; ``published`` gives the meaning of names,
    ``prefix`` and ``head`` are those of `resnetkit.models.weights.reading.read_tensors`.

    Raises:
        UnknownWeightsError, WeightsError, DownloadError: see `resnetkit.errors`.
        TypeError: a member of another network's enum.
    """
    member = resolve_weights(source, published)
    if member is not None:
        return Checkpoint(member.get_state_dict(progress=progress, check_hash=True))
    text = os.fspath(source)  # type: ignore[arg-type]
    if text.startswith(("https://", "http://")):
        return _from_address(text, progress, prefix, head)
    if text.startswith("hf://"):
        return read_tensors(_from_hub(text), prefix=prefix, head=head)
    return read_tensors(Path(text).expanduser(), prefix=prefix, head=head)


def resolve_weights(source: Source, published: type[WeightsEnum] | None) -> WeightsEnum | None:
    """Return the published weights that ``source`` names, or None if it is a file or an address.

    A file is what exists, lies in a folder (``./best``), ends like one (`FILE_KINDS`), or is a
    ``Path``. The name of a member always means the member: for a file called ``DEFAULT``, write
    ``./DEFAULT``.

    Raises:
        UnknownWeightsError: it is a word that is no member's name and no file.
        WeightsError: it is such a word, or a member, and ``published`` is None.
        TypeError: a member of another network's enum.
    """
    if isinstance(source, os.PathLike):
        return None
    if isinstance(source, str):
        named = published and source.removeprefix(f"{published.__name__}.") in published.__members__
        path = Path(source).expanduser()
        a_file = re.search(r"[/\\:]", source) or path.suffix.lower() in FILE_KINDS
        if not named and source and (a_file or path.exists()):
            return None
    if published is None:
        raise WeightsError(
            f"this model has no published weights; got {source!r}, expected a file, "
            "https://... or hf://owner/name"
        )
    try:
        return published.verify(source)
    except UnknownWeightsError as error:
        raise UnknownWeightsError(f"{error} There is no file {str(source)!r} either.") from None


def resolve_file(source: str) -> Path:
    """The file on this machine that a path, ``https://...`` or ``hf://owner/name`` stands for.

    Raises:
        WeightsError, DownloadError: there is no such file, or it cannot be fetched.
    """
    if source.startswith(("https://", "http://")):
        return fetch(source)
    path = _from_hub(source) if source.startswith("hf://") else Path(source).expanduser()
    if not path.is_file():
        raise WeightsError(
            f"{source} is no file (looked from {Path.cwd()}); expected a model file, .pth, "
            ".safetensors, https://..., hf://owner/name or the name of published weights"
        )
    return path


def _from_address(url: str, progress: bool, prefix: str | None, head: str | None) -> Checkpoint:
    what = f"{url} gave a file that is not kept; what arrived"
    read = functools.partial(read_tensors, prefix=prefix, head=head)
    path = fetch(url, progress=progress, validate=lambda part: read(part, source=what))
    try:
        return read(path)
    except WeightsError as error:  # it was fetched by other code, or only as a file
        raise WeightsError(
            f"{error}. To have it fetched again from {url}, delete {path}"
        ) from error


def _from_hub(address: str) -> Path:
    try:
        from huggingface_hub import errors, hf_hub_download
    except ImportError as error:
        hint = 'pip install "resnetkit[hub]"'
        raise WeightsError(f"{address} needs huggingface_hub: {hint}") from error
    name, _, revision = address.removeprefix("hf://").partition("@")
    if name.count("/") != 1:
        raise WeightsError(f"{address!r}: expected hf://owner/name or hf://owner/name@revision")
    where: dict[str, Any] = {"revision": revision or None, "local_files_only": is_offline()}
    try:
        try:
            return Path(hf_hub_download(name, "model.safetensors", **where))
        except errors.LocalEntryNotFoundError:  # a kind of the next, but it means: no connection
            raise
        except errors.EntryNotFoundError:  # older repositories
            return Path(hf_hub_download(name, "pytorch_model.bin", **where))
    except (errors.EntryNotFoundError, errors.HFValidationError, OSError) as error:
        raise DownloadError(f"{address} could not be fetched: {error}") from error


def options_of(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """The options of a network that ``tensors`` fit without change of head and input."""
    options = {}
    for option, name, axis in (("num_classes", "fc.weight", 0), ("in_channels", "conv1.weight", 1)):
        if name in tensors and tensors[name].ndim > axis:
            options[option] = tensors[name].shape[axis]
    return options


def load_into(model: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Copy ``tensors`` into ``model``, in the model's own type.

    Where the model has another number of classes, its head stays as it was made; where it has
    another number of input channels, the first convolution is adapted. Both are said in the log.

    Raises:
        WeightsError: names or shapes differ elsewhere; it shows the first that do.
    """
    own, given = model.state_dict(), dict(tensors)
    unused = drop_unused(own, given)
    notes = [f"has tensors that no layer here uses: {', '.join(unused)}"] if unused else []
    notes += [*_adapt_head(own, given), *_adapt_input(own, given)]
    differing = differences(own, given)
    if differing:
        raise WeightsError(f"{source} does not fit this network: {'; '.join(differing)}")
    model.load_state_dict(given)
    for note in notes:
        _log.warning("%s %s", source, note)


def _adapt_head(own: Mapping[str, Tensor], given: dict[str, Tensor]) -> list[str]:
    names = [n for n in ("fc.weight", "fc.bias") if n in own or n in given]
    wanted, got = (options_of(tensors).get("num_classes", 0) for tensors in (own, given))
    if wanted == got:
        return []
    for name in names:
        given.pop(name, None)
    if not wanted:
        return []
    given.update({name: own[name] for name in names})
    has = f"has {got or 'no'} classes, the network {wanted}"
    return [f"{has}: the head is new and knows nothing yet"]


def _adapt_input(own: Mapping[str, Tensor], given: dict[str, Tensor]) -> list[str]:
    wanted, got = (options_of(tensors).get("in_channels") for tensors in (own, given))
    if wanted is None or got is None or wanted == got:
        return []
    weight = given["conv1.weight"]
    if wanted == 1:  # what a grey picture, repeated over the channels, would give
        weight, how = weight.sum(1, keepdim=True), "summed"
    else:  # scaled, so that the sums stay as large as the layers behind expect them
        repeats = [channel % got for channel in range(wanted)]
        weight, how = weight[:, repeats] * (got / wanted), "repeated"
    given["conv1.weight"] = weight
    has = f"has {got} input channels, the network {wanted}"
    return [f"{has}: the first convolution is {how} over them"]
