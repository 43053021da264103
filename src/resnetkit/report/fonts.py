"""Names in any script, in figures: which installed fonts have the glyphs.

Matplotlib's own font knows Latin, Greek, Cyrillic, Hebrew and Arabic, and no Chinese, Japanese or
Korean. The report is HTML and leaves this to the browser; a PNG has to choose.
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
def drawing(texts: Iterable[str]) -> Iterator[list[str]]:
    """The context in which a figure with these texts is made and saved. Yields them as they can be
    drawn: on one line, and with a square in place of what no installed font has, which is said.

    A dollar sign is a dollar sign: names are no formulas.
    """
    plain = ["".join(c if c.isprintable() else " " for c in text) for text in texts]
    families, missing = choose({c for text in plain for c in text})
    if missing:
        shown = "".join(sorted(missing)[:10])
        say(
            f"Note: no installed font has {shown!r}: figures show {MISSING} there, report.html the "
            "names. The fonts of Noto (fonts-noto-cjk, for example) have nearly everything"
        )
    table = str.maketrans(dict.fromkeys(missing, MISSING))
    with rc_context({"font.family": families, "text.parse_math": False}):
        yield [text.translate(table) for text in plain]


def choose(characters: set[str]) -> tuple[list[str], set[str]]:
    """Families that have the glyphs, in the order in which they are asked, and the characters that
    none has. No font beyond the standard one is opened where that has all."""
    standard = font_manager.findfont(STANDARD)
    families, left = [STANDARD], {c for c in characters if ord(c) not in glyphs(standard)}
    files = sorted(font_manager.findSystemFonts()) if left else []
    while files and left:
        best = _best(files, left)
        if not _have(best, left):
            break
        left -= _have(best, left)
        families.append(_use(best))
    return families, left


@cache
def one_for(text: str) -> tuple[str, str]:
    """For what draws with a single font: the file that has the most of the text's letters, and the
    letters that it lacks. No font beyond the standard one is opened where that has all."""
    letters = {c for c in text if not c.isspace()}
    standard = best = str(font_manager.findfont(STANDARD))
    if letters - _have(standard, letters):
        best = _best([standard, *sorted(font_manager.findSystemFonts())], letters)
    return best, "".join(sorted(letters - _have(best, letters)))


def _best(files: list[str], characters: set[str]) -> str:
    return max(files, key=lambda file: (len(_have(file, characters)), _is_regular(file)))


def _is_regular(file: str) -> bool:
    return bool(glyphs(file)) and font_manager.get_font(file).style_name in ("Regular", "Book")


def _have(file: str, characters: set[str]) -> set[str]:
    known = glyphs(file)
    return {c for c in characters if ord(c) in known}


@cache
def glyphs(file: str) -> frozenset[int]:
    """The characters that a font file can draw; none where it is of small coloured pictures, or
    cannot be read."""
    try:
        font = font_manager.get_font(file)
    except (RuntimeError, OSError):  # a damaged file, or a kind that FreeType does not know
        return frozenset()
    drawn_in_colour = "Color" in font.family_name or "Emoji" in font.family_name
    if not font.scalable or drawn_in_colour:
        return frozenset()
    return frozenset(font.get_charmap())


@cache
def _use(file: str) -> str:
    """Make matplotlib know a font, also where it was installed after its list was made."""
    font_manager.fontManager.addfont(Path(file))
    return str(font_manager.get_font(file).family_name)
