from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from resnetkit.inference.images import full_pixels, is_image

from resnetkit.errors import ImageError

PIXELS = np.random.default_rng(3).integers(0, 256, (20, 30, 3), dtype=np.uint8)
GREY = PIXELS[:, :, :1]


def png():
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, "PNG")
    return file.getvalue()


FORMS = {
    "array": PIXELS,
    "floats": PIXELS / 255,
    "float32": (PIXELS / 255).astype(np.float32),
    "tensor": torch.from_numpy(PIXELS).permute(2, 0, 1),
    "float tensor": torch.from_numpy(PIXELS).permute(2, 0, 1) / 255,
    "PIL": Image.fromarray(PIXELS),
    "bytes": png(),
    "bytearray": bytearray(png()),
    "memoryview": memoryview(png()),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_has_the_same_pixels(form):
    assert is_image(FORMS[form])
    np.testing.assert_array_equal(full_pixels(FORMS[form]), PIXELS)


@pytest.mark.parametrize(
    "grey", [GREY[:, :, 0], GREY, torch.from_numpy(GREY).permute(2, 0, 1), GREY / 255]
)
def test_grey(grey):
    np.testing.assert_array_equal(full_pixels(grey), np.repeat(GREY, 3, axis=2))


def test_transparency_lies_on_white():
    clear = torch.zeros(4, 5, 5, dtype=torch.uint8)
    np.testing.assert_array_equal(full_pixels(clear), np.full((5, 5, 3), 255, np.uint8))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (torch.randn(3, 8, 8) * 3, "before it is normalised"),
        (np.full((4, 4, 3), np.nan), "floats are in 0..1; got nan"),
        (np.zeros((4, 4, 3), np.int64), r"uint8; got \(4, 4, 3\) int64"),
        (torch.zeros(8, 8, 3), r"a tensor is \(3, H, W\)"),
        (np.zeros((0, 4, 3), np.uint8), "without pixels"),
        (np.zeros((4,), np.uint8), r"got \(4,\)"),
        ("nul\0byte.png", "embedded null byte"),
        (5, "expected a path, bytes, a PIL picture, an array or a tensor; got int"),
        (None, "got NoneType"),
        (b"", "empty"),
    ],
)
def test_what_is_no_picture_is_told(wrong, message):
    with pytest.raises(ImageError, match=message):
        full_pixels(wrong)


def test_a_pil_picture_that_is_cut_short_is_told():
    with (
        Image.open(io.BytesIO(png()[:400])) as image,
        pytest.raises(ImageError, match="truncated"),
    ):
        full_pixels(image)


def test_several():
    assert not is_image([PIXELS])
    assert not is_image(np.stack([PIXELS]))
    assert not is_image(torch.zeros(2, 3, 4, 4))
    assert not is_image(iter([PIXELS]))
