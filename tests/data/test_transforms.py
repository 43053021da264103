from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch
from torchvision.transforms import functional, v2

from resnetkit.data import transforms
from resnetkit.data.crops import center_crop, to_tensor
from resnetkit.data.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from resnetkit.data.transforms import Augmentation, erase, normalize


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("shape", [(80, 100), (100, 80), (64, 64), (65, 131), (30, 20)])
@pytest.mark.parametrize(("resize", "crop"), [(64, 64), (64, 56), (48, 33)])
def test_evaluation_equals_torchvision_on_tensors(shape, resize, crop):
    pixels = noise(*shape)
    reference = v2.Compose([v2.Resize(resize, antialias=True), v2.CenterCrop(crop)])
    expected = reference(torch.from_numpy(pixels).permute(2, 0, 1))
    assert torch.equal(to_tensor(center_crop(pixels, resize, crop)), expected)


def test_crop_larger_than_the_image_pads_with_black_as_torchvision_does():
    pixels = noise(40, 30)
    reference = v2.Compose([v2.Resize(20, antialias=True), v2.CenterCrop(25)])
    expected = reference(torch.from_numpy(pixels).permute(2, 0, 1))
    assert torch.equal(to_tensor(center_crop(pixels, 20, 25)), expected)


@pytest.mark.parametrize("shape", [(1, 10_000), (10_000, 1), (3, 90)])
def test_only_the_middle_of_a_very_long_image_is_resized(shape):
    assert center_crop(noise(*shape), 64, 64).shape == (64, 64, 3)


def test_normalize_equals_torchvision():
    images = torch.from_numpy(noise(32, 32)).permute(2, 0, 1)[None]
    scaled = functional.convert_image_dtype(images, torch.float32)
    expected = functional.normalize(scaled, IMAGENET_MEAN, IMAGENET_STD)
    assert torch.equal(transforms.normalize(images, Preprocessing(32, 32)), expected)


def test_random_crop_equals_torchvision_for_the_same_random_box():
    augment = Augmentation(flip=False)
    pixels = noise(90, 120)
    top, left, height, width = augment._random_box(90, 120, random.Random(5))
    expected = v2.functional.resized_crop(
        torch.from_numpy(pixels).permute(2, 0, 1), top, left, height, width, [48, 48]
    )
    assert torch.equal(augment(pixels, 48, random.Random(5)), expected)


@pytest.mark.parametrize("shape", [(100, 100), (37, 120), (5, 400), (1, 1)])
def test_random_crops_have_the_requested_area_and_ratio(shape):
    augment = Augmentation(crop_scale=(0.35, 1.0))
    shares = []
    for seed in range(300):
        top, left, height, width = augment._random_box(*shape, random.Random(seed))
        assert 0 <= top <= top + height <= shape[0]
        assert 0 <= left <= left + width <= shape[1]
        assert height > 0
        assert width > 0
        shares.append(height * width / math.prod(shape))
        if shape == (100, 100):
            assert 0.7 < width / height < 1.4
            assert 0.33 < shares[-1] <= 1.0
    if shape == (100, 100):
        assert 0.55 < np.mean(shares) < 0.75


def test_flip_mirrors_half_of_the_images():
    pixels = noise(32, 32)
    plain, mirrored = Augmentation(flip=False), Augmentation(flip=True)
    same = [
        torch.equal(plain(pixels, 32, random.Random(s)), mirrored(pixels, 32, random.Random(s)))
        for s in range(200)
    ]
    assert 70 < sum(same) < 130
    seed = same.index(False)
    flipped = mirrored(pixels, 32, random.Random(seed))
    assert torch.equal(flipped.flip(-1), plain(pixels, 32, random.Random(seed)))


def test_stack_is_channels_last():
    images = [torch.from_numpy(noise(8, 8, s)).permute(2, 0, 1) for s in range(3)]
    batch = transforms.stack(images)
    assert torch.equal(batch, torch.stack(images))
    assert batch.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("shape", [(4, 24, 17), (1, 5, 5), (0, 8, 8)])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_normalize_equals_the_formula_in_either_memory_layout(shape, layout):
    count, height, width = shape
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=rng)
    preset = Preprocessing(32, 32, mean=(0.1, 0.4, 0.7), std=(0.2, 0.3, 0.5))
    mean = torch.tensor(preset.mean).view(3, 1, 1)
    std = torch.tensor(preset.std).view(3, 1, 1)
    given = images.to(memory_format=layout)
    result = transforms.normalize(given, preset)
    assert torch.equal(result, (images.float() / 255 - mean) / std)
    assert result.is_contiguous(memory_format=layout)
    assert torch.equal(given, images)


def tensor(pixels):
    return torch.from_numpy(pixels).permute(2, 0, 1)


@pytest.mark.parametrize("shape", [(32, 32), (40, 48), (64, 33)])
def test_padded_crops_equal_torchvisions_and_reach_every_position(shape):
    pixels, positions = noise(*shape), set()
    scaled = v2.functional.resize(tensor(pixels), [32], antialias=True)
    padded = v2.functional.pad(scaled, [4, 4, 4, 4])
    height, width = padded.shape[-2:]
    crops = {
        (top, left): v2.functional.crop(padded, top, left, 32, 32)
        for top in range(height - 31)
        for left in range(width - 31)
    }
    augment = Augmentation(crop_padding=4, flip=False)
    for seed in range(400):
        crop = augment(pixels, 32, random.Random(seed))
        (found,) = (at for at, expected in crops.items() if torch.equal(crop, expected))
        positions.add(found)
    assert {top for top, _ in positions} == set(range(height - 31))
    assert {left for _, left in positions} == set(range(width - 31))


@pytest.mark.parametrize("shape", [(60, 80), (80, 60), (30, 30)])
def test_scale_jitter_is_a_random_square_of_the_resized_image(shape):
    pixels, seen = noise(*shape), set()
    augment = Augmentation(scale_jitter=(1.125, 1.5), flip=False)
    for seed in range(300):
        rng = random.Random(seed)
        side = rng.randint(36, 48)
        scaled = v2.functional.resize(tensor(pixels), [side], antialias=True)
        top, left = (rng.randint(0, scaled.shape[axis] - 32) for axis in (1, 2))
        expected = v2.functional.crop(scaled, top, left, 32, 32)
        assert torch.equal(augment(pixels, 32, random.Random(seed)), expected)
        seen.add(side)
    assert seen == set(range(36, 49))


@pytest.mark.parametrize("shape", [(1, 5_000), (5_000, 1), (2, 90)])
@pytest.mark.parametrize("crop", [{"crop_padding": 4}, {"scale_jitter": (1.2, 2.0)}])
def test_only_a_piece_of_a_very_long_image_is_scaled(shape, crop):
    augment = Augmentation(**crop)
    crops = [augment(noise(*shape), 32, random.Random(seed)) for seed in range(5)]
    assert {crop.shape for crop in crops} == {(3, 32, 32)}
    assert not torch.equal(crops[0], crops[1])


def test_erasing_equals_torchvisions_for_the_same_random_box():
    image = tensor(noise(64, 64))
    before, erased = image.clone(), 0
    areas, ratios = [], []
    color = torch.tensor([round(255 * mean) for mean in IMAGENET_MEAN], dtype=torch.uint8)
    for seed in range(300):
        result = erase(image, random.Random(seed))
        changed = (result != image).any(0).nonzero()
        if len(changed) == 0:
            continue
        (top, left), (bottom, right) = changed.min(0).values, changed.max(0).values + 1
        h, w = int(bottom - top), int(right - left)
        box = (int(top), int(left), h, w, color.view(3, 1, 1))
        assert torch.equal(result, v2.functional.erase(image, *box))
        erased += 1
        areas.append(h * w / 64**2)
        ratios.append(h / w)
    assert torch.equal(image, before)
    assert erased > 290
    assert 0.015 < min(areas) < 0.03 < 0.31 < max(areas) < 0.34
    assert 0.28 < min(ratios) < 0.4 < 2.5 < max(ratios) < 3.5
    zero = normalize(color.view(1, 3, 1, 1), Preprocessing(32, 32))
    assert zero.abs().max() < 0.01


def test_erasing_and_trivial_augment_change_the_requested_share():
    pixels = noise(32, 32)
    plain = Augmentation(flip=False, crop_scale=(1, 1), crop_ratio=(1, 1))
    boxes = Augmentation(flip=False, crop_scale=(1, 1), crop_ratio=(1, 1), erasing=0.25)
    trivial = Augmentation(flip=False, crop_scale=(1, 1), crop_ratio=(1, 1), trivial_augment=True)
    untouched = plain(pixels, 32, random.Random(0))
    assert torch.equal(untouched, tensor(pixels))

    def changed(augment):
        results = [augment(pixels, 32, random.Random(seed)) for seed in range(400)]
        return sum(not torch.equal(result, untouched) for result in results)

    assert 70 < changed(boxes) < 130
    assert changed(trivial) > 300
    assert torch.equal(untouched, tensor(pixels))
