from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from resnetkit.data.preprocessing import Preprocessing
from resnetkit.data.resize import resize_by_pillow, with_shorter_side
from resnetkit.errors import ModelFileError


def test_preprocessing_round_trip():
    made = Preprocessing(128, 112, mean=(0.1, 0.2, 0.3))
    assert Preprocessing.from_dict(made.to_dict()) == made


@pytest.mark.parametrize(
    "change", [{"decoder": "other"}, {"crop_size": 0}, {"crop_size": 10**9}, {"more": 1}]
)
def test_invalid_preprocessing_is_refused(change):
    with pytest.raises(ModelFileError, match="preprocessing"):
        Preprocessing.from_dict({**Preprocessing(64, 64).to_dict(), **change})


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(300, 400), (847, 400), (900, 60), (60, 900)])
def test_the_width_is_resized_first_with_every_version_of_pillow(size, channels):
    pixels = np.random.default_rng(0).integers(0, 256, (*size, channels), dtype=np.uint8)
    image = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
    width, height = with_shorter_side(*image.size, 48)
    narrow = image.resize((width, image.height), Image.Resampling.BILINEAR)
    expected = np.asarray(narrow.resize((width, height), Image.Resampling.BILINEAR))
    found = resize_by_pillow(pixels, 48, interpolation="bilinear")
    assert np.array_equal(found, expected.reshape(height, width, channels))
