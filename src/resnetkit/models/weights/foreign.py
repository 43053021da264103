"""Other people's checkpoints: which ResNet is it, by names and shapes.

What tensors cannot tell (where a stride stands, whether a shortcut without parameters is there) is
taken as most nets have it, and said.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...errors import WeightsError
from ..architectures import ARCHITECTURES, Architecture
from ..blocks import BasicBlock, Bottleneck
from ..registry import get_skeleton
from .reading import Checkpoint, differences, drop_unused, unwrap
from .resolve import options_of


@dataclass(frozen=True)
class Recognised:
    """What a bare state dict turned out to be.

    Args:
        architecture: a name in the registry.
        options: what its builder needs beside it; JSON values, ``num_classes`` always among them.
        tensors: under the names and in the types of that network.
        notes: what was assumed, renamed or dropped, a sentence each.
    """

    architecture: str
    options: dict[str, Any]
    tensors: dict[str, Tensor]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Facts:
    """What names and shapes say of a ResNet."""

    block: type[BasicBlock | Bottleneck]
    layers: list[int]
    groups: int
    width_per_group: int
    stem: str
    width: int
    shortcut: str  # "A" stands for no projections: it may be a plain net too
    sizes: dict[str, int]


def recognise(
    found: Checkpoint | Mapping[str, Any],
    *,
    architecture: str | None = None,
    options: Mapping[str, Any] | None = None,
    source: str = "the state dict",
    prefix: str | None = None,
    head: str | None = None,
) -> Recognised:
    """Find the architecture in the registry that ``found`` holds the tensors of.

    Args:
        found: tensors by name, also nested under other names, or with prefixes such as
            ``module.``.
        architecture: its name, where it is known.
        options: what else is known of it, such as ``{"stride_on": "1x1"}``.
        source: what to call it in messages.
        prefix, head: as in `resnetkit.models.weights.reading.read_tensors`.

    Raises:
        WeightsError: it fits none (or not the one that was named); the message shows the first
            names and shapes that differ.
    """
    given = dict(options or {})
    if given.get("num_classes") == 0:
        head = "none"
    checkpoint = found
    if not isinstance(checkpoint, Checkpoint):
        checkpoint = unwrap(checkpoint, source, prefix, head)
    if checkpoint.unclear:
        raise WeightsError(f"{source} {checkpoint.unclear}")
    tensors = dict(checkpoint.tensors)
    facts = _facts(tensors)
    if facts is None:
        name = architecture or "darknet53"
        if architecture is None and not any(n.startswith("layer1.0.conv.") for n in tensors):
            raise WeightsError(_no_resnet(tensors, source))
        sizes, ambiguities = {"num_classes": 0, **options_of(tensors)}, []
    else:
        name = architecture or _name(facts, given, tensors, source)
        sizes = _options(facts, ARCHITECTURES.get(name.lower()))
        ambiguities = _ambiguities(facts, name, architecture, given)
    chosen = {**sizes, **given}
    if chosen.get("in_channels") == 3:
        del chosen["in_channels"]
    fitted, changes = _fit(tensors, name, chosen, source)
    return Recognised(name, chosen, fitted, (*checkpoint.notes, *changes, *ambiguities))


def _facts(tensors: Mapping[str, Tensor]) -> Facts | None:
    stem, first = tensors.get("conv1.weight"), tensors.get("layer1.0.conv1.weight")
    if stem is None or first is None or stem.ndim != 4 or first.ndim != 4:
        return None
    layers: list[int] = []
    while f"layer{len(layers) + 1}.0.conv1.weight" in tensors:
        stage, depth = f"layer{len(layers) + 1}", 0
        while f"{stage}.{depth}.conv1.weight" in tensors:
            depth += 1
        layers.append(depth)
    block = BasicBlock if first.shape[-1] == 3 else Bottleneck
    groups, width_per_group, width = 1, 64, stem.shape[0]
    inner = tensors.get("layer1.0.conv2.weight")
    if block is Bottleneck and inner is not None and inner.ndim == 4:
        groups = max(1, inner.shape[0] // max(1, inner.shape[1]))
        width_per_group = inner.shape[0] // groups * 64 // max(1, width)
    projected = {n.removesuffix(".downsample.0.weight") for n in tensors if ".downsample.0.w" in n}
    return Facts(
        block,
        layers,
        groups,
        width_per_group,
        "small" if stem.shape[-1] == 3 else "imagenet",
        width,
        _shortcut(layers, projected, block.expansion),
        {"num_classes": 0, **options_of(tensors)},
    )


def _shortcut(layers: list[int], projected: set[str], expansion: int) -> str:
    every = {f"layer{i + 1}.{j}" for i, depth in enumerate(layers) for j in range(depth)}
    changing = {f"layer{i + 1}.0" for i in range(len(layers)) if i > 0 or expansion > 1}
    if not projected:
        return "A"
    return "C" if projected == every != changing else "B"


def _options(facts: Facts, known: Architecture | None) -> dict[str, Any]:
    """The options with which ``known`` becomes the net of these facts, as far as they tell."""
    options: dict[str, Any] = dict(facts.sizes)
    if known is None:
        return options
    if facts.stem != known.numbers.get("stem", "imagenet"):
        options["stem"] = facts.stem
    if facts.width != known.numbers.get("width", 64):
        options["width"] = facts.width
    default = known.numbers.get("shortcut", "B")
    if facts.shortcut != default and default != "none":
        options["shortcut"] = facts.shortcut
    return options


def _name(
    facts: Facts, given: Mapping[str, Any], tensors: Mapping[str, Tensor], source: str
) -> str:
    """The architecture that needs the fewest options; residual nets before plain ones."""
    candidates = []
    for name, known in ARCHITECTURES.items():
        numbers = known.numbers
        same = (known.block, known.layers) == (facts.block, facts.layers)
        grouped = (numbers.get("groups", 1), numbers.get("width_per_group", 64))
        if same and grouped == (facts.groups, facts.width_per_group):
            plain = numbers.get("shortcut") == "none" and given.get("shortcut") != "none"
            candidates.append((plain, len(_options(facts, known)), name))
    if candidates:
        return min(candidates)[-1]
    nearest = min(ARCHITECTURES, key=lambda name: _distance(facts, ARCHITECTURES[name]))
    own = get_skeleton(nearest, **_options(facts, ARCHITECTURES[nearest])).state_dict()
    raise WeightsError(
        f"{source} is a ResNet of {facts.block.__name__}s with {facts.layers} layers, groups="
        f"{facts.groups} and width_per_group={facts.width_per_group}, which no architecture here "
        f"has. Beside {nearest}: {'; '.join(differences(own, tensors))}"
    )


def _distance(facts: Facts, known: Architecture) -> tuple[object, ...]:
    return (
        known.block is not facts.block,
        len(known.layers) != len(facts.layers),
        known.numbers.get("groups", 1) != facts.groups,
        abs(known.numbers.get("width_per_group", 64) - facts.width_per_group),
        sum(abs(a - b) for a, b in zip(known.layers, facts.layers, strict=False)),
    )


def _ambiguities(
    facts: Facts, name: str, architecture: str | None, given: Mapping[str, Any]
) -> list[str]:
    said = []
    if facts.block is Bottleneck and "stride_on" not in given:
        said.append(
            "V1 and V1.5 have the same tensors: took V1.5, the stride on the 3x3; V1 is --set "
            "stride_on=1x1. Nets that dilate in place of a stride have them too (--set "
            "replace_stride_with_dilation=...), and so have timm's with a blur or pooling before "
            "the stride (resnetblur, resnetaa, ...), which no option here makes"
        )
    if facts.block is BasicBlock and architecture is None:
        said.append(
            "took the usual strides and pooling, which tensors do not show: timm's with a blur "
            "(resnetblur18), output_stride=16 or another pooling have the same tensors, and no "
            f"option here makes them. If it is a {name}, --arch {name} leaves this note out"
        )
    if facts.shortcut == "A" and architecture is None and "shortcut" not in given:
        said.append(
            "there are no projections: took a residual net with shortcuts of option A; a plain "
            "net has the same tensors: --set shortcut=none"
        )
    if facts.stem == "small" and len(facts.layers) == 4:
        said.append("the first convolution is 3x3: took stride 1 and no pooling behind it")
    return said


def _fit(
    tensors: dict[str, Tensor], name: str, options: dict[str, Any], source: str
) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors as the network ``name`` has them, and what was changed for that."""
    try:
        own = get_skeleton(name, **options).state_dict()
    except (TypeError, ValueError) as error:  # an unknown name, or an option that cannot be
        raise WeightsError(f"{source} cannot be taken for {name}: {error}") from error
    given, notes = dict(tensors), []
    unused = drop_unused(own, given)
    if unused:
        notes.append(f"dropped, since no layer of {name} uses them: {', '.join(unused)}")
    differing = differences(own, given)
    if differing:
        raise WeightsError(f"{source} is no {name} ({options}): {'; '.join(differing)}")
    types = {str(given[n].dtype) for n in own if given[n].dtype != own[n].dtype}
    if types:
        notes.append(f"{', '.join(sorted(types))} became the network's own type")
    return {n: given[n].to(own[n].dtype) for n in own}, notes


def _no_resnet(tensors: Mapping[str, Tensor], source: str) -> str:
    first = ", ".join(f"{n} {tuple(t.shape)}" for n, t in list(tensors.items())[:3])
    return (
        f"{source} is no ResNet: its first tensors are {first}; expected conv1.weight, bn1.weight, "
        "..., layer1.0.conv1.weight. For other nets there is nothing to convert to"
    )
