from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib import font_manager

from resnetkit.report import fonts, plots

LATIN = font_manager.findfont("DejaVu Sans")
MATHS = str(Path(LATIN).with_name("STIXGeneral.ttf"))  # both come with matplotlib


def test_the_standard_font_is_enough_if_it_has_all_characters(monkeypatch):
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: pytest.fail("not needed"))
    assert fonts.select_families(set("Rosé Ж ع ß 3")) == (["DejaVu Sans"], set())


def test_another_font_supplies_missing_characters(monkeypatch):
    only = min(fonts.glyphs(MATHS) - fonts.glyphs(LATIN))
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [LATIN, MATHS, __file__])
    families, missing = fonts.select_families({"a", chr(only)})
    assert families == ["DejaVu Sans", "STIXGeneral"]
    assert missing == set()


def test_the_best_single_font_has_the_most_letters(monkeypatch):
    only = min(fonts.glyphs(MATHS) - fonts.glyphs(LATIN))
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [MATHS, __file__])
    fonts.best_font.cache_clear()
    assert fonts.best_font("Löwenzahn одуванчик αβγ") == (LATIN, "")
    assert fonts.best_font(f"a {chr(only)} b") == (MATHS, "")
    assert fonts.best_font(f"ab{chr(only)}花") == (MATHS, "花")
    assert fonts.best_font("ab花") == (LATIN, "花")  # no other font is better
    fonts.best_font.cache_clear()


def test_characters_without_a_font_become_squares_with_a_note(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(font_manager, "findSystemFonts", list)
    with fonts.figure_fonts(["花 a", "line\nbreak"]) as drawn:
        assert drawn == ["□ a", "line break"]
    assert "no installed font has '花'" in capsys.readouterr().err


def test_figures_accept_names_of_any_kind(tmp_path):
    """Warnings are errors in tests: no glyph is missing, and no name is read as a formula."""
    names = ["花", "زهرة", "🌷 tulip", "$x^$ \\frac{", "a" * 80, "กุหลาบ", "한국", "_{"]
    plots.save_confusion_matrix(np.eye(8, dtype=int), names, tmp_path / "m.png", "$花_")
    image = np.zeros((8, 8, 3), np.uint8)
    plots.save_image_grid([image] * 8, names, tmp_path / "p.png", "\\$")
    row = {"epoch": 1, "train_loss": 1, "val_loss": 2, "train_accuracy": 0, "val_accuracy": 0}
    plots.save_curves([row], tmp_path / "c.png", "花 $")
    for name in "mpc":
        assert (tmp_path / f"{name}.png").stat().st_size > 3000
