"""The study's figures as SVG files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from ..storage import atomic

if TYPE_CHECKING:
    from .gradients import Layer, Responses, Signal
    from .runs import Outcome

COLORS = ("#1f5fa8", "#d9721a", "#3a923a", "#8c4fa8", "#666666", "#b8293d")


def _save(figure: Figure, path: Path) -> None:
    FigureCanvasSVG(figure)
    # No date and no random ids, so that the same numbers give the same bytes.
    with matplotlib.rc_context({"svg.hashsalt": "resnetkit"}), atomic(path) as temporary:
        figure.savefig(temporary, format="svg", metadata={"Date": None, "Creator": None})


def _plain(axes: Any, x: str, y: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _by_layer(axes: Any, signals: Sequence[Signal], when: str, what: str) -> None:
    """Plot one line per network on a logarithmic scale, with crosses for non-finite values."""
    ceiling = 0.0
    for signal, color in zip(signals, COLORS, strict=False):
        layers: Sequence[Layer] = getattr(signal, when)[:-1]  # without the head
        values = [getattr(layer, what) for layer in layers]
        shown = [value if math.isfinite(value) and value > 0 else math.nan for value in values]
        axes.plot(range(1, len(values) + 1), shown, color=color, linewidth=1.4, label=signal.net)
        ceiling = max([ceiling, *(value for value in shown if math.isfinite(value))])
    for row, (signal, color) in enumerate(zip(signals, COLORS, strict=False)):
        values = [getattr(layer, what) for layer in getattr(signal, when)[:-1]]
        lost = [i + 1 for i, value in enumerate(values) if not math.isfinite(value)]
        height = ceiling * 10 ** (1 + row)
        axes.plot(lost, [height] * len(lost), "x", color=color, markersize=3)
    axes.set_yscale("log")


def stacks(found: Sequence[Signal], path: Path) -> None:
    """Draw `signals` at initialization; the gradient is with respect to each layer's output."""
    signals(found, path, what="backward", after=False)


def signals(
    found: Sequence[Signal], path: Path, *, what: str = "gradient", after: bool = True
) -> None:
    """Plot the activations and gradients by layer, and the loss by step.

    Crosses mark values that are infinite or NaN.

    Args:
        found: the networks.
        path: the file to write.
        what: the gradient to draw, ``gradient`` or ``backward`` of a `Layer`.
        after: add a second row for the state after the training steps.
    """
    gradient_of = {"gradient": "weights", "backward": "output"}[what]
    rows: list[tuple[str, str]] = [("before", "at initialization")]
    if after:
        rows.append(("after", f"after {found[0].steps} steps"))
    figure = Figure(figsize=(10.5, 3.1 * len(rows) + 0.7 * (not after)), layout="constrained")
    grid = figure.subplots(len(rows), 3, squeeze=False)
    for (when, title), (left, middle, right) in zip(rows, grid, strict=True):
        _by_layer(left, found, when, "activation")
        _plain(left, "layer", "std of the output")
        _by_layer(middle, found, when, what)
        _plain(middle, "layer", f"norm of the gradient ({gradient_of})")
        for axes in (left, middle):
            axes.set_title(title, fontsize=10)
        right.axis("off")
    losses = grid[0][2]
    losses.axis("on")
    for signal, color in zip(found, COLORS, strict=False):
        shown = [value if value < 10 else math.nan for value in signal.losses]
        losses.plot(range(1, signal.steps + 1), shown, color=color, linewidth=1.4)
        if not math.isfinite(signal.losses[-1]):
            last = sum(map(math.isfinite, signal.losses))
            losses.plot([last + 1], [0.0], "x", color=color, markersize=7, clip_on=False)
    losses.set_ylim(0, 4)
    _plain(losses, "step", "training loss")
    handles = grid[0][0].get_legend_handles_labels()
    if after:
        grid[1][2].legend(*handles, loc="center", frameon=False)
    else:
        figure.legend(*handles, loc="outside lower center", ncols=3, frameon=False)
    _save(figure, path)


def responses(found: Sequence[Responses], path: Path) -> None:
    """Draw figure 7: standard deviations in the order of the layers, and sorted."""
    figure = Figure(figsize=(9, 6), layout="constrained")
    shades = {"plain": matplotlib.colormaps["Blues"], "resnet": matplotlib.colormaps["Oranges"]}
    deepest = max(len(each.values) for each in found)
    for axes, ordered in zip(figure.subplots(2, 1), (False, True), strict=True):
        for each in found:
            values = sorted(each.values, reverse=True) if ordered else each.values
            shade = shades["plain" if "plain" in each.net else "resnet"]
            color = shade(0.25 + 0.65 * len(values) / deepest)  # deeper is darker
            axes.plot(range(1, len(values) + 1), values, color=color, label=each.net)
        axes.set_ylim(bottom=0)
        _plain(axes, "layer, by size" if ordered else "layer", "std of the response")
    figure.axes[0].legend(frameon=False, ncols=2)
    _save(figure, path)


def _mean_percent(runs: Sequence[Sequence[float]]) -> list[float]:
    """Return the mean of several runs by epoch, in %."""
    return [100 * sum(column) / len(column) for column in zip(*runs, strict=True)]


def errors(found: Sequence[Outcome], groups: Sequence[Sequence[str]], path: Path) -> None:
    """Draw error by epoch, as in figure 6.

    One panel per group of networks, one color per network. Lines are means over the seeds: dashed
    for training, bold for validation. The band is the range of the training errors.
    """
    figure = Figure(figsize=(5.2 * len(groups), 4.2), layout="constrained")
    panels = figure.subplots(1, len(groups), squeeze=False, sharey=True)[0]
    for axes, names in zip(panels, groups, strict=True):
        for name, color in zip(names, COLORS, strict=False):
            outcomes = [outcome for outcome in found if outcome.net == name]
            training = [outcome.train_errors for outcome in outcomes]
            low, high = (
                [100 * extreme(column) for column in zip(*training, strict=True)]
                for extreme in (min, max)
            )
            epochs = range(1, len(low) + 1)
            axes.fill_between(epochs, low, high, color=color, alpha=0.12, linewidth=0)
            axes.plot(epochs, _mean_percent(training), "--", color=color, linewidth=1)
            validation = _mean_percent([outcome.val_errors for outcome in outcomes])
            axes.plot(epochs, validation, color=color, linewidth=2, label=name)
        _plain(axes, "epoch", "error, %")
        axes.set_ylim(bottom=0)
        above_axes = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0), "ncols": len(names)}
        axes.legend(
            frameon=False,
            title="dashed: training; bold: validation",
            title_fontsize=9,
            **above_axes,
        )
    _save(figure, path)
