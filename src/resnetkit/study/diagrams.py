"""SVG drawings of residual blocks, made from the real modules.

A block is traced, so that the drawing shows what its ``forward`` computes: the main path, the
shortcut, their sum, and the modules after the sum.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from torch import fx, nn

from ..errors import RecipeError
from ..models import PadShortcut
from ..models.skeleton import get_skeleton

BOX_W = 140
BOX_H = 26
STEP = 44
MARGIN = 18
COLORS = {"conv": "#cfe0f3", "norm": "#e6e6e6", "act": "#fbdcc2", "pad": "#d8ecd4"}
LINE = "#333333"


@dataclass(frozen=True)
class Path:
    """The computation of a block, as chains of modules (kind, label).

    Args:
        channels: number of input channels.
        main: from the input to the sum.
        shortcut: from the input to the sum; empty for the identity, None if there is no sum.
        after: from the sum to the output; empty if there is no sum.
    """

    channels: int
    main: tuple[tuple[str, str], ...]
    shortcut: tuple[tuple[str, str], ...] | None
    after: tuple[tuple[str, str], ...]


class _Tracer(fx.Tracer):
    """A tracer that treats `PadShortcut` as a unit."""

    def is_leaf_module(self, module: nn.Module, qualified_name: str) -> bool:
        """Return whether ``module`` is drawn as one box."""
        is_pad = isinstance(module, PadShortcut)
        return is_pad or super().is_leaf_module(module, qualified_name)


def trace(block: nn.Module) -> Path:
    """Trace ``block`` from its input to its output.

    Raises:
        ValueError: the block is not a chain of modules with at most one sum.
    """
    graph = _Tracer().trace(block)
    additions = [node for node in graph.nodes if node.target in (operator.iadd, operator.add)]
    output = next(node for node in graph.nodes if node.op == "output")
    channels = next(m.in_channels for m in block.modules() if isinstance(m, nn.Conv2d))
    last = output.args[0]
    if not additions:
        return Path(channels, _chain(block, last, None), None, ())
    if len(additions) > 1:
        raise ValueError(
            f"Expected one sum in a block; {type(block).__name__} has {len(additions)}"
        )
    total = additions[0]
    arms = sorted((_chain(block, arm, None) for arm in total.args), key=len)
    return Path(channels, arms[1], arms[0], _chain(block, last, total))


def _chain(block: nn.Module, end: fx.Node, start: fx.Node | None) -> tuple[tuple[str, str], ...]:
    """Return the modules from ``start`` (None for the input) to ``end``, in execution order."""
    labels = []
    while end is not start and end.op != "placeholder":
        if end.op != "call_module":
            raise ValueError(f"{type(block).__name__} calls {end.target}, which is not a module")
        labels.append(_label(block.get_submodule(str(end.target))))
        end = end.args[0]  # type: ignore[assignment]
    return tuple(reversed(labels))


def _label(module: nn.Module) -> tuple[str, str]:
    if isinstance(module, nn.Conv2d):
        text = f"{module.kernel_size[0]}x{module.kernel_size[1]} conv, {module.out_channels}"
        text += f", /{module.stride[0]}" if module.stride[0] > 1 else ""
        return "conv", text + (f", {module.groups} groups" if module.groups > 1 else "")
    if isinstance(module, PadShortcut):
        return "pad", f"zeros, +{module.pad_front + module.pad_back}, /{module.stride}"
    name = type(module).__name__.removesuffix("2d")
    return ("norm" if "Norm" in name else "act"), name


def draw(blocks: Sequence[tuple[str, nn.Module]]) -> str:
    """Return an SVG of blocks side by side, each below its title."""
    paths = [(title, trace(block)) for title, block in blocks]
    rows = max(len(path.main) + len(path.after) for _, path in paths)
    column = 2 * BOX_W + 3 * MARGIN
    width = column * len(paths) + MARGIN
    height = (rows + 1) * STEP + 4 * MARGIN + 20
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" font-family="DejaVu Sans, Helvetica, Arial, '
        'sans-serif" font-size="12" text-anchor="middle">',
        '<defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
        f'markerHeight="7" orient="auto"><path d="M0 0 8 4 0 8z" fill="{LINE}"/></marker></defs>',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for i, (title, path) in enumerate(paths):
        parts += _column(MARGIN + i * column + BOX_W // 2 + MARGIN, title, path)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _column(x: int, title: str, path: Path) -> list[str]:
    """Return the elements of one block, top to bottom; ``x`` is the center of the main path."""
    top = MARGIN + 16
    parts = [_text(x + BOX_W // 2, top - 10, title, bold=True)]
    parts.append(_text(x, top + 18, f"x: {path.channels} channels"))
    y = start = top + 26
    for kind, label in path.main:
        parts += [_line(x, y, x, y + STEP - BOX_H), _box(x, y + STEP - BOX_H, kind, label)]
        y += STEP
    if path.shortcut is None:
        return [*parts, _line(x, y, x, y + STEP - BOX_H)]
    center = y + STEP - BOX_H + 10
    parts += [_line(x, y, x, center - 10), *_shortcut(x, start, center, path.shortcut)]
    parts.append(f'<circle cx="{x}" cy="{center}" r="10" fill="white" stroke="{LINE}"/>')
    parts.append(_text(x, center + 5, "+", bold=True))
    y = center + 10
    for kind, label in path.after:
        parts += [_line(x, y, x, y + STEP - BOX_H), _box(x, y + STEP - BOX_H, kind, label)]
        y += STEP
    return [*parts, _line(x, y, x, y + STEP - BOX_H)]


def _shortcut(x: int, start: int, end: int, chain: Sequence[tuple[str, str]]) -> list[str]:
    """Return the line from the input around the main path to the sum, with its modules."""
    side = x + BOX_W + MARGIN
    route = f"M{x} {start + 6} H{side} V{end} H{x + 10}"
    parts = [f'<path d="{route}" fill="none" stroke="{LINE}" marker-end="url(#arrow)"/>']
    if not chain:
        middle = (start + end) // 2
        parts.append(
            f'<rect x="{side - 30}" y="{middle - 14}" width="60" height="20" fill="white"/>'
        )
        return [*parts, _text(side, middle, "identity")]
    y = (start + end) // 2 - len(chain) * STEP // 2
    for kind, label in chain:
        parts.append(_box(side, y, kind, label))
        y += STEP
    return parts


def _box(x: int, y: int, kind: str, label: str) -> str:
    return (
        f'<rect x="{x - BOX_W // 2}" y="{y}" width="{BOX_W}" height="{BOX_H}" rx="4" '
        f'fill="{COLORS[kind]}" stroke="{LINE}"/>' + _text(x, y + 17, label, small=len(label) > 20)
    )


def _line(x1: int, y1: int, x2: int, y2: int) -> str:
    return (
        f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="{LINE}" marker-end="url(#arrow)"/>'
    )


def _text(x: int, y: int, text: str, *, bold: bool = False, small: bool = False) -> str:
    style = ' font-weight="bold"' if bold else ' font-size="9"' if small else ""
    return f'<text x="{x}" y="{y}"{style}>{escape(text)}</text>'


def paper_blocks() -> list[tuple[str, nn.Module]]:
    """Return the blocks of figure 5, without and with a projection."""
    basic = get_skeleton("resnet34")
    bottleneck = get_skeleton("resnet50")
    return [
        ("BasicBlock", basic.get_submodule("layer1.1")),
        ("BasicBlock, projection", basic.get_submodule("layer2.0")),
        ("Bottleneck", bottleneck.get_submodule("layer1.1")),
        ("Bottleneck, projection", bottleneck.get_submodule("layer2.0")),
    ]


def named_blocks(name: str, options: dict[str, Any]) -> list[tuple[str, nn.Module]]:
    """Return the distinct blocks of the first two stages of a network as (title, block).

    Raises:
        RecipeError: the network is unknown, or has no blocks that can be drawn.
    """
    blocks: dict[Path, tuple[str, nn.Module]] = {}
    try:
        network = get_skeleton(name, **options)
        for stage in getattr(network, "stages", [])[:2]:
            for number, block in network.get_submodule(stage).named_children():
                if not isinstance(block, nn.Sequential):  # DarkNet-53's strided convolutions
                    blocks.setdefault(trace(block), (f"{name}: {stage}.{number}", block))
    except (TypeError, ValueError) as error:
        raise RecipeError(str(error)) from error
    if not blocks:
        raise RecipeError(f"Expected a network with stages of blocks; {name} has none")
    return list(blocks.values())
