"""Thumbnails that a page embeds, and Grad-CAM overlays."""

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
from ..data.preprocessing import Preprocessing
from ..errors import ImageError
from ..evaluation.evaluate import Evaluation
from ..evaluation.explain import Explanation, explain
from ..evaluation.findings import Disagreement, Finding
from ..evaluation.views import scale_preprocessing
from ..models.weights.modelfile import Header
from ..storage import atomic, make_output

SIDE = 176  # pixels
QUALITY = 80


def overlay(image: np.ndarray, heat: np.ndarray, strength: float = 0.6) -> np.ndarray:
    """Lay a heat map over an image: warm colors where it is high, nearly gray where it is low.

    Args:
        image: ``(H, W, 3)`` uint8.
        heat: ``(H, W)`` in [0, 1].
        strength: the opacity of the colors where ``heat`` is 1.

    Returns:
        ``(H, W, 3)`` uint8.
    """
    from matplotlib import colormaps

    colors = colormaps["turbo"](0.4 + 0.5 * heat)[..., :3] * 255
    gray = image.mean(2, keepdims=True)  # fade colors: a red flower must not look like heat
    base = 0.75 * gray + 0.25 * image
    opacity = strength * heat[..., None]
    mixed: np.ndarray = base * (1 - opacity) + colors * opacity
    return mixed.round().astype(np.uint8)


def write_overlays(
    explanations: Iterable[Explanation], out: Path
) -> Iterator[tuple[Explanation, Path | None]]:
    """Write each image and its overlay, side by side, to ``NAME.png`` in the folder ``out``.

    If the name is taken, the file becomes ``NAME-2.png``, or gets the next free number. Yields each
    explanation with its file, or with None if the image could not be read.
    """
    taken: set[str] = set()
    for explanation in explanations:
        if explanation.image is None or explanation.heat is None:
            yield explanation, None
            continue
        if not taken:
            make_output(out)
        file = out / _free_name(explanation.source.stem, taken)
        overlaid = overlay(explanation.image, explanation.heat)
        both = np.concatenate([explanation.image, overlaid], axis=1)
        with atomic(file) as temporary:
            Image.fromarray(both).save(temporary, "PNG")
        yield explanation, file


def _free_name(stem: str, taken: set[str]) -> str:
    """Return a file name that is not in ``taken``, and add it.

    Names that differ only in case or in the encoding of accents are treated as the same name,
    because macOS and Windows treat them as one file.
    """
    stem = os.fsencode(stem)[:200].decode(errors="ignore")  # most file systems allow 255 bytes
    for number in itertools.count(1):
        name = f"{stem}.png" if number == 1 else f"{stem}-{number}.png"
        key = unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
        if key not in taken:
            taken.add(key)
            break
    return name


def data_uri(image: np.ndarray) -> str:
    """Return ``(H, W, 3)`` uint8 as the ``data:`` URI of a JPEG."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def explained_thumbnails(
    model_file: Path, evaluation: Evaluation, findings: Sequence[Finding], device: str = "auto"
) -> dict[int, tuple[str, str]]:
    """Return the thumbnails of findings as ``data:`` URIs, by index in the evaluation.

    The first of each pair is the crop that the model sees; the second shows where the model finds
    the suggested class. Files that can no longer be read are omitted.
    """
    by_index = {finding.index: finding for finding in findings}
    explanations = explain(
        model_file,
        [evaluation.samples.path(i) for i in by_index],
        classes=[finding.suggested for finding in by_index.values()],
        image_size=evaluation.metrics["views"]["image_size"],
        side=SIDE,
        device=device,
    )
    thumbnails = {}
    for index, explanation in zip(by_index, explanations, strict=True):
        if explanation.image is not None and explanation.heat is not None:
            overlaid = overlay(explanation.image, explanation.heat)
            thumbnails[index] = (data_uri(explanation.image), data_uri(overlaid))
    return thumbnails


def plain_thumbnails(
    header: Header, samples: Split, findings: Sequence[Disagreement]
) -> dict[int, str]:
    """Return a thumbnail of each finding as a ``data:`` URI, by index in the split.

    Each is the crop that a model with this header sees. Files that can no longer be read are left
    out.
    """
    preprocessing = scale_preprocessing(header.preprocessing, SIDE)
    thumbnails = {}
    for finding in findings:
        try:
            pixels = preprocessing.pixels(samples.path(finding.index))
        except ImageError:  # the page shows a message instead
            continue
        thumbnails[finding.index] = crop_uri(pixels, preprocessing)
    return thumbnails


def crop_uri(pixels: np.ndarray, preprocessing: Preprocessing) -> str:
    """Return the crop of working pixels, ``(H, W, C)`` uint8, as a ``data:`` URI."""
    return data_uri(to_rgb(preprocessing.crop(pixels).permute(1, 2, 0).numpy()))
