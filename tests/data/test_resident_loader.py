from __future__ import annotations

from random import Random

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from resnetkit.data import cache, folder
from resnetkit.data.loader import Loader
from resnetkit.data.preprocessing import Preprocessing
from resnetkit.data.resident_loader import (
    ResidentLoader,
    crop_and_resize,
    fits_on_device,
    random_crops,
)
from resnetkit.data.transforms import Augmentation

CPU = torch.device("cpu")  # the same operations; only `fits_on_device` needs a GPU
WHOLE = Augmentation(crop_scale=(1, 1), crop_ratio=(1, 1), flip=False)


@pytest.fixture
def images(flat_folder):
    split = folder.read_dataset(flat_folder).splits["all"]
    return cache.scan(split, Preprocessing(32, 32), 0, lambda _: None).images


def test_crops_are_resized_as_by_pytorch():
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.integers(0, 256, (40, 3, 48, 37), dtype=np.uint8))
    boxes = random_crops(Augmentation(crop_scale=(0.02, 1.0)), 48, width=37, count=40, rng=rng)
    for size in (16, 32, 56):
        ours = crop_and_resize(images, torch.from_numpy(boxes), size)
        for image, (top, left, h, w), mine in zip(images, boxes, ours, strict=True):
            box = image[None, :, top : top + h, left : left + w].float()
            theirs = F.interpolate(box, (size, size), mode="bilinear", antialias=True)[0]
            assert (mine.float() - theirs).abs().max() <= 0.51  # rounding to whole numbers


@pytest.mark.parametrize("shape", [(32, 32), (30, 64), (8, 60)])
def test_crops_follow_the_distribution_of_the_augmentation(shape):
    """Sizes and positions have the same mean and standard deviation."""
    height, width = shape
    augmentation = Augmentation(crop_scale=(0.3, 0.9))
    ours = random_crops(
        augmentation, height, width=width, count=20_000, rng=np.random.default_rng(0)
    )
    rng = Random(0)
    theirs = np.array([augmentation._random_box(height, width, rng) for _ in range(20_000)])
    assert (ours >= 0).all()
    assert (ours[:, 0] + ours[:, 2] <= height).all()
    assert (ours[:, 1] + ours[:, 3] <= width).all()
    np.testing.assert_allclose(ours.mean(0), theirs.mean(0), atol=0.25)
    np.testing.assert_allclose(ours.std(0), theirs.std(0), atol=0.25)


def test_an_epoch_has_the_same_images_and_labels_as_the_loader(images):
    ours, theirs = ResidentLoader(CPU, images, 16, 0), Loader(images, 16, 0)
    for epoch in (0, 1):
        batches = list(ours.training(WHOLE, 32, 7, epoch))
        others = list(theirs.training(WHOLE, 32, 7, epoch))
        assert len(batches) == len(others) > 1
        for one, other in zip(batches, others, strict=True):
            assert torch.equal(one.images, other.images)
            assert torch.equal(one.labels, other.labels)
            assert one.indices.tolist() == other.indices.tolist()


@pytest.mark.parametrize("augmentation", [Augmentation(), Augmentation(crop_padding=4)])
def test_a_batch_is_a_function_of_its_position(images, augmentation):
    """This holds even if the epoch starts in the middle, or two ranks share the batch."""
    loader = ResidentLoader(CPU, images, 16, 0)
    whole = list(loader.training(augmentation, 24, 0, 3))
    assert all(b.images.shape == (16, 3, 24, 24) and b.images.dtype == torch.uint8 for b in whole)
    for one, other in zip(loader.training(augmentation, 24, 0, 3, 2), whole[2:], strict=True):
        assert torch.equal(one.images, other.images)
    ranks = [ResidentLoader(CPU, images, 16, 0, rank, 2, True) for rank in (0, 1)]
    for *splits, other in zip(*(r.training(augmentation, 24, 0, 3) for r in ranks), whole,
                             strict=True):  # fmt: skip
        shared = torch.cat([split.images[split.lead :] for split in splits])
        assert torch.equal(shared, other.images)
        assert torch.equal(splits[0].images[0], other.images[-1])  # the image to mix in
    assert not torch.equal(next(loader.training(augmentation, 24, 1, 3)).images, whole[0].images)


def test_padded_crops_are_windows_of_the_image(images):
    """Each crop is a window of the padded image, and the windows vary."""
    loader, positions = ResidentLoader(CPU, images, 16, 0), set()
    batch = next(loader.training(Augmentation(crop_padding=3, flip=False), 32, 0, 0))
    for image, index in zip(batch.images, batch.indices, strict=True):
        padded = F.pad(torch.tensor(images[index]).permute(2, 0, 1), [3] * 4)
        windows = padded.unfold(1, 32, 1).unfold(2, 32, 1)  # (3, 7, 7, 32, 32)
        same = (windows == image[:, None, None]).all(-1).all(-1).all(0)
        assert same.any()
        positions.update(map(tuple, same.nonzero().tolist()))
    assert len(positions) > 8


def test_half_of_the_images_are_mirrored(images):
    loader = ResidentLoader(CPU, images, len(images), 0)
    batch = next(loader.training(Augmentation(), 32, 0, 0))
    plain = next(loader.training(Augmentation(flip=False), 32, 0, 0)).images
    same = (batch.images == plain).all(-1).all(-1).all(-1)
    turned = (batch.images == plain.flip(-1)).all(-1).all(-1).all(-1)
    assert (same | turned).all()
    assert 0.3 < turned.float().mean() < 0.7


def test_fits_on_device(images):
    gpu = torch.device("cuda")
    assert fits_on_device(images, Augmentation(), gpu)
    assert fits_on_device(images, Augmentation(crop_padding=4), gpu)
    assert not fits_on_device(images, Augmentation(), CPU)
    for other in ({"trivial_augment": True}, {"erasing": 0.1}, {"scale_jitter": (1.0, 1.2)}):
        assert not fits_on_device(images, Augmentation(**other), gpu)
    images.kept.shapes[3] = (16, 32)
    assert not fits_on_device(images, Augmentation(), gpu)
    images.kept.shapes[:] = (128, 128)
    assert not fits_on_device(images, Augmentation(), gpu)
