"""Answers as HTML that needs nothing else: the picture, and a bar for each class."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from PIL import Image

from ..errors import ImageError
from ..progress import printable
from .images import full_pixels

if TYPE_CHECKING:
    from .predictor import Prediction

SIDE = 160  # pixels of the longer side of what is shown
MOST = 50  # answers that are shown of a longer list

# Colours that are read on a light page and on a dark one; nothing is taken from the page but these.
_CARD = "display:inline-flex;gap:14px;align-items:center;margin:4px 12px 4px 0;font:13px sans-serif"
_TRACK = "background:rgba(128,128,128,.25);width:160px;height:12px;border-radius:3px"
_BAR = "background:#2f7ed8;height:12px;border-radius:3px"


def card(answer: Prediction) -> str:
    """One answer."""
    source = escape(printable(answer.source))
    if answer.error is not None:
        said = escape(printable(answer.error))
        return f'<div style="{_CARD}"><b>{source}</b><span style="color:#d33">{said}</span></div>'
    rows = "".join(_row(name, probability) for name, probability in answer.top)
    named = escape(printable(answer.class_name or ""))
    return (
        f'<div style="{_CARD}">{_image(answer)}<div><div><b>{named}</b></div>'
        f'<div style="opacity:.7;margin-bottom:4px">{source}</div>'
        f'<table style="border-collapse:collapse">{rows}</table></div></div>'
    )


def cards(answers: Sequence[Prediction]) -> str:
    """Several answers; of a long list the first."""
    shown = "".join(card(answer) for answer in answers[:MOST])
    more = len(answers) - MOST
    return f"<div>{shown}</div>" + (f"<p>and {more:,} more</p>" if more > 0 else "")


def _row(name: str, probability: float) -> str:
    cell = "padding:1px 8px 1px 0;border:0;text-align:left;background:none"
    return (
        f'<tr style="background:none"><td style="{cell}">{escape(printable(name))}</td>'
        f'<td style="{cell}"><div style="{_TRACK}">'
        f'<div style="{_BAR};width:{100 * probability:.1f}%"></div></div></td>'
        f'<td style="{cell}">{probability:.1%}</td></tr>'
    )


def _image(answer: Prediction) -> str:
    try:
        if answer.image is None:
            return ""
        image = Image.fromarray(full_pixels(answer.image))
    except ImageError:  # the file has gone since
        return '<i style="opacity:.7">the picture is no longer there</i>'
    factor = SIDE / max(image.size)
    size = tuple(max(1, round(side * factor)) for side in image.size)
    method = Image.Resampling.NEAREST if factor > 1 else Image.Resampling.LANCZOS
    packed = io.BytesIO()
    image.resize((size[0], size[1]), method).save(packed, "JPEG", quality=85)
    code = base64.b64encode(packed.getvalue()).decode()
    return f'<img alt="" width="{size[0]}" height="{size[1]}" src="data:image/jpeg;base64,{code}">'
