"""Resolve any accepted value of ``weights=`` to a file, and load its tensors into a network.

The network and the file may differ in the number of classes or input channels.
"""

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
from .reading import Checkpoint, check_floats, describe_differences, drop_unused, read_tensors

Source = WeightsEnum | str | os.PathLike[str]
"""An enum member, its name, a local file, ``https://...`` or ``hf://owner/name[@revision]``."""

FILE_KINDS = (".safetensors", ".bin", ".pth", ".pt", ".ckpt", ".tar", ".pkl", ".weights")
"""Suffixes that mark a string as the path to a weights file, whether or not the file exists."""

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

    The numbers of classes and input channels come from the weights, unless ``options`` sets them.

    Args:
        construct: builds the network from keyword options.
        options: the options the caller passed.
        weights: what to load; None for random weights.
        published: the enum that ``weights`` may name a member of, such as ``DEFAULT``.
        progress: show a bar while weights are downloaded.

    Raises:
        UnknownWeightsError, WeightsError, DownloadError: see `resnetkit.errors`.
        TypeError: ``weights`` is a member of another network's enum.
    """
    if weights is None:
        return construct(**options)
    member = resolve_weights(weights, published)
    if member is not None:  # construct first, so that a wrong option does not cost a download
        model = construct(**{"num_classes": len(member.meta["categories"]), **options})
        tensors = load_tensors(member, published, progress=progress).tensors
    else:
        checkpoint = load_tensors(weights, published, progress=progress)
        if checkpoint.unclear and "num_classes" not in options:
            raise WeightsError(f"{weights} {checkpoint.unclear}")
        for note in (*checkpoint.notes, *filter(None, [checkpoint.unclear])):
            _log.warning("%s: %s", weights, note)
        tensors = checkpoint.tensors
        model = construct(**{**infer_options(tensors), **options})
    source = str(weights if member is None else member)
    load_into(model, tensors, source=source)
    _log_hidden_options(source, options, is_published=member is not None)
    return model


def _log_hidden_options(source: str, options: Mapping[str, Any], *, is_published: bool) -> None:
    """Log options that tensors do not show: the weights load even if they need other values."""
    hidden = {name: options.get(name) for name in ("stride_on", "replace_stride_with_dilation")}
    if is_published and hidden.pop("stride_on") not in (None, "3x3"):
        _log.warning(
            "%s was trained with stride_on='3x3', but this network has %r: expect lower accuracy",
            source,
            options["stride_on"],
        )
    for name, value in hidden.items():
        if value is not None:
            _log.debug(
                "%s does not show whether it was trained with %s=%r, which this network has",
                source,
                name,
                value,
            )


def load_tensors(
    source: Source,
    published: type[WeightsEnum] | None = None,
    progress: bool = True,
    *,
    prefix: str | None = None,
    head: str | None = None,
) -> Checkpoint:
    """Return the tensors in ``source``, by name.

    Args:
        source: an enum member, its name, a file, ``https://...`` or ``hf://owner/name``.
        published: the enum that ``source`` may name a member of.
        progress: show a bar while weights are downloaded.
        prefix, head: as in `resnetkit.models.weights.reading.read_tensors`.

    Raises:
        UnknownWeightsError, WeightsError, DownloadError: see `resnetkit.errors`.
        TypeError: ``source`` is a member of another network's enum.
    """
    member = resolve_weights(source, published)
    if member is not None:
        return Checkpoint(member.get_state_dict(progress=progress, check_hash=True))
    text = os.fspath(source)  # type: ignore[arg-type]
    if text.startswith(("https://", "http://")):
        return _read_url(text, progress, prefix=prefix, head=head)
    if text.startswith("hf://"):
        return read_tensors(_fetch_from_hub(text), prefix=prefix, head=head)
    return read_tensors(Path(text).expanduser(), prefix=prefix, head=head)


def resolve_weights(source: Source, published: type[WeightsEnum] | None) -> WeightsEnum | None:
    """Return the published weights that ``source`` names, or None if it is a file or an address.

    ``source`` is a file if it is a ``Path``, exists, contains a slash (``./best``), or has one of
    the suffixes in `FILE_KINDS`. The name of a member always means the member: for a file called
    ``DEFAULT``, write ``./DEFAULT``.

    Raises:
        UnknownWeightsError: ``source`` is neither a member's name nor a file.
        WeightsError: ``source`` is not a file, and ``published`` is None.
        TypeError: ``source`` is a member of another network's enum.
    """
    if isinstance(source, os.PathLike):
        return None
    if isinstance(source, str) and source and not _names_member(source, published):
        path = Path(source).expanduser()
        looks_like_file = re.search(r"[/\\:]", source) or path.suffix.lower() in FILE_KINDS
        if looks_like_file or path.exists():
            return None
    if published is None:
        raise WeightsError(
            f"This network has no published weights, so {source!r} does not apply. Pass a file, "
            "https://... or hf://owner/name"
        )
    try:
        return published.verify(source)
    except UnknownWeightsError as error:
        raise UnknownWeightsError(f"{error} There is no file {str(source)!r} either.") from None


def _names_member(source: str, published: type[WeightsEnum] | None) -> bool:
    if published is None:
        return False
    return source.removeprefix(f"{published.__name__}.") in published.__members__


def resolve_file(source: str) -> Path:
    """Return the local file for a path, ``https://...`` or ``hf://owner/name``, fetched if needed.

    Raises:
        WeightsError: there is no such file.
        DownloadError: it cannot be fetched.
    """
    if source.startswith(("https://", "http://")):
        return fetch(source)
    path = _fetch_from_hub(source) if source.startswith("hf://") else Path(source).expanduser()
    if not path.is_file():
        raise WeightsError(
            f"{source} is not a file (looked in {Path.cwd()}); expected a model file, .pth, "
            ".safetensors, https://..., hf://owner/name or the name of published weights"
        )
    return path


def _read_url(url: str, progress: bool, *, prefix: str | None, head: str | None) -> Checkpoint:
    read = functools.partial(read_tensors, prefix=prefix, head=head)
    download = f"The download from {url} was not kept: it"
    path = fetch(url, progress=progress, validate=lambda file: read(file, source=download))
    try:
        return read(path)
    except WeightsError as error:  # cached by other code, or fetched without being read
        raise WeightsError(f"{error}. To download it again from {url}, delete {path}") from error


def _fetch_from_hub(address: str) -> Path:
    """Return the local copy of ``hf://owner/name[@revision]``: .safetensors, or else .bin."""
    try:
        from huggingface_hub import errors, hf_hub_download
    except ImportError as error:
        hint = 'pip install "resnetkit[hub]"'
        raise WeightsError(f"{address} needs huggingface_hub: {hint}") from error
    name, _, revision = address.removeprefix("hf://").partition("@")
    if name.count("/") != 1:
        raise WeightsError(f"{address!r}: expected hf://owner/name or hf://owner/name@revision")
    settings: dict[str, Any] = {"revision": revision or None, "local_files_only": is_offline()}
    try:
        try:
            return Path(hf_hub_download(name, "model.safetensors", **settings))
        except errors.LocalEntryNotFoundError:  # no connection; a subclass of the error below
            raise
        except errors.EntryNotFoundError:  # older repositories have only this file
            return Path(hf_hub_download(name, "pytorch_model.bin", **settings))
    except (errors.EntryNotFoundError, errors.HFValidationError, OSError) as error:
        raise DownloadError(f"{address} could not be fetched: {error}") from error


def infer_options(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Return ``num_classes`` and ``in_channels`` of the network that ``tensors`` come from.

    An option is left out if the tensor that shows it is missing.
    """
    options = {}
    for option, name, axis in (("num_classes", "fc.weight", 0), ("in_channels", "conv1.weight", 1)):
        if name in tensors and tensors[name].ndim > axis:
            options[option] = tensors[name].shape[axis]
    return options


def load_into(model: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Copy ``tensors`` into ``model``, converting them to the model's dtype.

    If the numbers of classes differ, the model keeps its own head. If the numbers of input
    channels differ, the first convolution is adapted. Either change is logged.

    Args:
        model: the network to fill.
        tensors: by name; left unchanged.
        source: name of the tensors, for messages.

    Raises:
        WeightsError: any other names or shapes differ, or a tensor holds no floating-point numbers;
            the message shows the first few.
    """
    expected = model.state_dict()
    given = dict(tensors)
    unused = drop_unused(expected, given)
    notes = (
        [f"has tensors that no layer of this network uses: {', '.join(unused)}"] if unused else []
    )
    notes += _adapt_head(expected, given)
    notes += _adapt_input(expected, given)
    differences = describe_differences(expected, given)
    if differences:
        raise WeightsError(f"{source} does not fit this network: {'; '.join(differences)}")
    check_floats(expected, given, source)
    model.load_state_dict(given)
    for note in notes:
        _log.warning("%s %s", source, note)


def _adapt_head(expected: Mapping[str, Tensor], given: dict[str, Tensor]) -> list[str]:
    """Replace the head in ``given`` with the network's, if the numbers of classes differ."""
    names = [n for n in ("fc.weight", "fc.bias") if n in expected or n in given]
    wanted = infer_options(expected).get("num_classes", 0)
    found = infer_options(given).get("num_classes", 0)
    if wanted == found:
        return []
    for name in names:
        given.pop(name, None)
    if not wanted:
        return []
    given.update({name: expected[name] for name in names})
    return [f"has {found or 'no'} classes, not {wanted}: the head is new and untrained"]


def _adapt_input(expected: Mapping[str, Tensor], given: dict[str, Tensor]) -> list[str]:
    """Change the first convolution in ``given`` to the network's number of input channels."""
    wanted = infer_options(expected).get("in_channels")
    found = infer_options(given).get("in_channels")
    if wanted is None or found is None or wanted == found:
        return []
    weight = given["conv1.weight"]  # (planes, channels, k, k)
    if wanted == 1:  # same result as a gray image repeated over the channels
        given["conv1.weight"] = weight.sum(1, keepdim=True)
        how = "summed"
    else:  # scaled so that the sums keep about the same size
        repeats = [channel % found for channel in range(wanted)]
        given["conv1.weight"] = weight[:, repeats] * (found / wanted)
        how = "repeated"
    return [f"has {found} input channels, not {wanted}: the first convolution is {how} over them"]
