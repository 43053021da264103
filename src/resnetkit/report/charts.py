"""The report's charts as inline SVG.

The browser draws the text, so names can be in any script; the style sheet sets the colors.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup, escape

# A line chart and its margins, in pixels
WIDTH = 460
HEIGHT = 270
LEFT = 46
RIGHT = 14
TOP = 12
BOTTOM = 36
MAX_NUMBERED = 32  # classes: with more, the counts do not fit in the cells of the matrix
MAX_LABELED = 100  # classes: with more, the names do not fit next to the matrix
MAX_CLASSES = 250  # with more, a cell would be smaller than 2.6 pixels
MAX_CELLS = 12_000  # non-zero cells
MAX_LETTERS = 22  # letters of a name shown next to the matrix


@dataclass(frozen=True)
class Line:
    """A line in a chart, ``y`` against ``x``; ``style`` is a class in the style sheet."""

    label: str
    style: str
    x: Sequence[float]
    y: Sequence[float]


def line_chart(series: Sequence[Line], xlabel: str, percent: bool) -> Markup:
    """Return a line chart; ``percent`` labels the y axis in percent.

    Values that are not finite are skipped; if no value is finite, the result is empty.
    """
    points = [
        (x, y) for line in series for x, y in zip(line.x, line.y, strict=True) if math.isfinite(y)
    ]
    if not points:
        return Markup("")
    xs, ys = zip(*points, strict=True)
    xticks = _ticks(min(xs), max(xs), whole=True)
    yticks = _ticks(min(ys), max(ys))
    low = min(*ys, yticks[0])
    high = max(*ys, yticks[-1])
    first = min(xs)
    last = max(xs)

    def to_pixels(x: float, y: float) -> tuple[float, float]:
        across = 0.5 if last == first else (x - first) / (last - first)
        return (
            LEFT + across * (WIDTH - LEFT - RIGHT),
            TOP + (high - y) / ((high - low) or 1) * (HEIGHT - TOP - BOTTOM),
        )

    elements = []
    digits = max(0, -math.floor(math.log10(yticks[1] - yticks[0]) + 1e-9))
    for tick in yticks:
        y = to_pixels(first, tick)[1]
        text = f"{tick:.{max(0, digits - 2)}%}" if percent else f"{tick:.{digits}f}"
        elements.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        elements.append(_text(LEFT - 7, y + 4, text=text, anchor="end"))
    for tick in xticks:
        if first <= tick <= last:
            x = to_pixels(tick, low)[0]
            elements.append(_text(x, HEIGHT - 19, text=f"{tick:g}", anchor="middle"))
    middle = (LEFT + WIDTH - RIGHT) / 2
    elements.append(_text(middle, HEIGHT - 3, text=xlabel, anchor="middle", style="label"))
    for line in series:
        dots = [to_pixels(x, y) for x, y in zip(line.x, line.y, strict=True) if math.isfinite(y)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in dots)
        elements.append(f'<polyline class="line {line.style}" points="{path}"/>')
        if len(dots) <= 40:
            elements += [
                f'<circle class="dot {line.style}" cx="{x:.1f}" cy="{y:.1f}" r="2.6"/>'
                for x, y in dots
            ]
    label = "; ".join(line.label for line in series)
    return _svg(WIDTH, HEIGHT, elements=elements, label=label)


def reliability_chart(bins: Sequence[dict[str, Any]]) -> Markup:
    """Return a chart of accuracy by probability, above the number of answers per bin.

    Args:
        bins: the bins from the metrics.
    """
    width = 380
    upper = 300  # height of the accuracy bars
    lower = 56  # height of the counts
    left = 46
    side = width - left - 14
    most = max(row["pictures"] for row in bins)

    def to_x(share: float) -> float:
        return left + share * side

    def to_y(share: float) -> float:
        return 10 + (1 - share) * (upper - 10)

    elements = []
    for tick in (0, 0.25, 0.5, 0.75, 1):
        elements.append(f'<path class="grid" d="M{left} {to_y(tick):.1f}H{left + side}"/>')
        elements.append(_text(left - 7, to_y(tick) + 4, text=f"{tick:.0%}", anchor="end"))
        elements.append(_text(to_x(tick), upper + lower + 28, text=f"{tick:.0%}", anchor="middle"))
    base = upper + lower + 10
    for row in bins:
        if row["pictures"]:
            x = to_x(row["from"]) + 1
            bar_width = (row["to"] - row["from"]) * side - 2
            top = to_y(row["accuracy"])
            count_height = max(1, row["pictures"] / most * lower)
            box = f'x="{x:.1f}" width="{bar_width:.1f}"'
            elements.append(
                f"<g><title>{_describe_bin(row)}</title>"
                f'<rect class="bar" {box} y="{top:.1f}" height="{upper - top:.1f}"/>'
                f'<rect class="count" {box} y="{base - count_height:.1f}" '
                f'height="{count_height:.1f}"/>'
                f'<circle class="mean" cx="{to_x(row["confidence"]):.1f}" cy="{top:.1f}" '
                'r="3.4"/></g>'
            )
    elements.append(
        f'<path class="ideal" d="M{to_x(0):.1f} {to_y(0):.1f}L{to_x(1):.1f} {to_y(1):.1f}"/>'
    )
    xlabel = "probability of the answer"
    elements.append(_text(left + side / 2, base + 36, text=xlabel, anchor="middle", style="label"))
    return _svg(width, base + 42, elements=elements, label="Accuracy by probability")


def _describe_bin(row: dict[str, Any]) -> str:
    return (
        f"answers: {row['pictures']}, mean probability: {row['confidence']:.1%}, "
        f"correct: {row['accuracy']:.1%}"
    )


def confusion_chart(counts: np.ndarray, classes: Sequence[str]) -> Markup | None:
    """Return the confusion matrix, truth by row; None if it is too large to draw.

    Correct answers have one color, errors another; a darker cell is a larger share of its row.
    The page reads the truth, answer and count of a cell from its ``data-c``.
    """
    size = len(classes)
    cells = np.argwhere(counts > 0)
    if size > MAX_CLASSES or len(cells) > MAX_CELLS:
        return None
    numbered = size <= MAX_NUMBERED
    labeled = size <= MAX_LABELED
    cell = max(2.6, 640 / size)
    if labeled:
        cell = min(46.0, max(22.0, 380 / size)) if numbered else min(22.0, 860 / size)
    letters = min(12.0, 0.93 * cell)  # font size
    margin = 12 + letters / 12 * max(_text_width(_cut(name)) for name in classes) if labeled else 24
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    elements = [
        f'<rect class="paper" x="{margin:g}" y="{margin:g}" width="{size * cell:g}" '
        f'height="{size * cell:g}"/>'
    ]
    gap = 1.5 if numbered else 0.5 if labeled else 0.0
    for i, j in cells.tolist():
        x = margin + j * cell
        y = margin + i * cell
        kind = "hit" if i == j else "miss"
        shade = 0.12 + 0.88 * float(shares[i, j]) ** (1 if i == j else 0.6)
        elements.append(
            f'<rect class="{kind}" data-c="{i},{j},{counts[i, j]}" x="{x + gap / 2:.1f}" '
            f'y="{y + gap / 2:.1f}" width="{cell - gap:.1f}" height="{cell - gap:.1f}" '
            f'fill-opacity="{shade:.2f}"/>'
        )
        if numbered:
            light = " light" if shade > 0.5 else ""
            middle = f'x="{x + cell / 2:.1f}" y="{y + 0.5 * cell + min(5.0, 0.16 * cell):.1f}"'
            elements.append(
                f'<text class="n{light}" font-size="{min(14.0, 0.46 * cell):.1f}" {middle}>'
                f"{counts[i, j]}</text>"
            )
    if labeled:
        elements += _class_labels(classes, margin, cell=cell, letters=letters)
    side = margin + size * cell
    middle_x = margin + size * cell / 2
    elements.append(_text(middle_x, side + 16, text="answer", anchor="middle", style="label"))
    turn = f'transform="translate({side + 9:g} {margin + size * cell / 2:g}) rotate(90)"'
    elements.append(f'<text class="label" text-anchor="middle" {turn}>truth</text>')
    return _svg(side + 26, side + 22, elements=elements, label="Confusion matrix")


def _class_labels(
    classes: Sequence[str], margin: float, *, cell: float, letters: float
) -> Iterable[str]:
    for i, name in enumerate(classes):
        middle = margin + (i + 0.5) * cell + letters / 3
        shown = escape(_cut(name))
        title = escape(_one_line(name))
        left = f'text-anchor="end" x="{margin - 7:g}" y="{middle:g}"'
        above = f'transform="translate({middle:g} {margin - 7:g}) rotate(-90)"'
        for position in (left, above):
            yield (
                f'<text font-size="{letters:.3g}" {position}>{shown}<title>{title}</title></text>'
            )


def _cut(name: str) -> str:
    line = _one_line(name)
    return line if len(line) <= MAX_LETTERS else line[: MAX_LETTERS - 1] + "…"


def _one_line(name: str) -> str:
    return "".join(c if c.isprintable() else " " for c in name)


def _text_width(name: str) -> float:
    """Estimate the width of a name in pixels; CJK characters and emoji are square."""
    return sum(12.5 if ord(c) >= 0x1100 else 7.0 for c in name)


def _ticks(low: float, high: float, whole: bool = False) -> list[float]:
    """Return a few round numbers from at most ``low`` to at least ``high``."""
    from matplotlib.ticker import MaxNLocator

    if low == high:
        low -= 0.5
        high += 0.5
    values = MaxNLocator(5, integer=whole, steps=[1, 2, 5, 10]).tick_values(low, high)
    return [float(value) for value in values]


def _text(x: float, y: float, *, text: str, anchor: str, style: str = "") -> str:
    kind = f' class="{style}"' if style else ""
    return f'<text{kind} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(width: float, height: float, *, elements: Iterable[str], label: str) -> Markup:
    head = (
        f'<svg viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}" '
        f'role="img" aria-label="{escape(label)}">'
    )
    return Markup(head + "".join(elements) + "</svg>")
