"""Figures of the network's inputs, drawn before the first step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch import Tensor

from ..data.color import to_rgb
from ..data.loader import Loader
from ..data.transforms import stack
from ..report import plots
from .preparation import PreparedData
from .recipe import Recipe


def draw_inputs(folder: Path, prepared: PreparedData, recipe: Recipe) -> None:
    """Write ``train_batch.png`` and ``val_batch.png``, with up to 16 images each.

    ``val_batch.png`` is written only if there are validation images.
    """
    classes = prepared.dataset.classes
    assert recipe.batch_size is not None
    loader = Loader(
        prepared.train,
        min(16, recipe.batch_size),
        workers=0,
        sampling=recipe.sampling,
        repeats=recipe.repeats,
    )
    batches = loader.training(recipe.augmentation(), recipe.train_size(0), recipe.seed, 0)
    batch = next(batches)
    captions = [classes[label] for label in batch.labels]
    title = "Training images in the first epoch, as the network sees them"
    plots.save_image_grid(_to_arrays(batch.images), captions, folder / "train_batch.png", title)

    val = prepared.val
    if not len(val):
        return
    indices = np.linspace(0, len(val) - 1, min(16, len(val))).astype(int)
    crops = [val.preprocessing.crop(val[int(i)]) for i in indices]
    captions = [classes[val.split.labels[i]] for i in indices]
    title = "Validation images, as the network sees them"
    plots.save_image_grid(_to_arrays(stack(crops)), captions, folder / "val_batch.png", title)


def _to_arrays(images: Tensor) -> list[np.ndarray]:
    """Turn ``(N, C, H, W)`` into N arrays that can be drawn."""
    return [to_rgb(image.permute(1, 2, 0).numpy()) for image in images]
