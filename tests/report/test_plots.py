from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from resnetkit.report import plots


def read_colors(path):
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"))
    return pixels, {tuple(p) for p in pixels.reshape(-1, 3)}


def test_curves_draw_both_splits(tmp_path):
    rows = [
        {
            "epoch": i,
            "train_loss": 1 / i,
            "val_loss": 2 / i,
            "train_accuracy": 0.5,
            "val_accuracy": 0.1 * i,
        }
        for i in range(1, 8)
    ]
    plots.save_curves(rows, tmp_path / "c.png", "title")
    _, found = read_colors(tmp_path / "c.png")
    for color in (plots.BLUE, plots.ORANGE):
        assert tuple(bytes.fromhex(color[1:])) in found


def test_one_epoch_is_enough(tmp_path):
    row = {"epoch": 1, "train_loss": 1, "val_loss": 2, "train_accuracy": 0, "val_accuracy": 0}
    plots.save_curves([row], tmp_path / "c.png", "title")
    assert (tmp_path / "c.png").stat().st_size > 5000


@pytest.mark.slow
def test_confusion_matrix_of_few_and_many_classes(tmp_path):
    for n in (2, 120):
        matrix = np.eye(n, dtype=int) * 5
        plots.save_confusion_matrix(
            matrix, [f"class {i}" for i in range(n)], tmp_path / "m.png", "t"
        )
        pixels, _ = read_colors(tmp_path / "m.png")
        assert pixels.shape[0] > 500


def test_images_are_drawn(tmp_path):
    red = np.full((8, 8, 3), (250, 10, 20), dtype=np.uint8)
    plots.save_image_grid(
        [red] * 3, ["a", "b", "c"], tmp_path / "p.png", "title", [False, True, False]
    )
    _, found = read_colors(tmp_path / "p.png")
    assert (250, 10, 20) in found
    plots.save_image_grid([red] * 3, ["a", "b", "c"], tmp_path / "unmarked.png", "title")
    marked, unmarked = (read_colors(tmp_path / name)[0] for name in ("p.png", "unmarked.png"))
    assert not np.array_equal(marked, unmarked)


def test_long_captions_do_not_overlap():
    images = [np.zeros((8, 8, 3), np.uint8)] * 2
    figure = plots._draw_images(
        images, ["x" * plots.MAX_CAPTION] * 2, title="t", marked=(), columns=8
    )
    plots.FigureCanvasAgg(figure).draw()
    left, right = (axes.title.get_window_extent() for axes in figure.axes[:2])
    assert left.x1 < right.x0


def test_the_grid_shortens_its_captions(tmp_path, monkeypatch):
    seen = []
    real = plots._draw_images
    monkeypatch.setattr(
        plots, "_draw_images", lambda i, lines, **more: seen.append(lines) or real(i, lines, **more)
    )
    image = np.zeros((8, 8, 3), np.uint8)
    plots.save_image_grid([image] * 2, ["x" * 200, "short"], tmp_path / "p.png", "title")
    assert seen == [["x" * (plots.MAX_CAPTION - 1) + "…", "short"]]


def test_the_reliability_diagram_draws_its_bins(tmp_path):
    bins = [
        {"from": 0.0, "to": 0.5, "pictures": 0, "confidence": None, "accuracy": None},
        {"from": 0.5, "to": 1.0, "pictures": 7, "confidence": 0.8, "accuracy": 0.6},
    ]
    plots.save_reliability(bins, tmp_path / "r.png", "title")
    pixels, found = read_colors(tmp_path / "r.png")
    assert tuple(bytes.fromhex(plots.ORANGE[1:])) in found
    right_half = pixels[:, pixels.shape[1] // 2 :].reshape(-1, 3).astype(int)
    left_half = pixels[:, : pixels.shape[1] // 2].reshape(-1, 3).astype(int)
    blue = [int(((half[:, 2] - half[:, 0]) > 60).sum()) for half in (left_half, right_half)]
    assert blue[0] == 0 < blue[1]
