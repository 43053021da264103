from __future__ import annotations

import numpy as np
import pytest
from matplotlib import font_manager
from PIL import Image, ImageDraw

from resnetkit import load
from resnetkit.cli.prediction_writer import PredictionWriter
from resnetkit.inference import drawing
from resnetkit.inference.prediction import Prediction
from resnetkit.report import fonts


def bottom_band(image):
    """Return the gray values of the bottom rows, where the text is."""
    return np.asarray(image.convert("L"), dtype=float)[-20:]


@pytest.mark.parametrize("gray", [0, 128, 255])
@pytest.mark.parametrize("size", [(28, 28), (500, 375), (375, 500), (3000, 40), (40, 3000)])
def test_the_text_has_contrast_on_any_background(gray, size):
    pixels = np.full((size[1], size[0], 3), gray, np.uint8)
    there = bottom_band(drawing.draw_label(pixels, "rose", 0.973))
    light, dark = np.percentile(there, [99.5, 20])
    assert (light + 12) / (dark + 12) > 4.5  # the ratio that WCAG requires
    assert (there > 200).mean() > 0.001  # the text is there


def test_different_answers_are_drawn_differently_and_long_names_are_cut():
    pixels = np.full((224, 224, 3), 90, np.uint8)
    one = drawing.draw_label(pixels, "rose", 0.9)
    assert (
        np.asarray(one).tobytes() != np.asarray(drawing.draw_label(pixels, "rose", 0.8)).tobytes()
    )
    assert (
        np.asarray(one).tobytes() != np.asarray(drawing.draw_label(pixels, "nose", 0.9)).tobytes()
    )
    long = drawing.draw_label(pixels, "Taraxacum sect. Ruderalia, a very common flower " * 3, 0.5)
    assert long.size == (224, 224)
    assert (bottom_band(long)[:, -6:] < 200).all()  # nothing reaches the right edge


def test_a_photo_that_is_gone_after_its_prediction_is_named(
    tiny_model, flat_folder, tmp_path, caplog
):
    predictor = load(tiny_model)
    photos = flat_folder / "red"
    drawn = tmp_path / "drawn"
    writer = PredictionWriter(
        predictor,
        "jsonl",
        out=tmp_path / "rows.jsonl",
        resume=False,
        image_folder=drawn,
        embeddings=None,
        columns=(),
        threshold=0.0,
        false_alarms=None,
    )
    with writer:
        answers = list(predictor.stream(writer.open_sources([str(photos)]), keep_images=True))
        (photos / "003.png").unlink()
        assert writer.write(iter(answers)) == 0
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == 16
    assert [path.name[:6] for path in sorted(drawn.glob("*.jpg"))] == [
        f"{number:06d}" for number in range(16) if number != 3
    ]
    assert "003.png was moved, deleted or damaged after its prediction" in caplog.text


def test_missing_letters_are_collected_from_all_names(monkeypatch):
    monkeypatch.setattr(font_manager, "findSystemFonts", list)
    fonts.best_font.cache_clear()
    assert drawing.missing_letters(("ab花", "Löwenzahn", "c薔")) == "花薔"
    fonts.best_font.cache_clear()


def test_letters_without_a_font_are_written_as_escapes(monkeypatch):
    shown = []
    monkeypatch.setattr(drawing, "font_for", lambda text: (standard_font(), "花"))
    original = ImageDraw.ImageDraw.text
    monkeypatch.setattr(
        ImageDraw.ImageDraw,
        "text",
        lambda self, xy, text, *a, **k: (shown.append(text), original(self, xy, text, *a, **k))[1],
    )
    drawing.draw_label(np.zeros((300, 300, 3), np.uint8), "花 a\\b", 0.5)
    assert shown == ["\\u82b1 a\\b", "  50.0%"]


def test_the_probability_has_a_font_with_digits_and_follows_the_name(monkeypatch):
    """A Thai font may lack digits; digits drawn together with Arabic text would move."""
    drawn = []
    original = ImageDraw.ImageDraw.text

    def text(self, xy, text, fill, font, anchor):
        drawn.append((xy[0], text, font.path))
        original(self, xy, text, fill, font, anchor)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    other = font_manager.findfont("DejaVu Serif")
    monkeypatch.setattr(
        drawing, "font_for", lambda text: (other if "ز" in text else standard_font(), "")
    )
    drawing.draw_label(np.zeros((300, 300, 3), np.uint8), "زهرة", 0.527)
    (left, name, font), (right, tail, plain) = drawn
    assert (name, tail) == ("زهرة", "  52.7%")
    assert (font, plain) == (other, standard_font())
    assert right > left + 20


def standard_font():
    from matplotlib import font_manager

    return font_manager.findfont("DejaVu Sans")


def test_files_never_collide(tmp_path):
    image = np.zeros((40, 40, 3), np.uint8)
    names = [
        "a/1.jpg",
        "b/1.jpg",
        "b/1.jpg",
        "../../1.jpg",
        "x" * 300,
        "n\0ul",
        "花/.jpg",
        "\udcff",
    ]
    paths = [
        drawing.save_labeled(Prediction(name, (("rose", 0.5),), "", image=image), tmp_path, number)
        for number, name in enumerate(names)
    ]
    assert len(set(paths)) == len(names)
    assert all(path.parent == tmp_path for path in paths)
    for path in paths:
        with Image.open(path) as written:
            assert written.size == (224, 224)
    assert drawing.save_labeled(Prediction("x", (), "", "broken"), tmp_path, 99) is None
