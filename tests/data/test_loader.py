from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from resnetkit import randomness
from resnetkit.data import cache, folder
from resnetkit.data.dataset import Images
from resnetkit.data.loader import Loader
from resnetkit.data.preprocessing import Preprocessing
from resnetkit.data.transforms import Augmentation
from resnetkit.errors import ImageError

PRESET = Preprocessing(32, 32)


def silent(text):
    pass


def split_of(root):
    return folder.read_dataset(root).splits["all"]


def epoch(images, workers, seed=0, number=1, size=24):
    loader = Loader(images, 10, workers)
    return list(loader.training(Augmentation(), size, seed, number))


def test_batches_do_not_depend_on_the_workers_or_the_cache(flat_folder):
    cold = Images(split_of(flat_folder), PRESET)
    warm = cache.scan(split_of(flat_folder), PRESET, 2, silent).images
    reference = epoch(cold, workers=0)
    for images, workers in [(cold, 1), (cold, 5), (warm, 0), (warm, 3)]:
        batches = epoch(images, workers)
        assert len(batches) == len(reference) == 4
        for batch, expected in zip(batches, reference, strict=True):
            assert torch.equal(batch.images, expected.images)
            assert torch.equal(batch.labels, expected.labels)
            assert np.array_equal(batch.indices, expected.indices)


def test_epochs_and_seeds_differ(flat_folder):
    images = Images(split_of(flat_folder), PRESET)
    first = epoch(images, 0)
    for other in (epoch(images, 0, number=2), epoch(images, 0, seed=1)):
        assert not np.array_equal(other[0].indices, first[0].indices)


def test_no_image_is_twice_in_an_epoch_and_labels_match(flat_folder):
    split = split_of(flat_folder)
    batches = epoch(Images(split, PRESET), 2)
    seen = np.concatenate([batch.indices for batch in batches])
    assert len(seen) == len(set(seen)) == 40
    for batch in batches:
        assert batch.labels.tolist() == split.labels[batch.indices].tolist()
        assert batch.images.shape == (10, 3, 24, 24)
        assert batch.images.dtype == torch.uint8


def test_a_split_smaller_than_a_batch_is_one_batch(flat_folder):
    loader = Loader(Images(split_of(flat_folder), PRESET), 500, 0)
    (batch,) = loader.training(Augmentation(), 16, 0, 0)
    assert sorted(batch.indices) == list(range(48))


def test_evaluation_shows_every_image_once_in_order(flat_folder):
    split = split_of(flat_folder)
    images = Images(split, PRESET)
    batches = list(Loader(images, 10, 2).evaluation())
    assert np.concatenate([b.indices for b in batches]).tolist() == list(range(48))
    assert torch.equal(batches[1].images[3], PRESET.crop(PRESET.pixels(split.path(13))))


def test_the_error_of_a_broken_image_is_raised(flat_folder):
    split = split_of(flat_folder)
    split.path(7).write_bytes(b"broken")
    for workers in (0, 2):
        with pytest.raises(ImageError, match=split.path(7).name):
            list(Loader(Images(split, PRESET), 10, workers).evaluation())


@pytest.mark.parametrize("workers", [0, 3])
def test_copies_of_an_image_are_augmented_independently(flat_folder, workers):
    split = split_of(flat_folder)
    images = Images(split, PRESET)
    loader = Loader(images, 8, workers, repeats=4)
    assert loader.training_batches() == 6
    batches = list(loader.training(Augmentation(), 24, 0, 1))
    for batch in batches:
        assert batch.labels.tolist() == split.labels[batch.indices].tolist()
        copies = {}
        for image, index in zip(batch.images, batch.indices, strict=True):
            number = len(copies.setdefault(int(index), []))
            rng = randomness.image_rng(0, 1, int(index), number)
            assert torch.equal(image, Augmentation()(images[int(index)], 24, rng))
            copies[int(index)].append(image)
        assert [len(same) for same in copies.values()] == [4, 4]
        assert not any(
            torch.equal(same[0], other) for same in copies.values() for other in same[1:]
        )


def test_balanced_batches_contain_every_class(flat_folder):
    for number in range(2, 16):  # leaves one class of 2 images and two of 16
        (flat_folder / "blue" / f"{number:03d}.png").unlink()
    split = split_of(flat_folder)
    loader = Loader(Images(split, PRESET), 6, 0, sampling="balanced")
    batches = list(loader.training(Augmentation(), 16, 0, 0))
    assert len(batches) == 34 // 6
    for batch in batches:
        assert sorted(batch.labels.tolist()) == [0, 0, 1, 1, 2, 2]


def test_an_epoch_may_be_made_in_pieces(flat_folder):
    loader = Loader(Images(split_of(flat_folder), PRESET), 10, 0, sampling="balanced", repeats=2)
    whole = list(loader.training(Augmentation(), 16, 0, 3))
    pieces = [
        batch
        for first, last in ((0, 1), (1, 3), (3, None))
        for batch in loader.training(Augmentation(), 16, 0, 3, first, last)
    ]
    assert len(pieces) == len(whole) == 4
    for piece, batch in zip(pieces, whole, strict=True):
        assert torch.equal(piece.images, batch.images)


THREADS = """
import os, sys
import torch
from resnetkit.data import folder
from resnetkit.data.dataset import Images
from resnetkit.data.loader import Loader
from resnetkit.data.preprocessing import Preprocessing
from resnetkit.data.transforms import Augmentation
torch.set_num_threads(4)
images = Images(folder.read_dataset(sys.argv[1]).splits["all"], Preprocessing(128, 128))
def count():
    return len(os.listdir("/proc/self/task"))
before, most = count(), 0
loader = Loader(images, 4, 3)
for batches in (loader.training(Augmentation(erasing=1.0), 128, 0, 0), loader.evaluation()):
    for batch in batches:
        most = max(most, count() - before)
print(most)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts the threads in /proc")
def test_workers_start_no_compute_threads(flat_folder):
    """Images of 128 px are large enough for PyTorch to share a copy among compute threads."""
    environment = {**os.environ, "OMP_NUM_THREADS": "4"}
    done = subprocess.run(
        [sys.executable, "-c", THREADS, str(flat_folder)],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    # The 3 workers, and up to 3 from the previous loop. Compute threads would add 9 more.
    assert 1 <= int(done.stdout) <= 6
