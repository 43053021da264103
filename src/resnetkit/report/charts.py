"""Charts of the report as SVG: their text is the page's own, so that names in any script are drawn
by the browser, and a class in the style sheet gives the colours."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup, escape

WIDTH, HEIGHT = 460, 270
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 12, 36
NUMBERED = 32  # classes: beyond, their counts do not fit into the cells of the matrix
LABELLED = 100  # classes: beyond, their names do not fit beside it
DRAWN = 250  # classes: beyond, a cell is smaller than a pixel
CELLS = 12_000
LONGEST = 22  # characters of a name beside the matrix


@dataclass(frozen=True)
class Line:
    """``y`` over ``x``; ``style`` is a class of the style sheet."""

    label: str
    style: str
    x: Sequence[float]
    y: Sequence[float]


def lines(series: Sequence[Line], xlabel: str, share: bool) -> Markup:
    """A line chart; with ``share`` the values are shown as percent."""
    points = [
        (x, y) for line in series for x, y in zip(line.x, line.y, strict=True) if math.isfinite(y)
    ]
    if not points:
        return Markup("")
    xs, ys = zip(*points, strict=True)
    xticks, yticks = _ticks(min(xs), max(xs), whole=True), _ticks(min(ys), max(ys))
    low, high = min(*ys, yticks[0]), max(*ys, yticks[-1])
    first, last = min(xs), max(xs)

    def place(x: float, y: float) -> tuple[float, float]:
        across = 0.5 if last == first else (x - first) / (last - first)
        return (
            LEFT + across * (WIDTH - LEFT - RIGHT),
            TOP + (high - y) / ((high - low) or 1) * (HEIGHT - TOP - BOTTOM),
        )

    parts = []
    digits = max(0, -math.floor(math.log10(yticks[1] - yticks[0]) + 1e-9))
    for tick in yticks:
        y = place(first, tick)[1]
        text = f"{tick:.{max(0, digits - 2)}%}" if share else f"{tick:.{digits}f}"
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(_text(LEFT - 7, y + 4, text, "end"))
    for tick in xticks:
        if first <= tick <= last:
            parts.append(_text(place(tick, low)[0], HEIGHT - 19, f"{tick:g}", "middle"))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 3, xlabel, "middle", "label"))
    for line in series:
        there = [place(x, y) for x, y in zip(line.x, line.y, strict=True) if math.isfinite(y)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in there)
        parts.append(f'<polyline class="line {line.style}" points="{path}"/>')
        if len(there) <= 40:
            parts += [
                f'<circle class="dot {line.style}" cx="{x:.1f}" cy="{y:.1f}" r="2.6"/>'
                for x, y in there
            ]
    return _svg(WIDTH, HEIGHT, parts, "; ".join(line.label for line in series))


def reliability(bins: Sequence[dict[str, Any]]) -> Markup:
    """Accuracy by probability over how many answers each bin has, from the bins of the metrics."""
    width, upper, lower = 380, 300, 56
    left, side = 46, 380 - 46 - 14
    most = max(row["pictures"] for row in bins)

    def across(share: float) -> float:
        return left + share * side

    def up(share: float) -> float:
        return 10 + (1 - share) * (upper - 10)

    parts = []
    for tick in (0, 0.25, 0.5, 0.75, 1):
        parts.append(f'<path class="grid" d="M{left} {up(tick):.1f}H{left + side}"/>')
        parts.append(_text(left - 7, up(tick) + 4, f"{tick:.0%}", "end"))
        parts.append(_text(across(tick), upper + lower + 28, f"{tick:.0%}", "middle"))
    base = upper + lower + 10
    base = upper + lower + 10
    for row in bins:
        if row["pictures"]:
            x, w = across(row["from"]) + 1, (row["to"] - row["from"]) * side - 2
            high, tall = up(row["accuracy"]), max(1, row["pictures"] / most * lower)
            box = f'x="{x:.1f}" width="{w:.1f}"'
            parts.append(
                f"<g><title>{_describe(row)}</title>"
                f'<rect class="bar" {box} y="{high:.1f}" height="{upper - high:.1f}"/>'
                f'<rect class="count" {box} y="{base - tall:.1f}" height="{tall:.1f}"/>'
                f'<circle class="mean" cx="{across(row["confidence"]):.1f}" cy="{high:.1f}" '
                'r="3.4"/></g>'
            )
    parts.append(
        f'<path class="ideal" d="M{across(0):.1f} {up(0):.1f}L{across(1):.1f} {up(1):.1f}"/>'
    )
    middle = left + side / 2
    parts.append(_text(middle, base + 36, "probability of the answer", "middle", "label"))
    return _svg(width, base + 42, parts, "Accuracy by probability")


def _describe(row: dict[str, Any]) -> str:
    return (
        f"{row['pictures']} answers with {row['confidence']:.1%} on average: "
        f"{row['accuracy']:.1%} are right"
    )


def matrix(counts: np.ndarray, classes: Sequence[str]) -> Markup | None:
    """The confusion matrix, truth by row: right answers in one colour, errors in another, as dark
    as their share of the row. A cell says in its data which it is; the page shows that. None where
    there is too much to draw."""
    size = len(classes)
    cells = np.argwhere(counts > 0)
    if size > DRAWN or len(cells) > CELLS:
        return None
    numbered, named = size <= NUMBERED, size <= LABELLED
    cell = max(2.6, 640 / size)
    if named:
        cell = min(46.0, max(22.0, 380 / size)) if numbered else min(22.0, 860 / size)
    letters = min(12.0, 0.93 * cell)  # their height
    margin = 12 + letters / 12 * max(_width(_cut(name)) for name in classes) if named else 24
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    parts = [
        f'<rect class="paper" x="{margin:g}" y="{margin:g}" width="{size * cell:g}" '
        f'height="{size * cell:g}"/>'
    ]
    gap = 1.5 if numbered else 0.5 if named else 0.0
    for i, j in cells.tolist():
        x, y = margin + j * cell, margin + i * cell
        kind = "hit" if i == j else "miss"
        shade = 0.12 + 0.88 * float(shares[i, j]) ** (1 if i == j else 0.6)
        parts.append(
            f'<rect class="{kind}" data-c="{i},{j},{counts[i, j]}" x="{x + gap / 2:.1f}" '
            f'y="{y + gap / 2:.1f}" width="{cell - gap:.1f}" height="{cell - gap:.1f}" '
            f'fill-opacity="{shade:.2f}"/>'
        )
        if numbered:
            dark = " light" if shade > 0.5 else ""
            middle = f'x="{x + cell / 2:.1f}" y="{y + 0.5 * cell + min(5.0, 0.16 * cell):.1f}"'
            parts.append(
                f'<text class="n{dark}" font-size="{min(14.0, 0.46 * cell):.1f}" {middle}>'
                f"{counts[i, j]}</text>"
            )
    parts += list(_names(classes, margin, cell, letters)) if named else []
    side = margin + size * cell
    parts.append(_text(margin + size * cell / 2, side + 16, "answer", "middle", "label"))
    turn = f'transform="translate({side + 9:g} {margin + size * cell / 2:g}) rotate(90)"'
    parts.append(f'<text class="label" text-anchor="middle" {turn}>truth</text>')
    return _svg(side + 26, side + 22, parts, "Confusion matrix")


def _names(classes: Sequence[str], margin: float, cell: float, letters: float) -> Iterable[str]:
    for i, name in enumerate(classes):
        middle = margin + (i + 0.5) * cell + letters / 3
        shown, tip = escape(_cut(name)), escape(_plain(name))
        left = f'text-anchor="end" x="{margin - 7:g}" y="{middle:g}"'
        above = f'transform="translate({middle:g} {margin - 7:g}) rotate(-90)"'
        for place in (left, above):
            yield f'<text font-size="{letters:.3g}" {place}>{shown}<title>{tip}</title></text>'


def _cut(name: str) -> str:
    plain = _plain(name)
    return plain if len(plain) <= LONGEST else plain[: LONGEST - 1] + "…"


def _plain(name: str) -> str:
    return "".join(c if c.isprintable() else " " for c in name)


def _width(name: str) -> float:
    """About how many pixels a name takes: Chinese, Japanese, Korean and emoji are square."""
    return sum(12.5 if ord(c) >= 0x1100 else 7.0 for c in name)


def _ticks(low: float, high: float, whole: bool = False) -> list[float]:
    """Four to six round numbers, at the ends or just beyond them."""
    from matplotlib.ticker import MaxNLocator

    if low == high:
        low, high = low - 0.5, high + 0.5
    values = MaxNLocator(5, integer=whole, steps=[1, 2, 5, 10]).tick_values(low, high)
    return [float(value) for value in values]


def _text(x: float, y: float, text: str, anchor: str, style: str = "") -> str:
    kind = f' class="{style}"' if style else ""
    return f'<text{kind} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(width: float, height: float, parts: Iterable[str], label: str) -> Markup:
    head = (
        f'<svg viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}" '
        f'role="img" aria-label="{escape(label)}">'
    )
    return Markup(head + "".join(parts) + "</svg>")
