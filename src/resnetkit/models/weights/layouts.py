"""The tensors of any checkpoint -> those of one ResNet, under our names.

A network is found by the names of its blocks and the shapes around them; what comes before these
names, and where in the file they lie, does not matter. The order of the tensors decides nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...errors import WeightsError
from .heads import Head, common_parts, find_head

_BLOCK = re.compile(r"(.*?)([^.\d]*)(\d+)([^.\d]*)\.0\.conv1\.weight")
_HUGGING_FACE = "embedder.embedder.convolution.weight"
_DARKNET = "layer1.0.conv.weight"
# What a file holds beside networks: nothing there is a layer of one.
_JUNK = re.compile(r"(^|\.)(\w*optim\w*|\w*scheduler\w*|scaler|callbacks|loops|\w*rng\w*)\.")


@dataclass(frozen=True)
class Body:
    """The layers of one network up to its pooling.

    Args:
        root: what its names begin with, such as ``state_dict.module.backbone.``, or nothing.
        names: ours by theirs.
        channels: of its last map.
    """

    root: str
    names: dict[str, str]
    channels: int

    @property
    def label(self) -> str:
        """What a user types for it."""
        return self.root.rstrip(".") or "."


@dataclass(frozen=True)
class Layout:
    """``tensors`` of one network under our names; ``notes`` say what was chosen; ``unclear`` says
    why there is no head, although the file has something that could be one."""

    tensors: dict[str, Tensor]
    notes: tuple[str, ...] = ()
    unclear: str = ""


def arrange(
    tensors: Mapping[str, Tensor], source: str, prefix: str | None = None, head: str | None = None
) -> Layout | None:
    """Find the network among ``tensors``; None if there is no residual network.

    Args:
        prefix: which network to take, if there are several: what its names begin with.
        head: which linear layer is the head; ``none`` leaves it out.

    Raises:
        WeightsError: there are several networks and no ``prefix``, or no such prefix or head.
    """
    useful = {n: t for n, t in tensors.items() if not _JUNK.search(n) and n != "n_averaged"}
    bodies = _bodies(useful)
    if not bodies:
        return None
    body, notes = _select(bodies, useful, source, prefix)
    _refuse_deep_stem(useful, body.root, source)
    others = [other.root for other in bodies if other is not body]
    layers = {name for each in bodies for name in each.names}  # only looked up in
    rest = {n: t for n, t in useful.items() if n not in layers and t.ndim > 0}
    mine = {n: t for n, t in rest.items() if _belongs(n, body.root, others)}
    found = find_head(mine, body.root, body.channels, head, source, several=bool(others))
    left = [
        n for n in rest if n not in found.used and (n in found.left or not n.startswith(body.root))
    ]
    if left:
        where = repr(body.root) if body.root else "the network"
        notes.append(f"left out what is not in {where}: {len(left)}, first {min(left)}")
    taken = _under_our_names(useful, body, found, set(left), others)
    return Layout(taken, (*notes, *found.notes), found.unclear)


def _refuse_deep_stem(tensors: Mapping[str, Tensor], root: str, source: str) -> None:
    """Refuse a network that begins with several convolutions. One of them alone would be taken for
    the first layer of another network."""
    stem = re.compile(rf"{re.escape(root)}conv1\.\d+\.weight")
    found = [name for name, tensor in tensors.items() if tensor.ndim == 4 and stem.fullmatch(name)]
    if found:
        shown = ", ".join(f"{name} {tuple(tensors[name].shape)}" for name in found)
        raise WeightsError(
            f"{source} begins with several convolutions ({shown}): a deep stem, as timm's "
            "resnet50d, resnet26t and resnet50s have. The networks here have one convolution there"
        )


def _belongs(name: str, root: str, others: Sequence[str]) -> bool:
    """Whether a tensor outside all bodies is at least as near to this one as to the others."""
    return all(common_parts(name, root) >= common_parts(name, other) for other in others)


def _under_our_names(
    tensors: Mapping[str, Tensor], body: Body, head: Head, left: set[str], others: Sequence[str]
) -> dict[str, Tensor]:
    """The body, the head, and what else lies inside the body, which nothing here knows."""
    taken = {}
    for name, tensor in tensors.items():
        if name in body.names:
            taken[body.names[name]] = tensor
        elif name in head.used:
            ours = head.used[name]
            taken[ours] = tensor.flatten(1) if ours == "fc.weight" else tensor
        elif name not in left and name.startswith(body.root) and _belongs(name, body.root, others):
            taken[name.removeprefix(body.root)] = tensor
    if "fc.weight" in taken and "fc.bias" not in taken and taken["fc.weight"].ndim == 2:
        taken["fc.bias"] = taken["fc.weight"].new_zeros(len(taken["fc.weight"]))
    return taken


def _bodies(tensors: Mapping[str, Tensor]) -> list[Body]:
    """The networks in the file, sorted by where they lie."""
    groups: dict[tuple[str, str, str], list[int]] = {}
    found: list[Body | None] = []
    for name, tensor in tensors.items():
        if tensor.ndim != 4:
            continue
        if match := _BLOCK.fullmatch(name):
            root, before, number, after = match.groups()
            groups.setdefault((root, before, after), []).append(int(number))
        elif name.endswith(_HUGGING_FACE):
            found.append(_of_hugging_face(tensors, name.removesuffix(_HUGGING_FACE)))
        elif f".{name}".endswith(f".{_DARKNET}"):
            found.append(_of_darknet(tensors, name.removesuffix(_DARKNET)))
    for (root, before, after), numbers in sorted(groups.items()):
        found.append(_of_stages(tensors, root, (before, after), sorted(numbers)))
    return sorted((body for body in found if body is not None), key=lambda body: body.root)


def _of_stages(
    tensors: Mapping[str, Tensor], root: str, around: tuple[str, str], numbers: list[int]
) -> Body | None:
    """A network whose stages are called ``layer1``, ``layer2``; ``4``, ``5``; ``stage0``, ..."""
    before, after = around
    first = min(1, numbers[0]) if around == ("layer", "") else numbers[0]
    if first not in numbers:
        return None
    stages = {f"{root}{before}{n}{after}.": f"layer{n - first + 1}." for n in numbers}
    names = {}
    for theirs, ours in stages.items():
        shortcuts = _shortcuts(tensors, theirs)
        for name in tensors:
            if name.startswith(theirs):
                block, dot, inner = name.removeprefix(theirs).partition(".")
                for shortcut in shortcuts:
                    if inner.startswith(f"{shortcut}."):
                        inner = f"downsample{inner.removeprefix(shortcut)}"
                names[name] = f"{ours}{block}{dot}{inner}"
    stem, root = _stem(tensors, root, names, tensors[f"{next(iter(stages))}0.conv1.weight"])
    channels = _channels(tensors, {ours: theirs for theirs, ours in names.items()})
    return Body(root, {**stem, **names}, channels)


def _shortcuts(tensors: Mapping[str, Tensor], stage: str) -> list[str]:
    """What projections are called in a stage: a 1x1 convolution and its norm, in sequence."""
    found = {"shortcut"}
    for name, tensor in tensors.items():
        match = re.fullmatch(r"\d+\.(\w+)\.0\.weight", name.removeprefix(stage))
        if name.startswith(stage) and match and tensor.ndim == 4 and tensor.shape[-1] == 1:
            norm = tensors.get(f"{name.removesuffix('0.weight')}1.running_mean")
            if norm is not None and norm.shape == tensor.shape[:1]:
                found.add(match[1])
    return sorted(found)


def _stem(
    tensors: Mapping[str, Tensor], root: str, stages: Mapping[str, str], first: Tensor
) -> tuple[dict[str, str], str]:
    """The names of the first convolution and its norm, and where the network begins: at ``root``,
    or one level above it (stages in a list)."""
    above = root[: root.rstrip(".").rfind(".") + 1]
    for place in dict.fromkeys((root, above)):
        outside = {n: t for n, t in tensors.items() if n.startswith(place) and n not in stages}
        own = {n: n.removeprefix(place) for n in outside}
        usual = {n: ours for n, ours in own.items() if ours.startswith(("conv1.", "bn1."))}
        if f"{place}conv1.weight" in usual:
            return usual, place
        convolutions = [
            n
            for n, t in outside.items()
            if t.ndim == 4 and n.endswith(".weight") and len(t) == first.shape[1]
        ]
        norms = [
            n.removesuffix("running_mean")
            for n, t in outside.items()
            if n.endswith(".running_mean") and len(t) == first.shape[1]
        ]
        if len(convolutions) == len(norms) == 1:
            parts = {convolutions[0].removesuffix("weight"): "conv1.", norms[0]: "bn1."}
            return {
                n: ours + n.removeprefix(theirs)
                for theirs, ours in parts.items()
                for n in outside
                if n.startswith(theirs)
            }, place
    return {}, root


def _of_hugging_face(tensors: Mapping[str, Tensor], root: str) -> Body:
    """The names of transformers' ``ResNetModel``."""
    names = {}
    kinds = {"convolution": "conv", "normalization": "bn"}
    for name in tensors:
        inner = name.removeprefix(root) if name.startswith(root) else ""
        if match := re.fullmatch(r"embedder\.embedder\.(convolution|normalization)\.(\w+)", inner):
            names[name] = f"{kinds[match[1]]}1.{match[2]}"
        elif match := re.fullmatch(
            r"encoder\.stages\.(\d+)\.layers\.(\d+)\.(?:layer\.(\d+)|(shortcut))"
            r"\.(convolution|normalization)\.(\w+)",
            inner,
        ):
            stage, block, layer, shortcut, kind, what = match.groups()
            place = f"layer{int(stage) + 1}.{block}"
            if shortcut:
                names[name] = f"{place}.downsample.{int(kind == 'normalization')}.{what}"
            else:
                names[name] = f"{place}.{kinds[kind]}{int(layer) + 1}.{what}"
    return Body(root, names, _channels(tensors, {ours: theirs for theirs, ours in names.items()}))


def _of_darknet(tensors: Mapping[str, Tensor], root: str) -> Body:
    own = {n: n.removeprefix(root) for n in tensors if n.startswith(root)}
    names = {n: ours for n, ours in own.items() if re.match(r"(conv1|bn1|layer\d+)\.", ours)}
    last = [n for n in names if n.endswith(".expand.conv.weight")]
    return Body(root, names, max((len(tensors[n]) for n in last), default=0))


def _channels(tensors: Mapping[str, Tensor], theirs: Mapping[str, str]) -> int:
    """Of the last map: what the last convolution of the first block of the last stage gives."""
    stage = 1
    while f"layer{stage + 1}.0.conv1.weight" in theirs:
        stage += 1
    block = f"layer{stage}.0."
    if f"{block}conv1.weight" not in theirs:
        return 0
    basic = tensors[theirs[f"{block}conv1.weight"]].shape[-1] == 3
    last = theirs.get(f"{block}conv{2 if basic else 3}.weight")
    return 0 if last is None else len(tensors[last])


def _select(
    bodies: list[Body], tensors: Mapping[str, Tensor], source: str, prefix: str | None
) -> tuple[Body, list[str]]:
    """The network that ``prefix`` names, or the only one there is."""
    chosen = bodies
    if prefix is not None:
        chosen = _named(bodies, prefix)
        there = ", ".join(repr(body.label) for body in bodies)
        if not chosen:
            raise WeightsError(f"{source} has no network under {prefix!r}; it has {there}")
    there = ", ".join(repr(body.label) for body in chosen)
    if len(chosen) > 1 and not _equal(chosen, tensors):
        raise WeightsError(
            f"{source} holds {len(chosen)} networks: {there}. Name the one to take: "
            f"--prefix {chosen[0].label} (training: --set weights_prefix={chosen[0].label}; "
            f"Python: prefix={chosen[0].label!r})"
        )
    others = ", ".join(repr(body.label) for body in bodies if body is not chosen[0])
    took = f"took the network under {chosen[0].label!r}; the file also has {others}"
    return chosen[0], [took] if others else []


def _named(bodies: list[Body], prefix: str) -> list[Body]:
    """Those that lie exactly there; or whose place ends so; or that lie below."""
    wanted = "" if prefix == "." else f"{prefix.rstrip('.')}."
    tests = (
        lambda root: root == wanted,
        lambda root: bool(wanted) and f".{root}".endswith(f".{wanted}"),
        lambda root: bool(wanted) and f".{wanted}" in f".{root}",
    )
    for test in tests:
        if found := [body for body in bodies if test(body.root)]:
            return found
    return []


def _equal(bodies: list[Body], tensors: Mapping[str, Tensor]) -> bool:
    """Whether all hold the same numbers, in the body and beside it."""

    def content(body: Body) -> dict[str, Tensor]:
        others = [other.root for other in bodies if other is not body]
        found = {}
        for name, tensor in tensors.items():
            own = common_parts(name, body.root)
            nearest = max(common_parts(name, other) for other in others)
            if own > nearest or (own == nearest and not body.root):
                tail = ".".join(name.split(".")[own:])
                found[body.names.get(name, tail)] = tensor
        return found

    first, *rest = map(content, bodies)
    return all(
        first.keys() == other.keys()
        and all(torch.equal(tensor, other[name]) for name, tensor in first.items())
        for other in rest
    )
