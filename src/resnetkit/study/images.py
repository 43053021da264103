"""The images of a study: their folder, and training images as tensors."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from .. import randomness
from ..data import folder
from ..data.dataset import Images
from ..data.digits import write_digits
from ..data.preprocessing import Preprocessing
from ..data.transforms import normalize, stack
from ..errors import DataError
from . import cifar10


def resolve_data(data: str, out: Path) -> Path:
    """Return the folder of images that ``data`` names.

    Args:
        data: ``digits``, which are written below ``out``; an archive of CIFAR-10, which is unpacked
            there; ``cifar10``, which is downloaded unless a folder has that name; or any other
            folder or manifest, which is returned unchanged.
        out: the study's folder.

    Raises:
        DataError: the archive cannot be read.
        DownloadError: ``cifar10`` cannot be downloaded.
    """
    if data == "digits":
        target = out / "digits"
        return target if (target / "train").is_dir() else write_digits(target)
    if data.endswith((".tar.gz", ".tgz", ".tar")):
        return cifar10.unpack(Path(data), out / "cifar10")
    if data == "cifar10" and not Path(data).exists():
        target = out / "cifar10"
        return target if target.is_dir() else cifar10.unpack(cifar10.download_archive(out), target)
    return Path(data)


def training_tensors(
    data: Path, preprocessing: Preprocessing, most: int = 2048
) -> tuple[Tensor, Tensor]:
    """Return training images from a folder and their labels, in a fixed random order.

    Args:
        data: a folder or manifest.
        preprocessing: how an image becomes the input to a network.
        most: the maximum number of images to return.

    Returns:
        Normalized float32 images (N, C, size, size) and int64 labels (N,).

    Raises:
        DataError: the folder has no split to train on.
    """
    dataset = folder.read_dataset(data)
    split = dataset.splits.get("train") or dataset.splits.get("all")
    if split is None:
        raise DataError(
            f"{data} has no training images, only the splits {', '.join(dataset.splits)}"
        )
    images = Images(split, preprocessing)
    order = randomness.permutation(0, 0, len(split))[:most]
    tensors = stack([preprocessing.crop(images[int(i)]) for i in order])
    return normalize(tensors, preprocessing).contiguous(), images.labels()[torch.from_numpy(order)]
