from __future__ import annotations

import numpy as np
import pytest

from resnetkit.data import cache, folder
from resnetkit.data.dataset import Images, image_sizes
from resnetkit.data.preprocessing import Preprocessing

PRESET = Preprocessing(32, 32)


@pytest.fixture
def split(flat_folder):
    return folder.read_dataset(flat_folder).splits["all"]


def test_selecting_shares_the_cached_pixels(split):
    images = cache.scan(split, PRESET, 2, lambda text: None).images
    some = images.select(split.select([9, 2, 30]))
    fewer = some.select(split.select([30, 9]))
    assert np.shares_memory(fewer[1], images[9])
    assert np.shares_memory(fewer[0], images[30])
    with pytest.raises(KeyError):
        fewer.select(split.select([2]))


def test_images_that_are_not_cached_are_decoded(split):
    images = Images(split, PRESET)
    assert len(images) == len(images.labels()) == 48
    assert np.array_equal(images[5], PRESET.pixels(split.path(5)))


def test_sizes_of_unreadable_images_are_left_out(split):
    assert len(image_sizes(split, range(4))) == 4
    split.path(2).write_bytes(b"broken")
    assert len(image_sizes(split, range(4))) == 3
