"""Find the linear layer in a checkpoint that is its network's head."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from ...errors import WeightsError

NONE = "none"
"""Passed instead of a head's name to use the network without its head."""


@dataclass(frozen=True)
class Head:
    """The layers that follow a network's pooling in a checkpoint.

    Args:
        used: maps the file's names to this package's names; empty if no head was selected.
        left: names of other layers that look like heads or parts of one.
        notes: the choices that were made.
        unclear: why no head was selected although there are candidates; else "".
    """

    used: dict[str, str] = field(default_factory=dict)
    left: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()
    unclear: str = ""


def find_head(
    rest: Mapping[str, Tensor],
    root: str,
    *,
    channels: int,
    wanted: str | None,
    source: str,
    several: bool,
) -> Head:
    """Return the linear layer that reads the pooled vector.

    Args:
        rest: the tensors outside all blocks and stems.
        root: the prefix of the network's tensor names.
        channels: length of the pooled vector.
        wanted: the name of the layer; ``none`` for no head; None to look for it.
        source: name of the file, for messages.
        several: whether the file has other networks; a layer inside ``root`` is then preferred.

    Raises:
        WeightsError: there is no layer called ``wanted``.
    """
    linear = {n.removesuffix(".weight"): t for n, t in rest.items() if _is_linear(n, t)}
    groups = {module: _sequence_of(module, root) for module in linear}
    left = frozenset(n for n in rest if any(_is_under(n, group) for group in groups.values()))
    readers = sorted(m for m, t in linear.items() if t.shape[1] == channels)
    if several and any(m.startswith(root) for m in readers) and root:
        readers = [m for m in readers if m.startswith(root)]
    if wanted == NONE:
        return Head(left=left, notes=("used the network without its head",) if left else ())
    if wanted is not None:
        module = _match_head(readers, groups, wanted=wanted, root=root, source=source)
        return _take_head(module, rest, root=root, left=left)
    if not readers:
        others = sorted(n for n, t in rest.items() if t.ndim > 1 and channels in t.shape[:2])
        if not others:
            return Head(left=left)
        unclear = _describe_unusable(rest, others, "has no linear head")
        return Head(left=left | set(others), unclear=unclear)
    companions = {m: _find_companions(m, groups[m], rest, channels=channels) for m in readers}
    if len(readers) == 1 and not companions[readers[0]]:
        return _take_head(readers[0], rest, root=root, left=left)
    if len({groups[m] for m in readers}) > 1:
        listed = ", ".join(f"{m!r} {tuple(linear[m].shape)}" for m in readers)
        return Head(
            left=left,
            unclear=f"has {len(readers)} layers that could be the head: {listed}. Select one: "
            f"--head {readers[0]}, or --head none for no head (training: --set "
            f"weights_head={readers[0]}; Python: head=...)",
        )
    layers = sorted({n for names in companions.values() for n in names})
    first = f"{readers[0]}.weight"
    shown = [first, *(n for n in layers if n != first)]
    unclear = _describe_unusable(rest, shown, "has a head of several layers")
    return Head(left=left | set(layers), unclear=unclear)


def _describe_unusable(rest: Mapping[str, Tensor], names: list[str], what: str) -> str:
    shown = ", ".join(f"{n} {tuple(rest[n].shape)}" for n in names[:3])
    return (
        f"{what}: {shown}. A ResNet in resnetkit has one linear layer after its pooling layer; "
        "--head none uses the network without its head (Python: head='none')"
    )


def _is_linear(name: str, tensor: Tensor) -> bool:
    """Return whether a tensor is the weight of a linear layer, or of an equivalent 1x1 conv."""
    is_matrix = tensor.ndim == 2 or (tensor.ndim == 4 and tuple(tensor.shape[2:]) == (1, 1))
    return name.endswith(".weight") and is_matrix and len(tensor) > 0


def _sequence_of(module: str, root: str) -> str:
    """Return the sequence that holds a layer, such as ``fc`` for ``fc.1``, or else the layer."""
    parent = module.rpartition(".")[0]
    return module if f"{root}.".startswith(f"{parent}.") or not parent else parent


def _is_under(name: str, module: str) -> bool:
    return name.startswith(f"{module}.")


def _find_companions(
    module: str, group: str, rest: Mapping[str, Tensor], *, channels: int
) -> list[str]:
    """Return the tensors of other layers in the same head.

    These are layers in the same sequence, a norm before the layer, or a layer that reads its
    output.
    """
    count = len(rest[f"{module}.weight"])
    found = [n for n in rest if _is_under(n, group) and not _is_under(n, module)]
    for name, tensor in rest.items():
        if _is_under(name, module):
            continue
        is_norm = name.endswith(".running_mean") and len(tensor) in (channels, count)
        if is_norm or (tensor.ndim > 1 and tensor.shape[1] == count and count != channels):
            found.append(name)
    own = (f"{module}.weight", f"{module}.bias")
    return found + [n for n in rest if _is_under(n, module) and n not in own]


def _match_head(
    readers: list[str], groups: Mapping[str, str], *, wanted: str, root: str, source: str
) -> str:
    """Return the layer called ``wanted``: its full name, the end of it, or its sequence's name."""
    wanted = wanted.rstrip(".")
    tests: tuple[Callable[[str], bool], ...] = (
        lambda m: m == wanted,
        lambda m: m == f"{root}{wanted}",
        lambda m: wanted in (groups[m], groups[m].removeprefix(root)),
        lambda m: f".{m}".endswith(f".{wanted}"),
    )
    for test in tests:
        found = [m for m in readers if test(m)]
        if len(found) == 1:
            return found[0]
    listed = ", ".join(map(repr, readers)) or "none"
    raise WeightsError(
        f"{source} has no head {wanted!r}; linear layers that read the pooled vector: {listed}"
    )


def _take_head(module: str, rest: Mapping[str, Tensor], *, root: str, left: frozenset[str]) -> Head:
    used = {f"{module}.weight": "fc.weight"}
    bias = f"{module}.bias"
    if bias in rest:
        used[bias] = "fc.bias"
    notes = []
    if module.removeprefix(root) not in ("fc", "linear", "classifier", "head.fc"):
        notes.append(f"used {module!r} as the head")
    if bias not in rest:
        notes.append("the head has no bias: used zeros")
    return Head(used, left - used.keys(), notes=tuple(notes))


def count_shared_parts(name: str, root: str) -> int:
    """Return the number of leading parts that two dotted names share."""
    pairs = zip(name.split("."), root.rstrip(".").split("."), strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
