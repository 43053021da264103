"""Answers as self-contained HTML: the image, and a bar for each class."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from PIL import Image

from ..errors import ImageError
from ..text import printable
from .images import full_pixels

if TYPE_CHECKING:
    from .prediction import Prediction

SIDE = 160  # pixels of the longer side of an image
MAX_CARDS = 50  # maximum number of answers shown

# Colors that are readable on light and dark pages; all other colors are the page's own.
_CARD = "display:inline-flex;gap:14px;align-items:center;margin:4px 12px 4px 0;font:13px sans-serif"
_TRACK = "background:rgba(128,128,128,.25);width:160px;height:12px;border-radius:3px"
_BAR = "background:#2f7ed8;height:12px;border-radius:3px"


def card(answer: Prediction) -> str:
    """Return one answer as HTML."""
    source = escape(printable(answer.source))
    if answer.error is not None:
        message = escape(printable(answer.error))
        return (
            f'<div style="{_CARD}"><b>{source}</b><span style="color:#d33">{message}</span></div>'
        )
    rows = "".join(_class_row(name, probability) for name, probability in answer.top)
    class_name = escape(printable(answer.class_name or ""))
    return (
        f'<div style="{_CARD}">{_image_tag(answer)}<div><div><b>{class_name}</b></div>'
        f'<div style="opacity:.7;margin-bottom:4px">{source}</div>'
        f'<table style="border-collapse:collapse">{rows}</table></div></div>'
    )


def cards(answers: Sequence[Prediction]) -> str:
    """Return several answers as HTML, at most `MAX_CARDS` of them."""
    shown = "".join(card(answer) for answer in answers[:MAX_CARDS])
    more = len(answers) - MAX_CARDS
    return f"<div>{shown}</div>" + (f"<p>and {more:,} more</p>" if more > 0 else "")


def _class_row(name: str, probability: float) -> str:
    cell = "padding:1px 8px 1px 0;border:0;text-align:left;background:none"
    return (
        f'<tr style="background:none"><td style="{cell}">{escape(printable(name))}</td>'
        f'<td style="{cell}"><div style="{_TRACK}">'
        f'<div style="{_BAR};width:{100 * probability:.1f}%"></div></div></td>'
        f'<td style="{cell}">{probability:.1%}</td></tr>'
    )


def _image_tag(answer: Prediction) -> str:
    try:
        if answer.image is None:
            return ""
        image = Image.fromarray(full_pixels(answer.image))
    except ImageError:  # the file has since been moved or deleted
        return '<i style="opacity:.7">the image is no longer available</i>'
    factor = SIDE / max(image.size)
    width, height = (max(1, round(side * factor)) for side in image.size)
    method = Image.Resampling.NEAREST if factor > 1 else Image.Resampling.LANCZOS
    buffer = io.BytesIO()
    image.resize((width, height), method).save(buffer, "JPEG", quality=85)
    code = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="" width="{width}" height="{height}" src="data:image/jpeg;base64,{code}">'
