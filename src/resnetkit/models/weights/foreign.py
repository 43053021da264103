"""Recognize, by names and shapes, which ResNet a checkpoint from other code holds.

Properties that tensors do not show (where a stride is, or whether a shortcut without parameters
exists) are assumed to be as in most networks, and a note says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...errors import WeightsError
from ..architectures import ARCHITECTURES, Architecture
from ..blocks import BasicBlock, Bottleneck
from ..skeleton import get_skeleton
from .reading import Checkpoint, check_floats, describe_differences, drop_unused, unwrap
from .resolve import infer_options


@dataclass(frozen=True)
class Recognised:
    """The architecture of a state dict, and its tensors.

    Args:
        architecture: a name in the registry.
        options: keyword arguments of its builder; JSON values, always with ``num_classes``.
        tensors: the tensors, with that network's names and dtypes.
        notes: assumptions, renamed tensors and dropped tensors, one sentence each.
    """

    architecture: str
    options: dict[str, Any]
    tensors: dict[str, Tensor]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Facts:
    """The properties of a ResNet that the names and shapes of its tensors reveal."""

    block: type[BasicBlock | Bottleneck]
    layers: list[int]
    groups: int
    width_per_group: int
    stem: str
    width: int
    shortcut: str  # "A" means no projections: the network could also be a plain net
    sizes: dict[str, int]  # num_classes and in_channels


def recognise(
    found: Checkpoint | Mapping[str, Any],
    *,
    architecture: str | None = None,
    options: Mapping[str, Any] | None = None,
    source: str = "the state dict",
    prefix: str | None = None,
    head: str | None = None,
) -> Recognised:
    """Return the architecture in the registry that these tensors belong to.

    Args:
        found: tensors by name; may be nested, or have prefixes such as ``module.``.
        architecture: its name, if known.
        options: its options, if known, such as ``{"stride_on": "1x1"}``.
        source: name of the tensors, for messages.
        prefix, head: as in `resnetkit.models.weights.reading.read_tensors`.

    Raises:
        WeightsError: the tensors fit no architecture, or do not fit the given one; the message
            shows the first names and shapes that differ.
    """
    known_options = dict(options or {})
    if known_options.get("num_classes") == 0:
        head = "none"
    checkpoint = found
    if not isinstance(checkpoint, Checkpoint):
        checkpoint = unwrap(checkpoint, source, prefix=prefix, head=head)
    if checkpoint.unclear:
        raise WeightsError(f"{source} {checkpoint.unclear}")
    tensors = dict(checkpoint.tensors)
    facts = _read_facts(tensors)
    if facts is None:
        name = architecture or "darknet53"
        if architecture is None and not any(n.startswith("layer1.0.conv.") for n in tensors):
            raise WeightsError(_describe_other_network(tensors, source))
        inferred: dict[str, Any] = {"num_classes": 0, **infer_options(tensors)}
        assumptions = []
    else:
        name = architecture or _match_architecture(
            facts, known_options, tensors=tensors, source=source
        )
        inferred = _options_for(facts, ARCHITECTURES.get(name.lower()))
        assumptions = _describe_assumptions(
            facts, name, is_given=architecture is not None, options=known_options
        )
    resolved = {**inferred, **known_options}
    if resolved.get("in_channels") == 3:
        del resolved["in_channels"]
    fitted, changes = _fit_tensors(tensors, name, options=resolved, source=source)
    notes = (*checkpoint.notes, *changes, *assumptions)
    return Recognised(name, resolved, tensors=fitted, notes=notes)


def _read_facts(tensors: Mapping[str, Tensor]) -> Facts | None:
    """Return the properties that the tensors show, or None if they are not a ResNet's."""
    stem = tensors.get("conv1.weight")
    first = tensors.get("layer1.0.conv1.weight")
    if stem is None or first is None or stem.ndim != 4 or first.ndim != 4:
        return None
    layers: list[int] = []
    while f"layer{len(layers) + 1}.0.conv1.weight" in tensors:
        stage = f"layer{len(layers) + 1}"
        depth = 0
        while f"{stage}.{depth}.conv1.weight" in tensors:
            depth += 1
        layers.append(depth)
    block = BasicBlock if first.shape[-1] == 3 else Bottleneck
    width = stem.shape[0]
    groups = 1
    width_per_group = 64
    inner = tensors.get("layer1.0.conv2.weight")
    if block is Bottleneck and inner is not None and inner.ndim == 4:
        groups = max(1, inner.shape[0] // max(1, inner.shape[1]))
        width_per_group = inner.shape[0] // groups * 64 // max(1, width)
    projected = {n.removesuffix(".downsample.0.weight") for n in tensors if ".downsample.0.w" in n}
    return Facts(
        block=block,
        layers=layers,
        groups=groups,
        width_per_group=width_per_group,
        stem="small" if stem.shape[-1] == 3 else "imagenet",
        width=width,
        shortcut=_shortcut_option(layers, projected, expansion=block.expansion),
        sizes={"num_classes": 0, **infer_options(tensors)},
    )


def _shortcut_option(layers: list[int], projected: set[str], expansion: int) -> str:
    """Return A, B or C, from the names of the blocks that have a projection."""
    every = {f"layer{i + 1}.{j}" for i, depth in enumerate(layers) for j in range(depth)}
    reshaping = {f"layer{i + 1}.0" for i in range(len(layers)) if i > 0 or expansion > 1}
    if not projected:
        return "A"
    return "C" if projected == every != reshaping else "B"


def _options_for(facts: Facts, known: Architecture | None) -> dict[str, Any]:
    """Return the options that make ``known`` fit the facts, as far as options can."""
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


def _match_architecture(
    facts: Facts, options: Mapping[str, Any], *, tensors: Mapping[str, Tensor], source: str
) -> str:
    """Return the architecture that needs the fewest options, preferring residual nets."""
    candidates = []
    for name, known in ARCHITECTURES.items():
        numbers = known.numbers
        same_blocks = (known.block, known.layers) == (facts.block, facts.layers)
        widths = (numbers.get("groups", 1), numbers.get("width_per_group", 64))
        if same_blocks and widths == (facts.groups, facts.width_per_group):
            is_plain = numbers.get("shortcut") == "none" and options.get("shortcut") != "none"
            is_starter = name == "resnet18_starter"  # resnet18 with width=32 says more
            options_count = len(_options_for(facts, known))
            candidates.append((is_plain, is_starter, options_count, name))
    if candidates:
        return min(candidates)[-1]
    nearest = min(ARCHITECTURES, key=lambda name: _distance(facts, ARCHITECTURES[name]))
    expected = get_skeleton(nearest, **_options_for(facts, ARCHITECTURES[nearest])).state_dict()
    raise WeightsError(
        f"{source} is a ResNet of {facts.block.__name__}s with {facts.layers} layers, groups="
        f"{facts.groups} and width_per_group={facts.width_per_group}, which no architecture in "
        f"resnetkit has. Compared with {nearest}: "
        f"{'; '.join(describe_differences(expected, tensors))}"
    )


def _distance(facts: Facts, known: Architecture) -> tuple[object, ...]:
    return (
        known.block is not facts.block,
        len(known.layers) != len(facts.layers),
        known.numbers.get("groups", 1) != facts.groups,
        abs(known.numbers.get("width_per_group", 64) - facts.width_per_group),
        sum(abs(a - b) for a, b in zip(known.layers, facts.layers, strict=False)),
    )


def _describe_assumptions(
    facts: Facts, name: str, *, is_given: bool, options: Mapping[str, Any]
) -> list[str]:
    """Return a note for each property that tensors do not show and the caller did not give."""
    notes = []
    if facts.block is Bottleneck and "stride_on" not in options:
        notes.append(
            "V1 and V1.5 have the same tensors: assumed V1.5, with the stride on the 3x3. For V1, "
            "use --set stride_on=1x1. Networks that dilate instead of striding also have the same "
            "tensors (--set replace_stride_with_dilation=...), and so do timm's with a blur or "
            "pooling before the stride (resnetblur, resnetaa, ...), which are not supported"
        )
    if facts.block is BasicBlock and not is_given:
        notes.append(
            "assumed the usual strides and pooling, which tensors do not show: timm's networks "
            "with a blur (resnetblur18), output_stride=16 or different pooling have the same "
            f"tensors and are not supported. If it is a {name}, --arch {name} removes this note"
        )
    if facts.shortcut == "A" and not is_given and "shortcut" not in options:
        notes.append(
            "there are no projections: assumed a residual net with option A shortcuts. A plain "
            "net has the same tensors; if it is one, use --set shortcut=none"
        )
    if facts.stem == "small" and len(facts.layers) == 4:
        notes.append("the first convolution is 3x3: assumed stride 1 and no pooling after it")
    return notes


def _fit_tensors(
    tensors: dict[str, Tensor], name: str, *, options: dict[str, Any], source: str
) -> tuple[dict[str, Tensor], list[str]]:
    """Return the tensors in the form the network ``name`` needs, and notes on what changed."""
    try:
        expected = get_skeleton(name, **options).state_dict()
    except (TypeError, ValueError) as error:  # an unknown name, or an invalid option
        raise WeightsError(f"{source} cannot be read as {name}: {error}") from error
    given = dict(tensors)
    notes = []
    unused = drop_unused(expected, given)
    if unused:
        notes.append(f"dropped, because no layer of {name} uses them: {', '.join(unused)}")
    differences = describe_differences(expected, given)
    if differences:
        raise WeightsError(f"{source} is not a {name} ({options}): {'; '.join(differences)}")
    check_floats(expected, given, source)
    dtypes = {str(given[n].dtype) for n in expected if given[n].dtype != expected[n].dtype}
    if dtypes:
        notes.append(f"converted {', '.join(sorted(dtypes))} to the network's dtype")
    return {n: given[n].to(expected[n].dtype) for n in expected}, notes


def _describe_other_network(tensors: Mapping[str, Tensor], source: str) -> str:
    first = ", ".join(f"{n} {tuple(t.shape)}" for n, t in list(tensors.items())[:3])
    return (
        f"{source} is not a ResNet: its first tensors are {first}; expected conv1.weight, "
        "bn1.weight, ..., layer1.0.conv1.weight. Other networks cannot be converted"
    )
