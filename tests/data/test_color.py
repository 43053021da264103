from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from resnetkit.data import color, gray

NARROW = ("1", "L", "P", "LA", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "HSV")
WIDE = ("I", "F", "I;16", "I;16B", "I;16L")


def random_image(mode):
    """Return 37 x 29 random pixels, including transparent ones and those wider than 8 bits."""
    rng = np.random.default_rng(5)
    if mode.startswith(("I", "F")):
        wide = rng.integers(0, 60_000, (29, 37))
        kind = {"I": "i4", "F": "f4", "I;16B": ">u2"}.get(mode, "<u2")
        return Image.frombytes(mode, (37, 29), wide.astype(kind).tobytes())
    image = Image.fromarray(rng.integers(0, 256, (29, 37, 4), dtype=np.uint8), "RGBA")
    if mode in ("P", "PA"):
        image = image.convert("RGB").quantize(30).convert(mode)
    return image if image.mode == mode else image.convert("RGB" if mode == "HSV" else mode)


@pytest.mark.parametrize("mode", NARROW + WIDE)
@pytest.mark.parametrize("strip", [1, 37, 100])
def test_strips_give_the_same_pixels_as_the_whole(mode, strip, monkeypatch):
    span = (0, 50_000) if mode in ("I", "F") else None
    whole = color.pixels_of(random_image(mode), 3, span)
    assert (whole.shape, whole.dtype) == ((29, 37, 3), np.uint8)
    if mode in NARROW and not random_image(mode).has_transparency_data:
        assert np.array_equal(whole, np.asarray(random_image(mode).convert("RGB")))
    monkeypatch.setattr(gray, "STRIP", strip)
    assert np.array_equal(color.pixels_of(random_image(mode), 3, span), whole)
    for channels in (1, 4):
        strips = color.pixels_of(random_image(mode), channels, span)
        with monkeypatch.context() as patch:
            patch.setattr(gray, "STRIP", 10_000)
            assert np.array_equal(color.pixels_of(random_image(mode), channels, span), strips)


def test_a_transparent_color_is_white_in_every_strip(monkeypatch):
    monkeypatch.setattr(gray, "STRIP", 40)
    image = random_image("P")
    image.info["transparency"] = 3
    clear = np.asarray(image) == 3
    pixels = color.pixels_of(image)
    assert clear.any()
    assert (pixels[clear] == 255).all()
    assert np.array_equal(pixels[~clear], np.asarray(random_image("P").convert("RGB"))[~clear])


def test_nan_is_black_and_does_not_affect_the_range():
    fractions = Image.fromarray(np.array([[0, 0.5, 1, np.nan, -np.inf]], np.float32))
    for span in ((0, 1), "image"):
        assert color.pixels_of(fractions, 3, span)[0, :, 0].tolist() == [0, 128, 255, 0, 0]
    large = Image.fromarray(np.array([[0, 32768, 65535, np.nan, np.inf]], np.float32))
    for span in ((0, 65535), "image"):
        assert color.pixels_of(large, 3, span)[0, :, 0].tolist() == [0, 128, 255, 0, 255]
    signed = Image.fromarray(np.array([[-1024, 0, 3072, np.nan]], np.float32))
    assert color.pixels_of(signed, 1, (-1024, 3072))[0, :, 0].tolist() == [0, 64, 255, 0]
    assert gray.extent(large) == (0, 65535)
    assert gray.extent(Image.fromarray(np.full((2, 2), np.nan, np.float32))) == (0, 0)


def test_gray_and_transparent_pixels_become_rgb():
    rgba = np.array([[[200, 10, 20, 255], [0, 0, 0, 0]]], np.uint8)
    assert color.to_rgb(rgba).tolist() == [[[200, 10, 20], [255, 255, 255]]]
    assert color.to_rgb(rgba[..., :1]).tolist() == [[[200] * 3, [0] * 3]]
    assert color.to_rgb(rgba[..., :3]) is not None


def test_gray_is_always_made_from_rgb():
    for mode in NARROW:
        image = random_image(mode)
        if not image.has_transparency_data and mode not in ("1", "L"):
            expected = np.asarray(image.convert("RGB").convert("L"))
            assert np.array_equal(color.pixels_of(image, 1)[..., 0], expected), mode
