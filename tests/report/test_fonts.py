from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib import font_manager

from resnetkit.report import fonts, plots

LATIN = font_manager.findfont("DejaVu Sans")
MATHS = str(Path(LATIN).with_name("STIXGeneral.ttf"))  # both come with matplotlib


def test_the_standard_font_alone_where_it_has_all(monkeypatch):
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: pytest.fail("not needed"))
    assert fonts.choose(set("Rosé Ж ع ß 3")) == (["DejaVu Sans"], set())


def test_another_font_is_asked_for_what_is_missing(monkeypatch):
    only = min(fonts.glyphs(MATHS) - fonts.glyphs(LATIN))
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [LATIN, MATHS, __file__])
    families, missing = fonts.choose({"a", chr(only)})
    assert families == ["DejaVu Sans", "STIXGeneral"]
    assert missing == set()


def test_who_draws_with_one_font_gets_the_one_with_the_most_letters(monkeypatch):
    only = min(fonts.glyphs(MATHS) - fonts.glyphs(LATIN))
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [MATHS, __file__])
    fonts.one_for.cache_clear()
    assert fonts.one_for("Löwenzahn одуванчик αβγ") == (LATIN, "")
    assert fonts.one_for(f"a {chr(only)} b") == (MATHS, "")
    assert fonts.one_for(f"ab{chr(only)}花") == (MATHS, "花")
    assert fonts.one_for("ab花") == (LATIN, "花")  # none is better than the standard one
    fonts.one_for.cache_clear()


def test_what_no_font_has_becomes_a_square_and_is_said(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(font_manager, "findSystemFonts", list)
    with fonts.drawing(["花 a", "line\nbreak"]) as drawn:
        assert drawn == ["□ a", "line break"]
    assert "no installed font has '花'" in capsys.readouterr().err


def test_figures_take_names_of_any_kind(tmp_path):
    """Warnings are errors here: no glyph may be missing, and no name is read as a formula."""
    names = ["花", "زهرة", "🌷 tulip", "$x^$ \\frac{", "a" * 80, "กุหลาบ", "한국", "_{"]
    plots.save_confusion_matrix(np.eye(8, dtype=int), names, tmp_path / "m.png", "$花_")
    image = np.zeros((8, 8, 3), np.uint8)
    plots.save_image_grid([image] * 8, names, tmp_path / "p.png", "\\$")
    row = {"epoch": 1, "train_loss": 1, "val_loss": 2, "train_accuracy": 0, "val_accuracy": 0}
    plots.save_curves([row], tmp_path / "c.png", "花 $")
    for name in "mpc":
        assert (tmp_path / f"{name}.png").stat().st_size > 3000
