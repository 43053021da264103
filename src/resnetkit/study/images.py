"""The pictures of a study as tensors, and the digits where nothing else is named."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from .. import randomness
from ..data import folder
from ..data.dataset import Images
from ..data.digits import write_digits
from ..data.transforms import Preprocessing, normalize, stack
from ..errors import DataError
from . import cifar10


def folder_of(data: str, out: Path) -> Path:
    """The folder that ``data`` means: ``digits`` and archives of CIFAR-10 are written below
    ``out`` once, any other folder or manifest is taken as it is. ``cifar10``, where no folder has
    that name, is the archive of its home page.

    Raises:
        DataError: an archive that cannot be read.
        DownloadError: ``cifar10`` cannot be fetched.
    """
    if data == "digits":
        target = out / "digits"
        return target if (target / "train").is_dir() else write_digits(target)
    if data.endswith((".tar.gz", ".tgz", ".tar")):
        return cifar10.unpack(Path(data), out / "cifar10")
    if data == "cifar10" and not Path(data).exists():
        target = out / "cifar10"
        return target if target.is_dir() else cifar10.unpack(cifar10.original(out), target)
    return Path(data)


def training_tensors(data: Path, size: int, most: int = 2048) -> tuple[Tensor, Tensor]:
    """The training pictures of a folder, at most so many, in an order that mixes the classes:
    (N, 3, size, size) normalised float32 and labels (N,) int64.

    Raises:
        DataError: the folder has no part to train on.
    """
    dataset = folder.read_dataset(data)
    split = dataset.splits.get("train") or dataset.splits.get("all")
    if split is None:
        raise DataError(f"{data} has only {', '.join(dataset.splits)}: nothing to train on")
    preset = Preprocessing(size, size)
    images = Images(split, preset)
    order = randomness.order(0, 0, len(split))[:most]
    tensors = stack([preset.crop(images[int(i)]) for i in order])
    return normalize(tensors, preset).contiguous(), images.labels()[torch.from_numpy(order)]
