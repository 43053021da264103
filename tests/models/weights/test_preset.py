from pathlib import Path

import numpy as np
import pytest
import sklearn.datasets
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms._presets import ImageClassification as Theirs

from resnetkit.models import ImageClassification

SIZES = [(64, 48), (301, 517), (517, 301), (256, 256), (20, 300), (40, 40)]


def make_image(size, mode="RGB", seed=0):
    width, height = size
    noise = np.random.default_rng(seed).integers(0, 256, (height // 4 + 1, width // 4 + 1, 4))
    made = Image.fromarray(noise.astype(np.uint8), "RGBA" if mode != "RGB" else None)
    return made.convert("RGBA").resize(size, Image.Resampling.BICUBIC).convert(mode)


def presets(**options):
    return ImageClassification(**options), Theirs(**options)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("resize_size", [232, 256])
def test_images_and_tensors_give_equal_results(size, resize_size):
    ours, theirs = presets(crop_size=224, resize_size=resize_size)
    image = make_image(size)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    batch = torch.stack([pixels, 255 - pixels])
    for given in (image, pixels, batch, pixels.float() / 255):
        assert torch.equal(ours(given), theirs(given))


@pytest.mark.parametrize("mode", list(InterpolationMode)[:3])
@pytest.mark.parametrize("antialias", [True, False])
def test_other_settings_give_equal_results(mode, antialias):
    options = {"crop_size": 40, "resize_size": 50, "mean": (0.1, 0.2, 0.3), "std": (1.0, 2.0, 3.0)}
    ours, theirs = presets(**options, interpolation=mode, antialias=antialias)
    image = make_image((90, 70))
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    if antialias:  # for PIL images it cannot be turned off, and torchvision warns
        assert torch.equal(ours(image), theirs(image))
    assert torch.equal(ours(pixels), theirs(pixels))
    assert ours.interpolation is mode
    assert repr(ours) == repr(theirs)
    for preset in (ours, theirs):
        preset.interpolation = InterpolationMode.NEAREST
    assert repr(ours) == repr(theirs)
    assert torch.equal(ours(pixels), theirs(pixels))


def test_one_channel_is_kept_if_one_is_expected():
    ours, theirs = presets(crop_size=32, resize_size=32, mean=(0.5,), std=(0.5,))
    image = make_image((50, 40)).convert("L")
    assert torch.equal(ours(image), theirs(image))


@pytest.mark.parametrize("name", ["china.jpg", "flower.jpg"])
def test_real_photos_give_equal_results(name):
    photo = Image.open(Path(sklearn.datasets.__file__).parent / "images" / name)
    for resize_size in (232, 256):
        ours, theirs = presets(crop_size=224, resize_size=resize_size)
        assert torch.equal(ours(photo), theirs(photo))


def test_gray_is_repeated_over_the_channels():
    ours = ImageClassification(crop_size=32, resize_size=40)
    gray = make_image((60, 50)).convert("L")
    assert torch.equal(ours(gray), ours(gray.convert("RGB")))
    pixels = torch.from_numpy(np.array(gray))[None]
    assert torch.equal(ours(pixels), ours(pixels.repeat(3, 1, 1)))
    assert ours(pixels[None]).shape == (1, 3, 32, 32)


def test_sixteen_bits_keep_the_upper_eight():
    ours = ImageClassification(crop_size=8, resize_size=8)
    deep = Image.fromarray(np.full((8, 8), 0x80FF, np.uint16))
    assert deep.mode == "I;16"
    assert torch.equal(ours(deep), ours(Image.new("L", (8, 8), 0x80)))


def test_32_bits_are_read_as_8_or_16_by_their_values():
    ours = ImageClassification(crop_size=8, resize_size=8)
    shades = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) * 4)
    assert torch.equal(ours(shades.convert("I")), ours(shades))
    deep = Image.fromarray(np.asarray(shades).astype(np.int32) * 256)
    assert deep.mode == "I"
    assert torch.equal(ours(deep), ours(shades))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P"])
def test_transparency_is_laid_over_white(mode):
    ours = ImageClassification(crop_size=8, resize_size=8)
    clear = Image.new("RGBA", (8, 8), (10, 20, 30, 0)).convert(mode if mode != "P" else "RGBA")
    if mode == "P":
        clear = Image.new("P", (8, 8), 0)
        clear.info["transparency"] = 0
    assert torch.equal(ours(clear), ours(Image.new("RGB", (8, 8), "white")))


def test_transparent_tensors_are_laid_over_white_like_images():
    ours = ImageClassification(crop_size=30, resize_size=30)
    image = make_image((30, 30), "RGBA")
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    assert (ours(pixels) - ours(image)).abs().max() < 0.02  # Pillow rounds in its own way
    as_floats = ours(pixels.float() / 255)
    assert (as_floats - ours(pixels)).abs().max() < 0.02
    opaque = torch.cat([pixels[:3], torch.full_like(pixels[:1], 255)])
    assert torch.equal(ours(opaque), ours(pixels[:3]))


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "HSV", "1"])
def test_other_colors_are_converted(mode):
    ours = ImageClassification(crop_size=16, resize_size=16)
    image = make_image((20, 20)).convert(mode)
    assert torch.equal(ours(image), ours(image.convert("RGB")))


@pytest.mark.parametrize("given", [torch.zeros(5, 8, 8), torch.zeros(8, 8), Image.new("F", (8, 8))])
def test_other_inputs_raise(given):
    with pytest.raises(ValueError, match=r"channels|mode F"):
        ImageClassification(crop_size=8)(given)


def test_it_describes_itself():
    assert "232 pixels (bilinear)" in ImageClassification(crop_size=1, resize_size=232).describe()
