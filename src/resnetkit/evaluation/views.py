"""Several views of a picture, whose answers are averaged; and other picture sizes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from ..data.dataset import Images
from ..data.transforms import Preprocessing, mirrored, normalize, stack, ten_crops
from ..errors import RecipeError
from ..prefetch import prefetch_map
from ..runtime import memory_format

VIEWS_AT_ONCE = 64
"""Views in a batch; pictures are ten times fewer where each has ten."""


@dataclass(frozen=True)
class Views:
    """Which views of a picture are shown to the network.

    Args:
        crops: 1, the centre; or 10, as in the paper's tests: the four corners and the centre,
            each mirrored too (arXiv:1512.03385, section 3.4).
        flip: the mirrored picture too; ten crops have it anyway.

    Raises:
        RecipeError: another number of crops.
    """

    crops: int = 1
    flip: bool = False

    def __post_init__(self) -> None:
        if self.crops not in (1, 10):
            raise RecipeError(f"crops is 1 (the centre) or 10 (corners too); got {self.crops}")

    @property
    def count(self) -> int:
        """Views of a picture."""
        return 10 if self.crops == 10 else 1 + self.flip

    def notes(self, preprocessing: Preprocessing) -> tuple[str, ...]:
        """What a reader should know of these views."""
        if self.crops == 1 or preprocessing.resize_size > preprocessing.crop_size:
            return ()
        return (
            "pictures are resized to just what this model sees, so that ten crops differ along the "
            "longer side alone, and those of a square picture only by the mirror",
        )

    def cut(self, pixels: np.ndarray, preprocessing: Preprocessing) -> Sequence[Tensor]:
        """Working pixels -> views, each ``(C, S, S)`` uint8."""
        if self.crops == 10:
            return ten_crops(pixels, preprocessing.resize_size, preprocessing.crop_size)
        centre = preprocessing.crop(pixels)
        return [centre, mirrored(centre)] if self.flip else [centre]


def predict_views(
    model: nn.Module,
    images: Images,
    views: Views,
    device: torch.device,
    workers: int,
    advance: Callable[[str], None],
) -> Tensor:
    """``(n, classes)`` float32 on the CPU: the logarithm of the mean of the views' probabilities,
    so that its softmax is that mean. The network is in eval mode; ``advance`` is called after each
    `batches`.

    Raises:
        PictureError: a picture cannot be read.
    """
    preprocessing = images.preprocessing

    def prepare(indices: np.ndarray) -> Tensor:
        return stack([view for i in indices for view in views.cut(images[int(i)], preprocessing)])

    layout = memory_format(model, device)
    rows = []
    chunks = np.array_split(np.arange(len(images)), batches(len(images), views))
    with torch.inference_mode():
        for inputs in prefetch_map(prepare, chunks, workers):
            seen = normalize(inputs.to(device), preprocessing)
            shown = model(seen.contiguous(memory_format=layout)).cpu()
            each = torch.softmax(shown.double(), 1).view(-1, views.count, shown.shape[1])
            smallest = torch.finfo(torch.float32).tiny
            rows.append(each.mean(1).clamp(min=smallest).log().float())
            advance("")
    return torch.cat(rows).clone()


def batches(images: int, views: Views) -> int:
    """Into how many batches so many pictures go."""
    return -(-images // max(1, VIEWS_AT_ONCE // views.count))


def at_size(preprocessing: Preprocessing, image_size: int | None) -> Preprocessing:
    """The same for another picture size, None for its own; the shorter side to which pictures are
    resized is scaled with it.

    Raises:
        RecipeError: a size that is not between 1 and 4096.
    """
    if image_size is None or image_size == preprocessing.crop_size:
        return preprocessing
    if not 1 <= image_size <= 4096:
        raise RecipeError(f"image size is 1 to 4096 pixels; got {image_size}")
    resize_size = round(preprocessing.resize_size * image_size / preprocessing.crop_size)
    return replace(preprocessing, crop_size=image_size, resize_size=max(1, resize_size))
