"""Which linear layer of a checkpoint is the head of its network."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from ...errors import WeightsError

NONE = "none"
"""In place of a head's name: take the network without it."""


@dataclass(frozen=True)
class Head:
    """What was found after a network's pooling.

    Args:
        used: our names by theirs; empty if there is no head, or none that could be decided on.
        left: names of other layers that look like heads or parts of one.
        notes: what was chosen.
        unclear: why nothing was chosen, although there is something to choose from.
    """

    used: dict[str, str] = field(default_factory=dict)
    left: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()
    unclear: str = ""


def find_head(
    rest: Mapping[str, Tensor],
    root: str,
    channels: int,
    wanted: str | None,
    source: str,
    several: bool,
) -> Head:
    """Find the linear layer that reads the ``channels`` of the pooled vector.

    Args:
        rest: the tensors that belong to no block and no stem.
        root: what the names of the network begin with.
        wanted: the name of the layer; ``none`` for no head.
        several: the file has other networks too, so that a layer inside ``root`` is this one's.

    Raises:
        WeightsError: there is no layer of the name ``wanted``.
    """
    linear = {n.removesuffix(".weight"): t for n, t in rest.items() if _is_linear(n, t)}
    groups = {module: _group(module, root) for module in linear}
    left = frozenset(n for n in rest if any(_under(n, group) for group in groups.values()))
    reading = sorted(m for m, t in linear.items() if t.shape[1] == channels)
    if several and any(m.startswith(root) for m in reading) and root:
        reading = [m for m in reading if m.startswith(root)]
    if wanted == NONE:
        return Head(left=left, notes=("took the network without its head",) if left else ())
    if wanted is not None:
        module = _named(reading, groups, wanted, root, source)
        return _taken(module, rest, root, left)
    if not reading:
        readers = sorted(n for n, t in rest.items() if t.ndim > 1 and channels in t.shape[:2])
        if not readers:
            return Head(left=left)
        return Head(left=left | set(readers), unclear=_unclear(rest, readers, "has no linear head"))
    whole = [m for m in reading if not _more(m, groups[m], rest, linear, channels)]
    if len(whole) == len(reading) == 1:
        return _taken(whole[0], rest, root, left)
    if len(reading) > 1 and len({groups[m] for m in reading}) > 1:
        named = ", ".join(f"{m!r} {tuple(linear[m].shape)}" for m in reading)
        choice = f"--head {reading[0]}"
        return Head(
            left=left,
            unclear=f"has {len(reading)} layers that could be the head: {named}. Name the one to "
            f"take: {choice}, or --head none for the network alone (training: --set "
            f"weights_head={reading[0]}; Python: head=...)",
        )
    layers = sorted({n for m in reading for n in _more(m, groups[m], rest, linear, channels)})
    first = f"{reading[0]}.weight"
    more = _unclear(rest, [first, *(n for n in layers if n != first)], "has a head of more layers")
    return Head(left=left | set(layers), unclear=more)


def _unclear(rest: Mapping[str, Tensor], names: list[str], what: str) -> str:
    shown = ", ".join(f"{n} {tuple(rest[n].shape)}" for n in names[:3])
    return (
        f"{what}: {shown}. A ResNet here has one linear layer after its pooling; --head none takes "
        "the network alone (Python: head='none')"
    )


def _is_linear(name: str, tensor: Tensor) -> bool:
    """A linear layer, or the 1x1 convolution that is one."""
    flat = tensor.ndim == 2 or (tensor.ndim == 4 and tuple(tensor.shape[2:]) == (1, 1))
    return name.endswith(".weight") and flat and len(tensor) > 0


def _group(module: str, root: str) -> str:
    """The sequence that a layer is part of, such as ``fc`` of ``fc.1``; or the layer itself."""
    parent = module.rpartition(".")[0]
    return module if f"{root}.".startswith(f"{parent}.") or not parent else parent


def _under(name: str, module: str) -> bool:
    return name.startswith(f"{module}.")


def _more(
    module: str,
    group: str,
    rest: Mapping[str, Tensor],
    linear: Mapping[str, Tensor],
    channels: int,
) -> list[str]:
    """Other layers that belong to the same head: in its sequence, a norm before it, or a layer
    that reads what it gives."""
    count = len(linear[module])
    found = [n for n in rest if _under(n, group) and not _under(n, module)]
    for name, tensor in rest.items():
        if _under(name, module):
            continue
        norm = name.endswith(".running_mean") and len(tensor) in (channels, count)
        if norm or (tensor.ndim > 1 and tensor.shape[1] == count and count != channels):
            found.append(name)
    own = (f"{module}.weight", f"{module}.bias")
    return found + [n for n in rest if _under(n, module) and n not in own]


def _named(
    reading: list[str], groups: Mapping[str, str], wanted: str, root: str, source: str
) -> str:
    wanted = wanted.rstrip(".")
    for test in (
        lambda m: m == wanted,
        lambda m: m == f"{root}{wanted}",
        lambda m: wanted in (groups[m], groups[m].removeprefix(root)),
        lambda m: f".{m}".endswith(f".{wanted}"),
    ):
        found = [m for m in reading if test(m)]
        if len(found) == 1:
            return found[0]
    there = ", ".join(map(repr, reading)) or "none"
    raise WeightsError(
        f"{source} has no head {wanted!r}; linear layers that read the pooled vector: {there}"
    )


def _taken(module: str, rest: Mapping[str, Tensor], root: str, left: frozenset[str]) -> Head:
    used = {f"{module}.weight": "fc.weight"}
    bias = f"{module}.bias"
    if bias in rest:
        used[bias] = "fc.bias"
    notes = []
    if module.removeprefix(root) not in ("fc", "linear", "classifier", "head.fc"):
        notes.append(f"took {module!r} for the head")
    if bias not in rest:
        notes.append("the head has no bias: took zeros")
    return Head(used, left - used.keys(), tuple(notes))


def common_parts(name: str, root: str) -> int:
    """How many parts of two dotted names are the same from the beginning."""
    pairs = zip(name.split("."), root.rstrip(".").split("."), strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
