"""Find installed fonts for names in any script.

Matplotlib's own font has Latin, Greek, Cyrillic, Hebrew and Arabic, but no Chinese, Japanese or
Korean. In the HTML report, the browser finds the fonts; for a PNG file, we have to.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from matplotlib import font_manager, rc_context

from ..progress import say

STANDARD = "DejaVu Sans"  # comes with matplotlib
MISSING = "\u25a1"  # □


@contextmanager
def figure_fonts(texts: Iterable[str]) -> Iterator[list[str]]:
    """Set the fonts for a figure with these texts; draw and save the figure in this context.

    Yields the texts as they can be drawn: on one line, and with a square for each character that
    is missing from all installed fonts. A note on standard error names these characters. A dollar
    sign is drawn as is, because names are not formulas.
    """
    plain = ["".join(c if c.isprintable() else " " for c in text) for text in texts]
    families, missing = select_families({c for text in plain for c in text})
    if missing:
        examples = "".join(sorted(missing)[:10])
        say(
            f"Note: no installed font has {examples!r}. Figures show {MISSING} instead; "
            "report.html shows the names. The Noto fonts (for example fonts-noto-cjk) cover nearly "
            "all characters"
        )
    table = str.maketrans(dict.fromkeys(missing, MISSING))
    with rc_context({"font.family": families, "text.parse_math": False}):
        yield [text.translate(table) for text in plain]


def select_families(characters: set[str]) -> tuple[list[str], set[str]]:
    """Return font families that cover the characters, in order, and the characters that none has.

    If the standard font has them all, no other font is opened.
    """
    standard = font_manager.findfont(STANDARD)
    families = [STANDARD]
    missing = {c for c in characters if ord(c) not in glyphs(standard)}
    files = sorted(font_manager.findSystemFonts()) if missing else []
    while files and missing:
        best = _best_file(files, missing)
        if not _covered(best, missing):
            break
        missing -= _covered(best, missing)
        families.append(_register(best))
    return families, missing


@cache
def best_font(text: str) -> tuple[str, str]:
    """Return the font file with the most letters of a text, and the letters that it lacks.

    This is for drawing with a single font. If the standard font has all letters, no other font is
    opened.
    """
    letters = {c for c in text if not c.isspace()}
    standard = best = str(font_manager.findfont(STANDARD))
    if letters - _covered(standard, letters):
        best = _best_file([standard, *sorted(font_manager.findSystemFonts())], letters)
    return best, "".join(sorted(letters - _covered(best, letters)))


def _best_file(files: list[str], characters: set[str]) -> str:
    return max(files, key=lambda file: (len(_covered(file, characters)), _is_regular(file)))


def _is_regular(file: str) -> bool:
    return bool(glyphs(file)) and font_manager.get_font(file).style_name in ("Regular", "Book")


def _covered(file: str, characters: set[str]) -> set[str]:
    known = glyphs(file)
    return {c for c in characters if ord(c) in known}


@cache
def glyphs(file: str) -> frozenset[int]:
    """Return the code points that a font file can draw.

    The set is empty for bitmap and color fonts and for files that cannot be read.
    """
    try:
        font = font_manager.get_font(file)
    except (RuntimeError, OSError):  # damaged, or a format that FreeType does not know
        return frozenset()
    is_color = "Color" in font.family_name or "Emoji" in font.family_name
    if not font.scalable or is_color:
        return frozenset()
    return frozenset(font.get_charmap())


@cache
def _register(file: str) -> str:
    """Add a font to matplotlib's list, which may be older than the font; return its family."""
    font_manager.fontManager.addfont(Path(file))
    return str(font_manager.get_font(file).family_name)
