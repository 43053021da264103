"""Pictures of what the network is given, drawn before the first step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch import Tensor

from ..data.color import to_rgb
from ..data.loader import Loader
from ..data.transforms import stack
from ..report import plots
from .preparation import Prepared
from .recipe import Recipe


def draw_inputs(folder: Path, prepared: Prepared, recipe: Recipe) -> None:
    """Write ``train_batch.png`` and ``val_batch.png``."""
    classes = prepared.data.classes
    assert recipe.batch_size is not None
    shown, sampling, repeats = min(16, recipe.batch_size), recipe.sampling, recipe.repeats
    loader = Loader(prepared.train, shown, workers=0, sampling=sampling, repeats=repeats)
    first = next(loader.training(recipe.augmentation(), recipe.train_size(0), recipe.seed, 0))
    captions = [classes[label] for label in first.labels]
    title = "Training pictures of the first epoch, as the network sees them"
    plots.images(_shown(first.images), captions, folder / "train_batch.png", title)
    spread = np.linspace(0, len(prepared.val) - 1, min(16, len(prepared.val))).astype(int)
    crops = [prepared.val.preprocessing.crop(prepared.val[int(i)]) for i in spread]
    captions = [classes[prepared.val.split.labels[i]] for i in spread]
    title = "Validation pictures, as the network sees them"
    plots.images(_shown(stack(crops)), captions, folder / "val_batch.png", title)


def _shown(images: Tensor) -> list[np.ndarray]:
    return [to_rgb(image.permute(1, 2, 0).numpy()) for image in images]
