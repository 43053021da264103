from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from resnetkit.data import folder
from resnetkit.data.digits import write_digits
from resnetkit.errors import OutputError


def test_digits_as_a_folder(tmp_path):
    data = folder.read_dataset(write_digits(tmp_path / "digits", size=8))
    assert data.classes == tuple("0123456789")
    sizes = {name: len(split) for name, split in data.splits.items()}
    assert sum(sizes.values()) == 1797
    assert 340 < sizes["test"] < 380
    images, labels = load_digits(return_X_y=True)
    split = data.splits["test"]
    for i in (0, 100, 300):
        number = int(split.path(i).stem)
        assert labels[number] == split.labels[i]
        with Image.open(split.path(i)) as image:
            assert np.abs(np.asarray(image) / 255 * 16 - images[number].reshape(8, 8)).max() < 0.1
    with pytest.raises(OutputError, match="not empty"):
        write_digits(tmp_path / "digits")
