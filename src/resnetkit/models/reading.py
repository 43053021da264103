"""A file with tensors -> the tensors by name. Nothing in the file is ever executed."""

from __future__ import annotations

import argparse
import pickle
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import WeightsError

# Where training scripts put the tensors, in the order in which we look: averaged weights are the
# ones that a script which keeps them evaluates.
_NESTS = "ema model_ema state_dict_ema ema_state_dict state_dict model net model_state_dict"
_NESTS += " net_state_dict weights params module checkpoint"


@dataclass(frozen=True)
class Checkpoint:
    """``tensors`` by name, in the file's order, and ``notes`` on what was done to get them."""

    tensors: dict[str, Tensor]
    notes: tuple[str, ...] = ()


def read_tensors(path: Path, map_location: Any = "cpu", source: str = "") -> Checkpoint:
    """Read safetensors or what ``torch.save`` wrote, and take the state dict out of it: without
    the prefixes of wrappers, under our names.

    Args:
        path: the file; its content says what it is, whatever its name ends with.
        map_location: device of the tensors, as in ``torch.load``.
        source: what messages call it, if not by its path.

    Raises:
        WeightsError: the file is missing, damaged, holds no tensors, or holds Python objects.
    """
    name = source or str(path)
    if not path.is_file():
        raise WeightsError(f"{name} is no file; expected a .safetensors or .pth file")
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        raise WeightsError(f"{name} cannot be read: {error.strerror or error}") from error
    if head[4:9] == b"\0\0\0\0{":  # the length of a header in 8 bytes, and the header
        return _cleaned(_read_safetensors(path, map_location, name), name)
    if not head.startswith((b"PK\x03\x04", b"\x80")):
        raise WeightsError(f"{name} is no file of tensors: {_what_it_is(head)}")
    return unwrap(_read_pickle(path, map_location, name), name)


def _what_it_is(head: bytes) -> str:
    """In words, by its first bytes; what is neither safetensors nor from ``torch.save``."""
    if not head:
        return "it is empty"
    begins = head[:20].decode("utf-8", "replace")
    if re.match(rb"\s*<", head):
        return f"it is a web page, such as a log-in or error page (it begins with {begins!r})"
    return f"it is neither safetensors nor from torch.save (it begins with {begins!r})"


def _read_safetensors(path: Path, map_location: Any, name: str) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path, device=str(map_location))
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{name} is damaged or cut short: {error}") from error


def _read_pickle(path: Path, map_location: Any, name: str) -> object:
    try:
        # Opened here, because torch.load would go by what the name ends with.
        with torch.serialization.safe_globals(_plain_values()), path.open("rb") as file:
            return torch.load(file, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"the Python object {named[1]}" if named else "something other than tensors"
        raise WeightsError(
            f"{name} holds {what}, and reading that could run code. Where you trust the file, load "
            "it where it was made and save its tensors alone: torch.save(model.state_dict(), path)"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        said = str(error).partition(". ")[0]  # PyTorch goes on about its own insides
        raise WeightsError(f"{name} is damaged or no PyTorch file: {said}") from error


def _plain_values() -> list[Any]:
    """What training scripts save beside tensors and what holds nothing but values: arguments in a
    Namespace, and the best accuracy as a NumPy number (under its old and its new module name)."""
    scalar = np._core.multiarray.scalar  # type: ignore[attr-defined]
    numbers = [type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i4", "i8", "?")]
    older = (scalar, "numpy.core.multiarray.scalar")
    return [argparse.Namespace, scalar, older, np.dtype, *numbers]


def unwrap(found: object, source: str) -> Checkpoint:
    """The state dict in what a training script saved, without the prefixes of wrappers.

    Raises:
        WeightsError: there are no tensors in it.
    """
    notes: list[str] = []
    while isinstance(found, Mapping):
        inside = _nests(found)
        if not inside:
            break
        if len(inside) > 1:
            others = ", ".join(map(repr, inside[1:]))
            notes.append(f"took the tensors under {inside[0]!r}; the file also has {others}")
        found = found[inside[0]]
    if not isinstance(found, Mapping):
        raise WeightsError(f"{source} holds a {type(found).__name__}; expected tensors by name")
    if not _is_state_dict(found):
        raise WeightsError(f"{source} holds no tensors: found {_describe(found)}")
    return _cleaned(found, source, notes)


def _cleaned(found: Mapping[Any, Any], source: str, notes: Iterable[str] = ()) -> Checkpoint:
    said = list(notes)
    tensors = {str(k): v.detach() for k, v in found.items() if isinstance(v, Tensor)}
    tensors = _strip_prefixes(tensors, said)
    if not tensors:
        raise WeightsError(f"{source} holds no tensors")
    return Checkpoint({_our_name(name): t for name, t in tensors.items()}, tuple(said))


def differences(own: Mapping[str, Tensor], given: Mapping[str, Tensor], most: int = 3) -> list[str]:
    """What differs between the names and shapes of a network and of a file, in words: at most
    ``most`` of each kind."""
    missing = [name for name in own if name not in given]
    surplus = [name for name in given if name not in own]
    shapes = [n for n in own if n in given and own[n].shape != given[n].shape]
    said = []
    if missing:
        named = [f"{n} {tuple(own[n].shape)}" for n in missing[:most]]
        count = "1 tensor is" if len(missing) == 1 else f"{len(missing)} tensors are"
        said.append(f"{count} missing, first {', '.join(named)}")
    if surplus:
        named = [f"{n} {tuple(given[n].shape)}" for n in surplus[:most]]
        count = "1 is" if len(surplus) == 1 else f"{len(surplus)} are"
        said.append(f"{count} unknown here, first {', '.join(named)}")
    for n in shapes[:most]:
        said.append(f"{n} is {tuple(given[n].shape)}, expected {tuple(own[n].shape)}")
    return said


def drop_unused(own: Mapping[str, Tensor], given: dict[str, Tensor]) -> list[str]:
    """Take out of ``given`` what the network ``own`` has no use for, and give the names.

    That is a third (fourth, ...) convolution or norm in blocks that have two (three): some code
    makes them and never calls them. The counts of a norm's batches may come and go in silence,
    since they only matter to norms without momentum.
    """
    for name in [n for n in (*own, *given) if n.endswith("num_batches_tracked")]:
        if name not in own:
            if _in_surplus_layer(name, own) is None:
                given.pop(name, None)
        else:
            given.setdefault(name, torch.zeros((), dtype=torch.long))
    unused = [name for name in given if name not in own and _in_surplus_layer(name, own)]
    for name in unused:
        del given[name]
    return unused


def _in_surplus_layer(name: str, own: Mapping[str, Tensor]) -> re.Match[str] | None:
    found = re.fullmatch(r"(layer\d+\.\d+\.)(?:conv|bn)(\d+)\.\w+", name)
    if found is None:
        return None
    block, number = found[1], int(found[2])
    known = f"{block}conv1.weight" in own and f"{block}conv{number}.weight" not in own
    return found if known else None


def _nests(found: Mapping[Any, Any]) -> list[str]:
    """The known names in ``found`` under which tensors lie, at whatever depth. They come before
    tensors beside them, which are statistics of the training, such as a confusion matrix."""
    maps = {n: found[n] for n in _NESTS.split() if isinstance(found.get(n), Mapping)}
    return [name for name, inner in maps.items() if _is_state_dict(inner) or _nests(inner)]


def _is_state_dict(found: Mapping[Any, Any]) -> bool:
    return any(isinstance(value, Tensor) and value.ndim > 1 for value in found.values())


def _describe(found: Mapping[Any, Any]) -> str:
    shown = [f"{key!r}: {type(value).__name__}" for key, value in list(found.items())[:6]]
    return "{" + ", ".join(shown) + (", ...}" if len(found) > 6 else "}")


def _strip_prefixes(tensors: dict[str, Tensor], notes: list[str]) -> dict[str, Tensor]:
    """The network's own names: without ``module.``, ``backbone.`` and the like before them."""
    tensors = {name: t for name, t in tensors.items() if name != "n_averaged"}  # AveragedModel's
    first = "layer1.0.conv1.weight"
    found = sorted(
        {n.removesuffix(first) for n in tensors if f".{n}".endswith(f".{first}")}, key=len
    )
    if not found:  # no ResNet; what all names have in common can go all the same
        while "conv1.weight" not in tensors and _share_a_root(tensors):
            tensors = {name.partition(".")[2]: tensor for name, tensor in tensors.items()}
        return tensors
    prefix = found[0]
    if len(found) > 1:
        others = ", ".join(map(repr, found[1:]))
        notes.append(f"took the network under {prefix!r}; the file also has {others}")
    inside = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
    outside = [n for n in tensors if not n.startswith(prefix)]
    for name in [n for n in outside if n.endswith(("head.fc.weight", "head.fc.bias"))]:
        inside.setdefault(name[name.index("fc.") :], tensors[name])
        outside.remove(name)
    if outside:
        notes.append(f"left out what is not in {prefix!r}: {len(outside)}, first {outside[0]}")
    return inside


def _share_a_root(names: Iterable[str]) -> bool:
    roots = {name.partition(".")[0] if "." in name else "" for name in names}
    return len(roots) == 1 and "" not in roots


def _our_name(name: str) -> str:
    """Names that code for CIFAR often gives to the head and to projections."""
    name = re.sub(r"^(linear|classifier)\.(weight|bias)$", r"fc.\2", name)
    return re.sub(r"^(layer\d+\.\d+)\.shortcut\.", r"\1.downsample.", name)
