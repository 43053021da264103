"""The built-in dataset: scikit-learn's handwritten digits, written as a folder of PNGs.

1,797 digits by 43 writers, 8x8 pixels with 17 gray levels (Alpaydin and Kaynak, 1998). They are
written at 32x32 by default, so that they go through the same code as any photo.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import OutputError
from ..randomness import permutation

SHARES = {"test": 0.20, "val": 0.15}
"""Share of each class in each split; the rest is for training."""


def write_digits(folder: Path, size: int = 32) -> Path:
    """Write ``folder/{train,val,test}/{0..9}/*.png``: gray, ``size`` x ``size`` pixels.

    The split is fixed and stratified.

    Returns:
        ``folder``.

    Raises:
        OutputError: the folder is not empty.
    """
    from sklearn.datasets import load_digits

    if folder.exists() and any(folder.iterdir()):
        raise OutputError(f"{folder} is not empty; name another folder or remove it")
    images, labels = load_digits(return_X_y=True)
    pixels = (images.reshape(-1, 8, 8) * (255 / 16)).round().astype(np.uint8)
    for digit in range(10):
        members = np.flatnonzero(labels == digit)
        members = members[permutation(0, digit, len(members))]
        start = 0
        for split in ("test", "val", "train"):
            share = SHARES.get(split, 1.0)
            stop = start + round(share * len(members)) if split != "train" else len(members)
            class_folder = folder / split / str(digit)
            class_folder.mkdir(parents=True)
            for i in members[start:stop]:
                image = Image.fromarray(pixels[i]).resize((size, size), Image.Resampling.BICUBIC)
                image.save(class_folder / f"{i:04d}.png")
            start = stop
    return folder
