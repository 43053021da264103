"""A page that shows each query and the photos most similar to it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from ..errors import ImageError
from ..evaluation.views import scale_preprocessing
from ..prefetch import prefetch_map
from ..processes import default_workers
from ..report.html import render, shorten_path
from ..report.thumbnails import SIDE, crop_uri
from .images import ImageLike, working_pixels
from .predictor import Predictor
from .similar import ImageIndex, SimilarPhotos


def write_similar_page(
    path: Path,
    predictor: Predictor,
    index: ImageIndex,
    *,
    answers: Sequence[SimilarPhotos],
    photos: str,
) -> None:
    """Write one HTML file that loads nothing from the network. Each photo adds about 8 kB.

    The photos are shown as the model sees them: cropped to a square.

    Args:
        path: the file.
        predictor: the model.
        index: the photos that were searched.
        answers: the results for each query.
        photos: the name of these photos, for the title.
    """
    preprocessing = scale_preprocessing(predictor.preprocessing, SIDE)

    def thumbnail(image: ImageLike) -> str | None:
        try:
            return crop_uri(working_pixels(image, preprocessing), preprocessing)
        except ImageError:  # the page shows a message instead
            return None

    paths = list(dict.fromkeys(n.path for answer in answers for n in answer.neighbors))
    queries = [answer.image for answer in answers]
    uris = prefetch_map(thumbnail, [*paths, *queries], default_workers())
    by_path = dict(zip(paths, islice(uris, len(paths)), strict=True))
    render(
        path,
        "similar.html",
        title=shorten_path(photos),
        architecture=predictor.header.architecture,
        digest=predictor.digest,
        answers=list(zip(answers, uris, strict=True)),
        thumbnails=by_path,
        labels=set(index.labels),
        count=len(index),
    )
