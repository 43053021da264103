"""Figures as PNG files: curves, confusion matrix, reliability diagram, images with captions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..storage import atomic
from .fonts import figure_fonts
from .record import kept_epoch

BLUE = "#1f5fa8"
ORANGE = "#d9721a"
GRAY = "#666666"
MAX_LETTERS = 30  # letters of a name shown next to the matrix
MAX_CAPTION = 18  # letters in a caption, about as wide as an image


def _save(figure: Figure, path: Path) -> None:
    FigureCanvasAgg(figure)
    with atomic(path) as temporary:
        figure.savefig(
            temporary,
            format="png",
            dpi=120,
            metadata={"Software": None},  # it would differ between matplotlib versions
            bbox_inches=None if figure.get_layout_engine() else "tight",
        )


def _shorten(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def save_curves(history: Sequence[dict[str, Any]], path: Path, title: str) -> None:
    """Save loss and accuracy by epoch, from the rows of ``history.csv``."""
    with figure_fonts([title]) as (title,):
        _save(_draw_curves(history, title), path)


def _draw_curves(history: Sequence[dict[str, Any]], title: str) -> Figure:
    epochs = [row["epoch"] for row in history]
    figure = Figure(figsize=(10, 4), layout="constrained")
    figure.suptitle(title)
    for axes, what in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        for split, color in (("train", ORANGE), ("val", BLUE)):
            if f"{split}_{what}" not in history[0]:  # no validation
                continue
            values = [row[f"{split}_{what}"] for row in history]
            label = "training (augmented)" if split == "train" else "validation"
            axes.plot(epochs, values, color=color, marker="o", markersize=3, label=label)
        axes.set_xlabel("epoch")
        axes.set_ylabel(what)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.get_major_locator().set_params(integer=True)
    kept = kept_epoch(history)
    if "val_accuracy" in kept:
        axes.annotate(
            f"{kept['val_accuracy']:.2%}",
            (kept["epoch"], kept["val_accuracy"]),
            textcoords="offset points",
            xytext=(0, 6),
            ha="center",
            color=BLUE,
        )
    axes.margins(x=0.06, y=0.09)  # room for the annotation
    axes.legend(loc="lower right", frameon=False)
    return figure


def save_learning_rates(
    rates: Sequence[float], losses: Sequence[float], suggestion: float, path: Path
) -> None:
    """Save the smoothed loss by learning rate, with the rate that the finder suggests."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(rates, losses, color=BLUE)
    axes.axvline(suggestion, color=ORANGE, linestyle="--", label=f"suggested: {suggestion:.1g}")
    axes.set_xscale("log")
    axes.set_xlabel("learning rate")
    axes.set_ylabel("loss (smoothed)")
    axes.set_title("A short run with an increasing learning rate")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    _save(figure, path)


def save_confusion_matrix(matrix: Any, classes: Sequence[str], path: Path, title: str) -> None:
    """Save the confusion matrix: truth by row, prediction by column.

    Colors show shares of the row; numbers are counts.
    """
    short = [_shorten(name, MAX_LETTERS) for name in classes]
    with figure_fonts([title, *short]) as (title, *names):
        _save(_draw_confusion_matrix(matrix, names, title=title), path)


def _draw_confusion_matrix(matrix: Any, classes: Sequence[str], title: str) -> Figure:
    counts = np.asarray(matrix)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    numbered = len(classes) <= 50  # with more, the counts are too small to read
    side = min(30.0, max(5.0, (0.45 if numbered else 0.18) * len(classes) + 2))
    figure = Figure(figsize=(side + 0.8, side))
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, shrink=0.8, label="share of the true class")
    axes.set_title(title)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    size = 9 if numbered else 6
    rotation = 90 if max(map(len, classes)) > 2 else 0
    axes.set_xticks(range(len(classes)), classes, rotation=rotation, fontsize=size)
    axes.set_yticks(range(len(classes)), classes, fontsize=size)
    if numbered:
        for (i, j), count in np.ndenumerate(counts):
            if count:
                color = "white" if shares[i, j] > 0.5 else "black"
                axes.text(j, i, str(count), ha="center", va="center", color=color, fontsize=8)
    return figure


def save_reliability(bins: Sequence[dict[str, Any]], path: Path, title: str) -> None:
    """Save the reliability diagram: accuracy by probability, above the number of images per bin.

    On the diagonal, probability and accuracy are equal.

    Args:
        bins: the bins of the metrics.
        path: the file to write.
        title: the title of the figure.
    """
    with figure_fonts([title]) as (title,):
        _save(_draw_reliability([row for row in bins if row["pictures"]], title), path)


def _draw_reliability(bins: Sequence[dict[str, Any]], title: str) -> Figure:
    figure = Figure(figsize=(5, 6), layout="constrained")
    figure.suptitle(title)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    left = [row["from"] for row in bins]
    width = [row["to"] - row["from"] for row in bins]
    heights = [row["accuracy"] for row in bins]
    upper.bar(left, heights, width, align="edge", color=BLUE, alpha=0.75, edgecolor="white")
    upper.plot([0, 1], [0, 1], color=GRAY, linestyle="--", linewidth=1)
    upper.scatter([row["confidence"] for row in bins], heights, color=ORANGE, s=18, zorder=3)
    upper.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy")
    lower.bar(left, [row["pictures"] for row in bins], width, align="edge", color=GRAY)
    lower.set(xlabel="probability of the answer", ylabel="images")
    for axes in (upper, lower):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def save_image_grid(
    images: Sequence[np.ndarray],
    captions: Sequence[str],
    path: Path,
    title: str,
    marked: Sequence[bool] = (),
    columns: int = 8,
) -> None:
    """Save a grid of images.

    Args:
        images: each ``(H, W, 3)`` uint8.
        captions: one below each image.
        path: the file to write.
        title: the title of the figure.
        marked: which captions to draw in orange, for example those of wrong answers.
        columns: images per row.
    """
    short = [_shorten(caption, MAX_CAPTION) for caption in captions]
    with figure_fonts([title, *short]) as (title, *lines):
        _save(_draw_images(images, lines, title=title, marked=marked, columns=columns), path)


def _draw_images(
    images: Sequence[np.ndarray],
    captions: Sequence[str],
    *,
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
            color = ORANGE if i < len(marked) and marked[i] else "black"
            axes.set_title(captions[i], y=-0.22, fontsize=8, color=color)
    return figure
