"""Pictures that a page carries in itself."""

from __future__ import annotations

import base64
import io
import itertools
import os
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ..data.color import to_rgb
from ..data.folder import Split
from ..errors import ImageError
from ..evaluation.evaluate import Evaluation
from ..evaluation.explain import Explanation, explain
from ..evaluation.findings import Disagreement, Finding
from ..evaluation.views import at_size
from ..models.weights.modelfile import Header
from ..storage import atomic, make_output

SIDE = 176  # pixels
QUALITY = 80


def overlay(image: np.ndarray, heat: np.ndarray, strength: float = 0.6) -> np.ndarray:
    """Lay a heat map over a picture: in warm colours where it is high, nearly grey where it is low.

    Args:
        picture: ``(H, W, 3)`` uint8.
        heat: ``(H, W)`` in [0, 1].
    """
    from matplotlib import colormaps

    colours = colormaps["turbo"](0.4 + 0.5 * heat)[..., :3] * 255
    grey = image.mean(2, keepdims=True)  # so that a red flower is not taken for heat
    base = 0.75 * grey + 0.25 * image
    share = strength * heat[..., None]
    mixed: np.ndarray = base * (1 - share) + colours * share
    return mixed.round().astype(np.uint8)


def write_overlays(
    explanations: Iterable[Explanation], out: Path
) -> Iterator[tuple[Explanation, Path | None]]:
    """Write the picture beside its overlay for each, as ``NAME.png`` in the folder ``out``; yields
    it with the file, None where there was no reading the picture. The second picture that would
    have a name becomes ``NAME-2.png``, or the first number that is free."""
    taken: set[str] = set()
    for item in explanations:
        if item.image is None or item.heat is None:
            yield item, None
            continue
        if not taken:
            make_output(out)
        file = out / _free(item.source.stem, taken)
        both = np.concatenate([item.image, overlay(item.image, item.heat)], axis=1)
        with atomic(file) as temporary:
            Image.fromarray(both).save(temporary, "PNG")
        yield item, file


def _free(stem: str, taken: set[str]) -> str:
    """Return a file name that is not ``taken`` yet, and note it: also not by one that differs only
    in capitals or in how its accents are coded, which is the same file on macOS and Windows."""
    stem = os.fsencode(stem)[:200].decode(errors="ignore")  # most file systems take 255 bytes
    for number in itertools.count(1):
        name = f"{stem}.png" if number == 1 else f"{stem}-{number}.png"
        same = unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
        if same not in taken:
            taken.add(same)
            break
    return name


def data_uri(image: np.ndarray) -> str:
    """``(H, W, 3)`` uint8 -> the text of a JPEG that an ``img`` shows."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def thumbnails(
    model_file: Path, found: Evaluation, findings: Sequence[Finding], device: str = "auto"
) -> dict[int, tuple[str, str]]:
    """By index in the evaluation: the part of the picture that the network saw, and where in it the
    network found the suggested class. A picture that is no longer there has none."""
    chosen = {finding.index: finding for finding in findings}
    sizes = {"image_size": found.metrics["views"]["image_size"], "shown": SIDE}
    explained = explain(
        model_file,
        [found.samples.path(i) for i in chosen],
        classes=[finding.suggested for finding in chosen.values()],
        device=device,
        **sizes,
    )
    shown = {}
    for index, item in zip(chosen, explained, strict=True):
        if item.image is not None and item.heat is not None:
            heated = overlay(item.image, item.heat)
            shown[index] = data_uri(item.image), data_uri(heated)
    return shown


def plain_thumbnails(
    header: Header, samples: Split, findings: Sequence[Disagreement]
) -> dict[int, str]:
    """By index in the part: the part of the picture that a network with this header sees. A picture
    that is no longer there has none."""
    larger = at_size(header.preprocessing, SIDE)
    shown = {}
    for finding in findings:
        try:
            pixels = larger.pixels(samples.path(finding.index))
        except ImageError:  # the page says so
            continue
        seen = larger.crop(pixels).permute(1, 2, 0).numpy()
        shown[finding.index] = data_uri(to_rgb(seen))
    return shown
