"""Figures as PNG files: curves, confusion matrix, pictures with captions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..storage import atomic
from .fonts import drawing
from .record import best_epoch

BLUE, ORANGE, GREY = "#1f5fa8", "#d9721a", "#666666"
LONGEST = 30  # characters of a name beside the matrix


def _save(figure: Figure, path: Path) -> None:
    FigureCanvasAgg(figure)
    with atomic(path) as temporary:
        figure.savefig(
            temporary,
            format="png",
            dpi=120,
            metadata={"Software": None},  # the same bytes from every version
            bbox_inches=None if figure.get_layout_engine() else "tight",
        )


def curves(history: Sequence[dict[str, Any]], path: Path, title: str) -> None:
    """Loss and accuracy by epoch, for training and validation, from the rows of ``history.csv``."""
    with drawing([title]) as (title,):
        _save(_curves(history, title), path)


def _curves(history: Sequence[dict[str, Any]], title: str) -> Figure:
    epochs = [row["epoch"] for row in history]
    figure = Figure(figsize=(10, 4), layout="constrained")
    figure.suptitle(title)
    for axes, what in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        for part, colour in (("train", ORANGE), ("val", BLUE)):
            values = [row[f"{part}_{what}"] for row in history]
            label = "training (augmented)" if part == "train" else "validation"
            axes.plot(epochs, values, color=colour, marker="o", markersize=3, label=label)
        axes.set_xlabel("epoch")
        axes.set_ylabel(what)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.get_major_locator().set_params(integer=True)
    best = best_epoch(history)
    axes.annotate(
        f"{best['val_accuracy']:.2%}",
        (best["epoch"], best["val_accuracy"]),
        textcoords="offset points",
        xytext=(0, 6),
        ha="center",
        color=BLUE,
    )
    axes.margins(x=0.06, y=0.09)  # room for that text
    axes.legend(loc="lower right", frameon=False)
    return figure


def learning_rates(
    rates: Sequence[float], losses: Sequence[float], suggestion: float, path: Path
) -> None:
    """Smoothed loss over the rate of a learning-rate finder, and where it says to go."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(rates, losses, color=BLUE)
    axes.axvline(suggestion, color=ORANGE, linestyle="--", label=f"suggested: {suggestion:.1g}")
    axes.set_xscale("log")
    axes.set_xlabel("learning rate")
    axes.set_ylabel("loss (smoothed)")
    axes.set_title("A short run with a growing rate")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    _save(figure, path)


def confusion_matrix(matrix: Any, classes: Sequence[str], path: Path, title: str) -> None:
    """Truth by row, prediction by column. Colours are shares of the row; numbers are counts."""
    short = [name if len(name) <= LONGEST else name[: LONGEST - 1] + "…" for name in classes]
    with drawing([title, *short]) as (title, *names):
        _save(_confusion_matrix(matrix, names, title), path)


def _confusion_matrix(matrix: Any, classes: Sequence[str], title: str) -> Figure:
    counts = np.asarray(matrix)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    numbered = len(classes) <= 50  # beyond, the counts would be too small to read
    side = min(30.0, max(5.0, (0.45 if numbered else 0.18) * len(classes) + 2))
    figure = Figure(figsize=(side + 0.8, side))
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, shrink=0.8, label="share of the true class")
    axes.set_title(title)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    size = 9 if numbered else 6
    upright = 90 if max(map(len, classes)) > 2 else 0
    axes.set_xticks(range(len(classes)), classes, rotation=upright, fontsize=size)
    axes.set_yticks(range(len(classes)), classes, fontsize=size)
    if numbered:
        for (i, j), count in np.ndenumerate(counts):
            if count:
                colour = "white" if shares[i, j] > 0.5 else "black"
                axes.text(j, i, str(count), ha="center", va="center", color=colour, fontsize=8)
    return figure


def reliability(bins: Sequence[dict[str, Any]], path: Path, title: str) -> None:
    """Accuracy by probability, from the ``bins`` of the metrics, above how many answers each bin
    has. On the diagonal a probability means what it says."""
    with drawing([title]) as (title,):
        _save(_reliability([row for row in bins if row["pictures"]], title), path)


def _reliability(bins: Sequence[dict[str, Any]], title: str) -> Figure:
    figure = Figure(figsize=(5, 6), layout="constrained")
    figure.suptitle(title)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    left = [row["from"] for row in bins]
    width = [row["to"] - row["from"] for row in bins]
    heights = [row["accuracy"] for row in bins]
    upper.bar(left, heights, width, align="edge", color=BLUE, alpha=0.75, edgecolor="white")
    upper.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1)
    upper.scatter([row["confidence"] for row in bins], heights, color=ORANGE, s=18, zorder=3)
    upper.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy")
    lower.bar(left, [row["pictures"] for row in bins], width, align="edge", color=GREY)
    lower.set(xlabel="probability of the answer", ylabel="pictures")
    for axes in (upper, lower):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def images(
    shown: Sequence[np.ndarray],
    captions: Sequence[str],
    path: Path,
    title: str,
    marked: Sequence[bool] = (),
    columns: int = 8,
) -> None:
    """A sheet of pictures.

    Args:
        images: each ``(H, W, 3)`` uint8.
        captions: one below each.
        marked: which captions to draw in orange; a wrong answer, say.
    """
    with drawing([title, *captions]) as (title, *lines):
        _save(_images(shown, lines, title, marked, columns), path)


def _images(
    images: Sequence[np.ndarray],
    captions: Sequence[str],
    title: str,
    marked: Sequence[bool],
    columns: int,
) -> Figure:
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(1.35 * columns, 1.7 * rows + 0.5), layout="constrained")
    figure.suptitle(title)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for i, axes in enumerate(grid):
        axes.axis("off")
        if i < len(images):
            axes.imshow(images[i])
            colour = ORANGE if i < len(marked) and marked[i] else "black"
            axes.set_title(captions[i], y=-0.22, fontsize=8, color=colour)
    return figure
