"""Read the tensors in a weights file, by name. Nothing in the file is ever executed."""

from __future__ import annotations

import argparse
import io
import pickle
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import WeightsError
from .classnames import WRAPPERS
from .containers import check_archive, describe_content
from .layouts import extract_network


@dataclass(frozen=True)
class Checkpoint:
    """The network read from a file.

    Args:
        tensors: the tensors by name, in the file's order.
        notes: which parts of the file were selected, and which were dropped.
        unclear: why no head was selected although the file has layers that could be one; else "".
        classes: class names stored in the file, by the key they are stored under.
    """

    tensors: dict[str, Tensor]
    notes: tuple[str, ...] = ()
    unclear: str = ""
    classes: Mapping[str, Any] = field(default_factory=dict)


def read_tensors(
    path: Path,
    map_location: Any = "cpu",
    source: str = "",
    *,
    prefix: str | None = None,
    head: str | None = None,
) -> Checkpoint:
    """Read a safetensors or ``torch.save`` file and return the network in it.

    Prefixes that wrappers add are removed, and tensors get the names this package uses.

    Args:
        path: the file. Its format is recognized by its content, not its suffix.
        map_location: the device to load to, as in ``torch.load``.
        source: name of the file, for messages; by default its path.
        prefix: prefix of the tensor names of the network to use, if the file has several networks.
        head: name of the head, if several linear layers qualify; ``none`` for no head.

    Raises:
        WeightsError: the file is missing or damaged, holds no tensors, holds Python objects, or
            has several networks while ``prefix`` is None.
    """
    name = source or str(path)
    if not path.is_file():
        raise WeightsError(f"{name} is not a file; expected a .safetensors or .pth file")
    try:
        with path.open("rb") as file:
            start = file.read(512)
    except OSError as error:
        raise WeightsError(f"{name} cannot be read: {error.strerror or error}") from error
    if start[4:9] == b"\0\0\0\0{":  # safetensors: 8 bytes of header length, then a JSON header
        content: object = _read_safetensors(path, map_location, name=name)
    elif start.startswith((b"PK\x03\x04", b"\x80")):
        check_archive(path, start, name=name)
        content = _read_pickle(path, map_location, name=name)
    else:
        raise WeightsError(f"{name} is not a file of tensors: {describe_content(start)}")
    return unwrap(content, name, prefix=prefix, head=head)


def _read_safetensors(path: Path, map_location: Any, name: str) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{name} is damaged or cut short: {error}") from error
    if map_location is None or str(map_location) == "cpu":
        return tensors
    content = io.BytesIO()  # torch.load applies every kind of map_location
    torch.save(tensors, content)
    content.seek(0)
    return torch.load(content, map_location=map_location, weights_only=True)  # type: ignore[no-any-return]


def _read_pickle(path: Path, map_location: Any, name: str) -> object:
    try:
        # Pass an open file, because torch.load would judge a path by its suffix.
        with torch.serialization.safe_globals(_safe_types()), path.open("rb") as file:
            return torch.load(file, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        match = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"the Python object {match[1]}" if match else "something other than tensors"
        raise WeightsError(
            f"{name} holds {what}, and reading that could run code. If you trust the file, save "
            f"only its tensors, on a machine that has the code it came from:\n"
            f"  model = torch.load({path.name!r}, weights_only=False)\n"
            f"  torch.save(model.state_dict(), 'weights.pth')"
        ) from error
    except MemoryError:
        raise
    except Exception as error:  # damaged bytes raise everything from struct.error to TypeError
        if isinstance(error, EOFError) or "EOF" in str(error):
            raise WeightsError(f"{name} is cut short: copy or download it again") from error
        reason = str(error).partition(". ")[0]  # the rest is about PyTorch's internals
        reason = reason or type(error).__name__
        raise WeightsError(f"{name} is damaged or not a PyTorch file: {reason}") from error


def _safe_types() -> list[Any]:
    """Return the types that training scripts save along with tensors and that hold only values.

    These are ``argparse.Namespace``, for arguments, and NumPy numbers, such as the best accuracy,
    under NumPy's old and new module names.
    """
    scalar = np._core.multiarray.scalar  # type: ignore[attr-defined]
    numbers = [type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i4", "i8", "?")]
    old_scalar = (scalar, "numpy.core.multiarray.scalar")
    return [argparse.Namespace, scalar, old_scalar, np.dtype, *numbers]


# Wrappers that FSDP, activation checkpointing and torch.compile put around inner modules.
_WRAPPER_MODULE = re.compile(
    r"(?<=\.)(_fsdp_wrapped_module|_checkpoint_wrapped_module|_orig_mod)\."
)


def unwrap(
    content: object, source: str, *, prefix: str | None = None, head: str | None = None
) -> Checkpoint:
    """Return the network in the content that a training script saved.

    Args:
        content: nested mappings and lists with tensors in them.
        source: name of the file, for messages.
        prefix, head: as in `read_tensors`.

    Raises:
        WeightsError: the content has no tensors, or several networks.
    """
    if not isinstance(content, Mapping | list | tuple):
        raise WeightsError(f"{source} holds a {type(content).__name__}; expected tensors by name")
    groups: dict[str, dict[str, Tensor]] = {}
    classes: dict[str, Any] = {}
    _flatten(content, "", groups=groups, classes=classes, parents=())
    tensors = {f"{path}{name}": t for path, group in groups.items() for name, t in group.items()}
    plain = {_WRAPPER_MODULE.sub("", name): tensor for name, tensor in tensors.items()}
    if len(plain) == len(tensors):
        tensors = plain
        prefix = prefix and _WRAPPER_MODULE.sub("", f"{prefix}.").removesuffix(".")
    _check_dense(tensors, source)
    if not any(tensor.ndim > 1 for tensor in tensors.values()):
        if not isinstance(content, Mapping):
            raise WeightsError(
                f"{source} holds a {type(content).__name__}; expected tensors by name"
            )
        raise WeightsError(f"{source} holds no tensors: found {_describe(content)}")
    layout = extract_network(tensors, source, prefix=prefix, head=head)
    if layout is None:
        others = _extract_other_network(groups, source, prefix=prefix)
        return Checkpoint(others, classes=classes)
    return Checkpoint(layout.tensors, layout.notes, unclear=layout.unclear, classes=classes)


_SAVE_PLAIN = "Save the network with plain floating-point tensors, as it was trained"


def _check_dense(tensors: Mapping[str, Tensor], source: str) -> None:
    """Raise if a tensor is not dense, such as a sparse or quantized one."""
    for name, tensor in tensors.items():
        kind = str(tensor.layout).removeprefix("torch.")
        if tensor.is_quantized:
            kind = "quantized"
        if tensor.is_nested:
            kind = "nested"
        if kind != "strided":
            raise WeightsError(
                f"{source}: {name} is {kind}; expected a dense tensor of floats. {_SAVE_PLAIN}"
            )


def _flatten(
    content: object,
    path: str,
    *,
    groups: dict[str, dict[str, Tensor]],
    classes: dict[str, Any],
    parents: tuple[int, ...],
) -> None:
    """Collect class names, and tensors by the path to the mapping or list that holds them."""
    if id(content) in parents:  # the content contains itself
        return
    pairs = content.items() if isinstance(content, Mapping) else enumerate(content)  # type: ignore[arg-type]
    for key, value in pairs:
        if isinstance(value, Tensor):
            groups.setdefault(path, {})[str(key)] = value.detach()
        elif key in WRAPPERS and isinstance(value, Mapping | list | tuple) and value:
            classes.setdefault(str(key), value)
        elif isinstance(value, Mapping | list | tuple):
            _flatten(
                value,
                f"{path}{key}.",
                groups=groups,
                classes=classes,
                parents=(*parents, id(content)),
            )


def _extract_other_network(
    groups: Mapping[str, dict[str, Tensor]], source: str, *, prefix: str | None
) -> dict[str, Tensor]:
    """Return the only state dict in a file without a ResNet, with its common prefix removed."""
    paths = sorted(p for p, group in groups.items() if any(t.ndim > 1 for t in group.values()))
    inner = [p for p in paths if not any(other != p and other.startswith(p) for other in paths)]
    inner = [path for path in inner if "optim" not in path] or inner
    if prefix is not None:
        inner = [path for path in inner if f".{prefix.rstrip('.')}." in f".{path}"]
    if len(inner) != 1:
        listed = ", ".join(repr(path.rstrip(".") or ".") for path in paths)
        raise WeightsError(
            f"{source} holds no ResNet, and has tensors under {len(paths)} keys: {listed}. Select "
            "one with --prefix (Python: prefix=...)"
        )
    tensors = {name: t for name, t in groups[inner[0]].items() if name != "n_averaged"}
    while "conv1.weight" not in tensors and _share_prefix(tensors):
        tensors = {name.partition(".")[2]: tensor for name, tensor in tensors.items()}
    return tensors


def describe_differences(
    expected: Mapping[str, Tensor], given: Mapping[str, Tensor], most: int = 3
) -> list[str]:
    """Return sentences on how names and shapes differ, showing at most ``most`` of each kind.

    Args:
        expected: the network's tensors.
        given: the file's tensors.
        most: how many names to show for each kind of difference.
    """
    missing = [name for name in expected if name not in given]
    unknown = [name for name in given if name not in expected]
    reshaped = [n for n in expected if n in given and expected[n].shape != given[n].shape]
    sentences = []
    if missing:
        shown = [f"{n} {tuple(expected[n].shape)}" for n in missing[:most]]
        count = "1 tensor is" if len(missing) == 1 else f"{len(missing)} tensors are"
        sentences.append(f"{count} missing, first {', '.join(shown)}")
    if unknown:
        shown = [f"{n} {tuple(given[n].shape)}" for n in unknown[:most]]
        count = "1 is" if len(unknown) == 1 else f"{len(unknown)} are"
        sentences.append(f"{count} unknown here, first {', '.join(shown)}")
    for n in reshaped[:most]:
        sentences.append(f"{n} is {tuple(given[n].shape)}, expected {tuple(expected[n].shape)}")
    return sentences


def check_floats(expected: Mapping[str, Tensor], given: Mapping[str, Tensor], source: str) -> None:
    """Raise if a tensor does not hold floats where the network does.

    Args:
        expected: the network's tensors.
        given: the file's tensors, with the same names.
        source: name of the file, for messages.

    Raises:
        WeightsError: a tensor holds integers, booleans, complex numbers, or no values.
    """
    for name, tensor in expected.items():
        found = given[name]
        if tensor.is_floating_point() and (found.is_meta or not found.is_floating_point()):
            kind = "meta, without values" if found.is_meta else str(found.dtype)[6:]
            raise WeightsError(
                f"{source}: {name} is {kind}; expected floating-point numbers. {_SAVE_PLAIN}"
            )


def check_finite(tensors: Mapping[str, Tensor], source: str) -> None:
    """Raise if a network with these tensors would give NaN or infinite outputs.

    Raises:
        WeightsError: values are NaN or infinite, or a variance is negative.
    """
    variances = {name: t for name, t in tensors.items() if name.endswith("running_var")}
    kinds = {
        "NaN or infinite values": [
            n for n, t in tensors.items() if not bool(torch.isfinite(t).all())
        ],
        "negative variances": [name for name, t in variances.items() if bool((t < 0).any())],
    }
    for kind, names in kinds.items():
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise WeightsError(
                f"{source} has {kind} in {', '.join(names[:3])}{more}. Its "
                "training diverged, or the file is damaged: use an earlier checkpoint"
            )


def drop_unused(expected: Mapping[str, Tensor], given: dict[str, Tensor]) -> list[str]:
    """Remove from ``given`` the layers that the network never calls, and return their names.

    These are a third (fourth, ...) convolution or norm in a block that has two (three): some code
    creates them without using them. A norm's ``num_batches_tracked`` is added or removed without a
    note, because it matters only to norms without momentum.

    Args:
        expected: the network's tensors.
        given: the file's tensors; changed in place.
    """
    for name in [n for n in (*expected, *given) if n.endswith("num_batches_tracked")]:
        if name in expected:
            given.setdefault(name, torch.zeros((), dtype=torch.long))
        elif not _is_surplus(name, expected):
            given.pop(name, None)
    unused = [name for name in given if name not in expected and _is_surplus(name, expected)]
    for name in unused:
        del given[name]
    return unused


def _is_surplus(name: str, expected: Mapping[str, Tensor]) -> bool:
    """Return whether a tensor belongs to a convolution or norm that the block does not have."""
    match = re.fullmatch(r"(layer\d+\.\d+\.)(?:conv|bn)(\d+)\.\w+", name)
    if match is None:
        return False
    block = match[1]
    number = int(match[2])
    return f"{block}conv1.weight" in expected and f"{block}conv{number}.weight" not in expected


def _describe(content: Mapping[Any, Any]) -> str:
    shown = [f"{key!r}: {type(value).__name__}" for key, value in list(content.items())[:6]]
    return "{" + ", ".join(shown) + (", ...}" if len(content) > 6 else "}")


def _share_prefix(names: Iterable[str]) -> bool:
    prefixes = {name.partition(".")[0] if "." in name else "" for name in names}
    return len(prefixes) == 1 and "" not in prefixes
