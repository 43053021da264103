"""Extract the tensors of one ResNet from a checkpoint, under this package's names.

A network is recognized by the names of its blocks and the shapes of the layers around them. The
prefix of the names and the order of the tensors do not matter.

Below, ``root`` is the prefix of a network's tensor names, such as
``state_dict.module.backbone.`` or "".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...errors import WeightsError
from .heads import Head, count_shared_parts, find_head

_BLOCK = re.compile(r"(.*?)([^.\d]*)(?<!\d)(\d{1,9})([^.\d]*)\.0\.conv1\.weight")
_TRANSFORMERS = "embedder.embedder.convolution.weight"
_DARKNET = "layer1.0.conv.weight"
# Training state saved alongside a network; none of these tensors belongs to a layer.
_TRAINING_STATE = re.compile(
    r"(^|\.)(\w*optim\w*|\w*scheduler\w*|scaler|callbacks|loops|\w*rng\w*)\."
)


@dataclass(frozen=True)
class Body:
    """The layers of one network, up to the pooling layer.

    Args:
        root: the prefix of its tensor names.
        names: maps the file's tensor names to this package's.
        channels: the number of channels in its last feature map.
    """

    root: str
    names: dict[str, str]
    channels: int

    @property
    def label(self) -> str:
        """The value of ``--prefix`` that selects this network."""
        return self.root.rstrip(".") or "."


@dataclass(frozen=True)
class Layout:
    """One network of a checkpoint.

    Args:
        tensors: the tensors, under this package's names.
        notes: which parts were selected, and which were left out.
        unclear: why no head was selected although the file has layers that could be one; else "".
    """

    tensors: dict[str, Tensor]
    notes: tuple[str, ...] = ()
    unclear: str = ""


def extract_network(
    tensors: Mapping[str, Tensor],
    source: str,
    *,
    prefix: str | None = None,
    head: str | None = None,
) -> Layout | None:
    """Return the residual network among ``tensors``, or None if there is none.

    Args:
        tensors: the tensors, under the file's names.
        source: name of the file, for messages.
        prefix: prefix of the tensor names of the network to use, if there are several networks.
        head: name of the linear layer that is the head; ``none`` leaves the head out.

    Raises:
        WeightsError: there are several networks and no ``prefix``, or there is no such prefix or
            head.
    """
    useful = {n: t for n, t in tensors.items() if not _TRAINING_STATE.search(n)}
    useful.pop("n_averaged", None)
    bodies = _find_bodies(useful)
    # Lightning callbacks may save a second, weight-averaged copy of the network.
    callbacks = {n: t for n, t in tensors.items() if re.search(r"(^|\.)callbacks\.", n)}
    kept = _find_bodies(callbacks)
    if prefix is not None and not _match_prefix(bodies, prefix) and _match_prefix(kept, prefix):
        useful, bodies, kept = callbacks, kept, bodies
    if not bodies:
        return None
    body, notes = _select_body(bodies, useful, source=source, prefix=prefix)
    notes += [f"left out the network under {other.label!r} (--prefix selects it)" for other in kept]
    _refuse_deep_stem(useful, body.root, source=source)
    other_roots = [other.root for other in bodies if other is not body]
    body_names = {name for each in bodies for name in each.names}  # only tested for membership
    rest = {n: t for n, t in useful.items() if n not in body_names and t.ndim > 0}
    near = {n: t for n, t in rest.items() if _is_nearest(n, body.root, other_roots)}
    found = find_head(
        near,
        body.root,
        channels=body.channels,
        wanted=head,
        source=source,
        several=bool(other_roots),
    )
    left_out = [
        n for n in rest if n not in found.used and (n in found.left or not n.startswith(body.root))
    ]
    if left_out:
        where = repr(body.root) if body.root else "the network"
        notes.append(
            f"left out tensors outside {where}: {len(left_out)} in all, first {min(left_out)}"
        )
    renamed = _rename_tensors(
        useful, body, head=found, left_out=set(left_out), other_roots=other_roots
    )
    return Layout(renamed, (*notes, *found.notes), unclear=found.unclear)


def _refuse_deep_stem(tensors: Mapping[str, Tensor], root: str, *, source: str) -> None:
    """Raise if the network begins with several convolutions.

    Otherwise one of them could be mistaken for the first layer of another network.
    """
    stem = re.compile(rf"{re.escape(root)}conv1\.\d+\.weight")
    found = [name for name, tensor in tensors.items() if tensor.ndim == 4 and stem.fullmatch(name)]
    if found:
        shown = ", ".join(f"{name} {tuple(tensors[name].shape)}" for name in found)
        raise WeightsError(
            f"{source} begins with several convolutions ({shown}): a deep stem, as in timm's "
            "resnet50d, resnet26t and resnet50s. Networks in resnetkit have only one"
        )


def _is_nearest(name: str, root: str, other_roots: Sequence[str]) -> bool:
    """Return whether a tensor outside all bodies is as near to ``root`` as to any other root."""
    shared = count_shared_parts(name, root)
    return all(shared >= count_shared_parts(name, other) for other in other_roots)


def _rename_tensors(
    tensors: Mapping[str, Tensor],
    body: Body,
    *,
    head: Head,
    left_out: set[str],
    other_roots: Sequence[str],
) -> dict[str, Tensor]:
    """Return the tensors of the body and the head, under this package's names.

    Tensors of unknown layers inside the body are included.
    """
    renamed = {}
    for name, tensor in tensors.items():
        if name in body.names:
            renamed[body.names[name]] = tensor
        elif name in head.used:
            ours = head.used[name]
            renamed[ours] = tensor.flatten(1) if ours == "fc.weight" else tensor
        elif (
            name not in left_out
            and name.startswith(body.root)
            and _is_nearest(name, body.root, other_roots)
        ):
            renamed[name.removeprefix(body.root)] = tensor
    if "fc.weight" in renamed and "fc.bias" not in renamed and renamed["fc.weight"].ndim == 2:
        renamed["fc.bias"] = renamed["fc.weight"].new_zeros(len(renamed["fc.weight"]))
    return renamed


def _find_bodies(tensors: Mapping[str, Tensor]) -> list[Body]:
    """Return the networks in the file, sorted by root."""
    groups: dict[tuple[str, str, str], list[int]] = {}
    found: list[Body | None] = []
    for name, tensor in tensors.items():
        if tensor.ndim != 4:
            continue
        if match := _BLOCK.fullmatch(name):
            root, before, number, after = match.groups()
            groups.setdefault((root, before, after), []).append(int(number))
        elif name.endswith(_TRANSFORMERS):
            found.append(_body_of_transformers(tensors, name.removesuffix(_TRANSFORMERS)))
        elif f".{name}".endswith(f".{_DARKNET}"):
            found.append(_body_of_darknet(tensors, name.removesuffix(_DARKNET)))
    for (root, before, after), numbers in sorted(groups.items()):
        found.append(
            _body_of_stages(tensors, root, affixes=(before, after), numbers=sorted(numbers))
        )
    return sorted((body for body in found if body is not None), key=lambda body: body.root)


def _body_of_stages(
    tensors: Mapping[str, Tensor], root: str, *, affixes: tuple[str, str], numbers: list[int]
) -> Body | None:
    """Return a network with numbered stages, such as ``layer1``, ``4`` or ``stage0``.

    Args:
        tensors: all tensors in the file.
        root: the prefix before the stages.
        affixes: the text before and after the number in a stage's name.
        numbers: the stages' numbers, sorted.
    """
    before, after = affixes
    first = min(1, numbers[0]) if affixes == ("layer", "") else numbers[0]
    if first not in numbers:
        return None
    stages = {f"{root}{before}{n}{after}.": f"layer{n - first + 1}." for n in numbers}
    names = {}
    for theirs, ours in stages.items():
        shortcuts = _find_shortcuts(tensors, theirs)
        for name in tensors:
            if name.startswith(theirs):
                block, dot, inner = name.removeprefix(theirs).partition(".")
                for shortcut in shortcuts:
                    if inner.startswith(f"{shortcut}."):
                        inner = f"downsample{inner.removeprefix(shortcut)}"
                names[name] = f"{ours}{block}{dot}{inner}"
    first_conv = tensors[f"{next(iter(stages))}0.conv1.weight"]
    stem, root = _find_stem(tensors, root, stage_names=names, planes=first_conv.shape[1])
    channels = _last_channels(tensors, {ours: theirs for theirs, ours in names.items()})
    return Body(root, {**stem, **names}, channels=channels)


def _find_shortcuts(tensors: Mapping[str, Tensor], stage: str) -> list[str]:
    """Return the names of the projections in a stage: a 1x1 convolution followed by a norm."""
    found = {"shortcut"}
    for name, tensor in tensors.items():
        match = re.fullmatch(r"\d+\.(\w+)\.0\.weight", name.removeprefix(stage))
        if name.startswith(stage) and match and tensor.ndim == 4 and tensor.shape[-1] == 1:
            norm = tensors.get(f"{name.removesuffix('0.weight')}1.running_mean")
            if norm is not None and norm.shape == tensor.shape[:1]:
                found.add(match[1])
    return sorted(found)


def _find_stem(
    tensors: Mapping[str, Tensor], root: str, *, stage_names: Mapping[str, str], planes: int
) -> tuple[dict[str, str], str]:
    """Return the names of the first convolution and its norm, and the network's root.

    The root is ``root``, or the level above it if the stages are in a list. ``planes`` is the
    number of input channels of the first stage.
    """
    above = root[: root.rstrip(".").rfind(".") + 1]
    for candidate in dict.fromkeys((root, above)):
        outside = {
            n: t for n, t in tensors.items() if n.startswith(candidate) and n not in stage_names
        }
        own = {n: n.removeprefix(candidate) for n in outside}
        usual = {n: ours for n, ours in own.items() if ours.startswith(("conv1.", "bn1."))}
        if f"{candidate}conv1.weight" in usual:
            return usual, candidate
        convolutions = [
            n
            for n, t in outside.items()
            if t.ndim == 4 and n.endswith(".weight") and len(t) == planes
        ]
        norms = [
            n.removesuffix("running_mean")
            for n, t in outside.items()
            if n.endswith(".running_mean") and len(t) == planes
        ]
        if len(convolutions) == len(norms) == 1:
            modules = {convolutions[0].removesuffix("weight"): "conv1.", norms[0]: "bn1."}
            renamed = {
                n: ours + n.removeprefix(theirs)
                for theirs, ours in modules.items()
                for n in outside
                if n.startswith(theirs)
            }
            return renamed, candidate
    return {}, root


def _body_of_transformers(tensors: Mapping[str, Tensor], root: str) -> Body:
    """Return a network whose names follow Hugging Face transformers' ``ResNetModel``."""
    names = {}
    kinds = {"convolution": "conv", "normalization": "bn"}
    for name in tensors:
        inner = name.removeprefix(root) if name.startswith(root) else ""
        if match := re.fullmatch(r"embedder\.embedder\.(convolution|normalization)\.(\w+)", inner):
            names[name] = f"{kinds[match[1]]}1.{match[2]}"
        elif match := re.fullmatch(
            r"encoder\.stages\.(\d{1,9})\.layers\.(\d+)\.(?:layer\.(\d{1,9})|(shortcut))"
            r"\.(convolution|normalization)\.(\w+)",
            inner,
        ):
            stage, block, layer, shortcut, kind, tensor = match.groups()
            prefix = f"layer{int(stage) + 1}.{block}"
            if shortcut:
                names[name] = f"{prefix}.downsample.{int(kind == 'normalization')}.{tensor}"
            else:
                names[name] = f"{prefix}.{kinds[kind]}{int(layer) + 1}.{tensor}"
    channels = _last_channels(tensors, {ours: theirs for theirs, ours in names.items()})
    return Body(root, names, channels=channels)


def _body_of_darknet(tensors: Mapping[str, Tensor], root: str) -> Body:
    own = {n: n.removeprefix(root) for n in tensors if n.startswith(root)}
    names = {n: ours for n, ours in own.items() if re.match(r"(conv1|bn1|layer\d+)\.", ours)}
    expansions = [n for n in names if n.endswith(".expand.conv.weight")]
    channels = max((len(tensors[n]) for n in expansions), default=0)
    return Body(root, names, channels=channels)


def _last_channels(tensors: Mapping[str, Tensor], theirs: Mapping[str, str]) -> int:
    """Return the number of channels in the last feature map, or 0 if unknown.

    This is the number of output channels of the last convolution in the last stage's first block.
    ``theirs`` maps this package's names to the file's names.
    """
    stage = 1
    while f"layer{stage + 1}.0.conv1.weight" in theirs:
        stage += 1
    block = f"layer{stage}.0."
    if f"{block}conv1.weight" not in theirs:
        return 0
    is_basic = tensors[theirs[f"{block}conv1.weight"]].shape[-1] == 3
    last = theirs.get(f"{block}conv{2 if is_basic else 3}.weight")
    return 0 if last is None else len(tensors[last])


def _select_body(
    bodies: list[Body], tensors: Mapping[str, Tensor], *, source: str, prefix: str | None
) -> tuple[Body, list[str]]:
    """Return the network that ``prefix`` selects, or the only one; and notes."""
    candidates = bodies
    if prefix is not None:
        candidates = _match_prefix(bodies, prefix)
        if not candidates:
            listed = ", ".join(repr(body.label) for body in bodies)
            raise WeightsError(f"{source} has no network under {prefix!r}; it has {listed}")
    if len(candidates) > 1 and not _are_equal(candidates, tensors):
        listed = ", ".join(repr(body.label) for body in candidates)
        label = candidates[0].label
        raise WeightsError(
            f"{source} holds {len(candidates)} networks: {listed}. Select one: --prefix {label} "
            f"(training: --set weights_prefix={label}; Python: prefix={label!r})"
        )
    selected = candidates[0]
    others = ", ".join(repr(body.label) for body in bodies if body is not selected)
    note = f"used the network under {selected.label!r}; the file also has {others}"
    return selected, [note] if others else []


def _match_prefix(bodies: list[Body], prefix: str) -> list[Body]:
    """Return the bodies whose root equals ``prefix``, or else ends with it, or else contains it."""
    wanted = "" if prefix == "." else f"{prefix.rstrip('.')}."
    tests: tuple[Callable[[str], bool], ...] = (
        lambda root: root == wanted,
        lambda root: bool(wanted) and f".{root}".endswith(f".{wanted}"),
        lambda root: bool(wanted) and f".{wanted}" in f".{root}",
    )
    for test in tests:
        if found := [body for body in bodies if test(body.root)]:
            return found
    return []


def _are_equal(bodies: list[Body], tensors: Mapping[str, Tensor]) -> bool:
    """Return whether all networks have equal tensors, including those near each body."""

    def collect(body: Body) -> dict[str, Tensor]:
        other_roots = [other.root for other in bodies if other is not body]
        found = {}
        for name, tensor in tensors.items():
            own = count_shared_parts(name, body.root)
            nearest = max(count_shared_parts(name, other) for other in other_roots)
            if own > nearest or (own == nearest and not body.root):
                tail = ".".join(name.split(".")[own:])
                found[body.names.get(name, tail)] = tensor
        return found

    first, *rest = map(collect, bodies)
    return all(
        first.keys() == other.keys()
        and all(torch.equal(tensor, other[name]) for name, tensor in first.items())
        for other in rest
    )
