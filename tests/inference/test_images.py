from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from resnetkit.data import decode
from resnetkit.errors import ImageError
from resnetkit.inference.images import full_pixels, is_image

PIXELS = np.random.default_rng(3).integers(0, 256, (20, 30, 3), dtype=np.uint8)
GRAY = PIXELS[:, :, :1]


def encode_png():
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
    "bytes": encode_png(),
    "bytearray": bytearray(encode_png()),
    "memoryview": memoryview(encode_png()),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_has_the_same_pixels(form):
    assert is_image(FORMS[form])
    np.testing.assert_array_equal(full_pixels(FORMS[form]), PIXELS)


@pytest.mark.parametrize(
    "gray", [GRAY[:, :, 0], GRAY, torch.from_numpy(GRAY).permute(2, 0, 1), GRAY / 255]
)
def test_gray_images_become_rgb(gray):
    np.testing.assert_array_equal(full_pixels(gray), np.repeat(GRAY, 3, axis=2))


def test_transparent_pixels_become_white():
    clear = torch.zeros(4, 5, 5, dtype=torch.uint8)
    np.testing.assert_array_equal(full_pixels(clear), np.full((5, 5, 3), 255, np.uint8))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (torch.randn(3, 8, 8) * 3, "before it is normalized"),
        (np.full((4, 4, 3), np.nan), "float pixels must be in 0..1; got nan"),
        (np.zeros((4, 4, 3), np.int64), r"uint8; got \(4, 4, 3\) int64"),
        (torch.zeros(8, 8, 3), r"a tensor must be \(3, H, W\)"),
        (np.zeros((0, 4, 3), np.uint8), "without pixels"),
        (np.zeros((4,), np.uint8), r"got \(4,\)"),
        ("nul\0byte.png", "embedded null byte"),
        (5, "expected a path, bytes, a PIL image, an array or a tensor; got int"),
        (None, "got NoneType"),
        (b"", "empty"),
    ],
)
def test_what_is_not_an_image_is_refused(wrong, message):
    with pytest.raises(ImageError, match=message):
        full_pixels(wrong)


def test_a_truncated_pil_image_is_refused():
    with (
        Image.open(io.BytesIO(encode_png()[:400])) as image,
        pytest.raises(ImageError, match="truncated"),
    ):
        full_pixels(image)


def test_a_damaged_pil_image_is_refused():
    file = io.BytesIO()
    Image.fromarray(np.resize(PIXELS, (200, 200, 3))).save(file, "PNG", compress_level=0)
    contents = bytearray(file.getvalue())
    second = contents.index(b"IDAT", contents.index(b"IDAT") + 4)
    contents[second : second + 4] = b"\1\2\3\4"
    with (
        Image.open(io.BytesIO(contents)) as image,
        pytest.raises(ImageError, match="cannot be"),
    ):
        full_pixels(image)


def test_too_little_memory_is_not_the_fault_of_the_image(monkeypatch):
    def fail(*arguments, **options):
        raise MemoryError

    monkeypatch.setattr(decode, "pixels_from_memory", fail)
    with pytest.raises(ImageError, match=r"cannot be read \(MemoryError\)") as caught:
        full_pixels(PIXELS)
    assert caught.value.passing


def test_several_images_are_not_one():
    assert not is_image([PIXELS])
    assert not is_image(np.stack([PIXELS]))
    assert not is_image(torch.zeros(2, 3, 4, 4))
    assert not is_image(iter([PIXELS]))
