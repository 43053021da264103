"""A file with tensors -> the tensors by name. Nothing in the file is ever executed."""

from __future__ import annotations

import argparse
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
from .containers import check_archive, what_it_is
from .layouts import arrange


@dataclass(frozen=True)
class Checkpoint:
    """What was read from a file.

    Args:
        tensors: by name, in the file's order.
        notes: what was done to get them.
        unclear: why there is no head, although the file has something that could be one.
        classes: what the file says of its classes, by the name under which it says so.
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
    """Read safetensors or what ``torch.save`` wrote, and take the network out of it: without
    the prefixes of wrappers, under our names.

    Args:
        path: the file; its content says what it is, whatever its name ends with.
        map_location: device of the tensors, as in ``torch.load``.
        source: what messages call it, if not by its path.
        prefix: which network to take, if the file has several: what its names begin with.
        head: which linear layer is the head, if several could be; ``none`` takes no head.

    Raises:
        WeightsError: the file is missing, damaged, holds no tensors, or holds Python objects; or
            it has several networks, and no ``prefix`` says which to take.
    """
    name = source or str(path)
    if not path.is_file():
        raise WeightsError(f"{name} is no file; expected a .safetensors or .pth file")
    try:
        with path.open("rb") as file:
            start = file.read(512)
    except OSError as error:
        raise WeightsError(f"{name} cannot be read: {error.strerror or error}") from error
    if start[4:9] == b"\0\0\0\0{":  # the length of a header in 8 bytes, and the header
        found: object = _read_safetensors(path, map_location, name)
    elif start.startswith((b"PK\x03\x04", b"\x80")):
        check_archive(path, start, name)
        found = _read_pickle(path, map_location, name)
    else:
        raise WeightsError(f"{name} is no file of tensors: {what_it_is(start)}")
    return unwrap(found, name, prefix, head)


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
            f"{name} holds {what}, and reading that could run code. If you trust the file, save "
            f"its tensors alone where its code is installed:\n"
            f"  model = torch.load({path.name!r}, weights_only=False)\n"
            f"  torch.save(model.state_dict(), 'weights.pth')"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        if isinstance(error, EOFError) or "EOF" in str(error):
            raise WeightsError(f"{name} is cut short: copy or download it again") from error
        said = str(error).partition(". ")[0]  # PyTorch goes on about its own insides
        raise WeightsError(f"{name} is damaged or no PyTorch file: {said}") from error


def _plain_values() -> list[Any]:
    """What training scripts save beside tensors and what holds nothing but values: arguments in a
    Namespace, and the best accuracy as a NumPy number (under its old and its new module name)."""
    scalar = np._core.multiarray.scalar  # type: ignore[attr-defined]
    numbers = [type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i4", "i8", "?")]
    older = (scalar, "numpy.core.multiarray.scalar")
    return [argparse.Namespace, scalar, older, np.dtype, *numbers]


def unwrap(
    found: object, source: str, prefix: str | None = None, head: str | None = None
) -> Checkpoint:
    """Take the network out of what a training script saved; see `read_tensors`.

    Raises:
        WeightsError: there are no tensors in it, or several networks.
    """
    if not isinstance(found, Mapping | list | tuple):
        raise WeightsError(f"{source} holds a {type(found).__name__}; expected tensors by name")
    maps: dict[str, dict[str, Tensor]] = {}
    classes: dict[str, Any] = {}
    _flatten(found, "", maps, classes, ())
    tensors = {f"{place}{name}": t for place, own in maps.items() for name, t in own.items()}
    if not any(tensor.ndim > 1 for tensor in tensors.values()):
        if not isinstance(found, Mapping):
            raise WeightsError(f"{source} holds a {type(found).__name__}; expected tensors by name")
        raise WeightsError(f"{source} holds no tensors: found {_describe(found)}")
    layout = arrange(tensors, source, prefix, head)
    if layout is None:
        return Checkpoint(_other_network(maps, source, prefix), (), "", classes)
    return Checkpoint(layout.tensors, layout.notes, layout.unclear, classes)


def _flatten(
    found: object,
    place: str,
    maps: dict[str, dict[str, Tensor]],
    classes: dict[str, Any],
    above: tuple[int, ...],
) -> None:
    """Collect the tensors of all mappings and lists, by the place of these; and what is said of
    classes."""
    if id(found) in above:  # it holds itself
        return
    pairs = found.items() if isinstance(found, Mapping) else enumerate(found)  # type: ignore[arg-type]
    for key, value in pairs:
        if isinstance(value, Tensor):
            maps.setdefault(place, {})[str(key)] = value.detach()
        elif key in WRAPPERS and isinstance(value, Mapping | list | tuple) and value:
            classes.setdefault(str(key), value)
        elif isinstance(value, Mapping | list | tuple):
            _flatten(value, f"{place}{key}.", maps, classes, (*above, id(found)))


def _other_network(
    maps: Mapping[str, dict[str, Tensor]], source: str, prefix: str | None
) -> dict[str, Tensor]:
    """The one state dict in the file, of a network that is no ResNet, without the name that all
    its tensors begin with."""
    states = sorted(place for place, own in maps.items() if any(t.ndim > 1 for t in own.values()))
    inner = [p for p in states if not any(other != p and other.startswith(p) for other in states)]
    inner = [place for place in inner if "optim" not in place] or inner
    if prefix is not None:
        inner = [place for place in inner if f".{prefix.rstrip('.')}." in f".{place}"]
    if len(inner) != 1:
        there = ", ".join(repr(place.rstrip(".") or ".") for place in states)
        raise WeightsError(
            f"{source} holds no ResNet, and tensors in {len(states)} places: {there}; --prefix "
            "(Python: prefix=...) names one of them"
        )
    tensors = {name: t for name, t in maps[inner[0]].items() if name != "n_averaged"}
    while "conv1.weight" not in tensors and _share_a_root(tensors):
        tensors = {name.partition(".")[2]: tensor for name, tensor in tensors.items()}
    return tensors


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


def check_finite(tensors: Mapping[str, Tensor], source: str) -> None:
    """Make sure that a network of these tensors gives numbers.

    Raises:
        WeightsError: values are NaN or infinite, or a variance is negative.
    """
    variances = {name: t for name, t in tensors.items() if name.endswith("running_var")}
    kinds = {
        "NaN or infinite": [n for n, t in tensors.items() if not bool(torch.isfinite(t).all())],
        "negative variances": [name for name, t in variances.items() if bool((t < 0).any())],
    }
    for kind, wrong in kinds.items():
        if wrong:
            more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
            raise WeightsError(
                f"{source} has values that are {kind} in {', '.join(wrong[:3])}{more}. Its "
                "training diverged, or the file is damaged: take an earlier checkpoint"
            )


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


def _describe(found: Mapping[Any, Any]) -> str:
    shown = [f"{key!r}: {type(value).__name__}" for key, value in list(found.items())[:6]]
    return "{" + ", ".join(shown) + (", ...}" if len(found) > 6 else "}")


def _share_a_root(names: Iterable[str]) -> bool:
    roots = {name.partition(".")[0] if "." in name else "" for name in names}
    return len(roots) == 1 and "" not in roots
