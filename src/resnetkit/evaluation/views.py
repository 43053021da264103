"""Predictions averaged over several views of an image, and at other image sizes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from ..data.crops import ten_crops, to_tensor
from ..data.dataset import Images
from ..data.preprocessing import Preprocessing
from ..data.remote import read_ahead
from ..data.transforms import mirrored, normalize, stack
from ..errors import RecipeError
from ..prefetch import prefetch_map
from ..runtime import memory_format

VIEWS_PER_BATCH = 64
"""Maximum number of views in a batch. With ten views of each image, that is 6 images."""


@dataclass(frozen=True)
class Views:
    """The views of an image that the model sees.

    Args:
        crops: 1 (the center), or 10 as in the paper's tests: the four corners and the center, and
            the mirror image of each (arXiv:1512.03385, section 3.4).
        flip: add the mirrored image; ten crops include it anyway.

    Raises:
        RecipeError: ``crops`` is neither 1 nor 10.
    """

    crops: int = 1
    flip: bool = False

    def __post_init__(self) -> None:
        if self.crops not in (1, 10):
            raise RecipeError(f"crops must be 1 (center) or 10 (corners too); got {self.crops}")

    @property
    def count(self) -> int:
        """The number of views of each image."""
        return 10 if self.crops == 10 else 1 + self.flip

    def notes(self, preprocessing: Preprocessing) -> tuple[str, ...]:
        """Return notes for the user about these views."""
        if self.crops == 1 or preprocessing.resize_size > preprocessing.crop_size:
            return ()
        return (
            "this model's preprocessing leaves no margin to crop: the ten crops differ only along "
            "the longer side, and those of a square image only by mirroring",
        )

    def crop(self, pixels: np.ndarray, preprocessing: Preprocessing) -> Sequence[Tensor]:
        """Crop working pixels to views, each ``(C, S, S)`` uint8."""
        if self.crops == 10:
            crops = ten_crops(pixels, preprocessing.resize_size, preprocessing.crop_size)
            return [to_tensor(crop) for crop in crops]
        center = preprocessing.crop(pixels)
        return [center, mirrored(center)] if self.flip else [center]


def predict_views(
    model: nn.Module,
    images: Images,
    views: Views,
    device: torch.device,
    workers: int,
    advance: Callable[[str], None],
) -> Tensor:
    """Return the log of the mean probabilities of the views, ``(n, classes)`` float32 on the CPU.

    The softmax of the result gives the mean probabilities. The model must be in eval mode.
    ``advance`` is called after each batch; `batch_count` returns how many there are.

    Raises:
        ImageError: an image cannot be read.
    """
    preprocessing = images.preprocessing

    def prepare(indices: np.ndarray) -> Tensor:
        return stack([view for i in indices for view in views.crop(images[int(i)], preprocessing)])

    layout = memory_format(model, device)
    rows = []
    chunks = np.array_split(np.arange(len(images)), batch_count(len(images), views))
    with torch.inference_mode():
        ahead = read_ahead(chunks, lambda indices: images.paths_to_read(indices.tolist()))
        for batch in prefetch_map(prepare, ahead, workers):
            inputs = normalize(batch.to(device), preprocessing)
            logits = model(inputs.contiguous(memory_format=layout)).cpu()
            # (images, views, classes)
            shares = torch.softmax(logits.double(), 1).view(-1, views.count, logits.shape[1])
            smallest = torch.finfo(torch.float32).tiny
            rows.append(shares.mean(1).clamp(min=smallest).log().float())
            advance("")
    return torch.cat(rows).clone()


def batch_count(images: int, views: Views) -> int:
    """Return the number of batches for this many images."""
    return -(-images // max(1, VIEWS_PER_BATCH // views.count))


def scale_preprocessing(preprocessing: Preprocessing, image_size: int | None) -> Preprocessing:
    """Return the preprocessing for another image size, in pixels; None keeps its own.

    The resize size (the shorter side before cropping) is scaled in proportion.

    Raises:
        RecipeError: the size is not between 1 and 4096.
    """
    if image_size is None or image_size == preprocessing.crop_size:
        return preprocessing
    if not 1 <= image_size <= 4096:
        raise RecipeError(f"image size must be 1 to 4096 pixels; got {image_size}")
    resize_size = round(preprocessing.resize_size * image_size / preprocessing.crop_size)
    return replace(preprocessing, crop_size=image_size, resize_size=max(1, resize_size))
