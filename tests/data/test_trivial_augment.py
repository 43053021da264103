from __future__ import annotations

import random
from collections import Counter

import pytest
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import TrivialAugmentWide

from resnetkit.data.trivial_augment import BINS, OPERATIONS, Operation, trivial_augment

REFERENCE = TrivialAugmentWide(interpolation=InterpolationMode.BILINEAR)
TABLE = REFERENCE._AUGMENTATION_SPACE


def smooth_image(height=40, width=48, seed=0):
    """Return a smooth image, so that moved and sharpened ones differ by more than noise."""
    rng = torch.Generator().manual_seed(seed)
    small = torch.randint(0, 256, (1, 3, 6, 7), generator=rng).float()
    large = torch.nn.functional.interpolate(small, (height, width), mode="bilinear")
    return large[0].round().to(torch.uint8)


def test_the_operations_are_torchvisions():
    assert list(OPERATIONS) == list(TABLE)
    assert REFERENCE.num_magnitude_bins == BINS


@pytest.mark.parametrize("name", OPERATIONS)
def test_strengths_are_torchvisions(name):
    operation = OPERATIONS[name]
    spread, signed = TABLE[name]
    expected = spread(BINS, 40, 48)
    strengths = [operation.strength(number) for number in range(BINS)]
    assert operation.signed == signed
    if expected is None:
        assert set(strengths) == {0.0}
    elif name == "Posterize":
        assert [round(strength) for strength in strengths] == expected.tolist()
    else:
        assert strengths == pytest.approx(expected.tolist(), abs=1e-5)


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("number", [0, 1, 14, 30])
def test_results_are_torchvisions(name, number):
    operation, image = OPERATIONS[name], smooth_image()
    before = image.clone()
    for sign in (1, -1) if operation.signed else (1,):
        strength = sign * operation.strength(number)
        magnitude = round(strength) if name == "Posterize" else strength
        expected = REFERENCE._apply_image_or_video_transform(
            image, name, magnitude, interpolation=REFERENCE.interpolation, fill=REFERENCE._fill
        )
        result = operation.apply(image, strength)
        assert result.dtype == torch.uint8
        assert torch.equal(result, expected)
    assert torch.equal(image, before)
    if number == 30 and name != "Identity":
        assert not torch.equal(result, image)


def test_every_operation_strength_and_sign_is_equally_likely(monkeypatch):
    seen = Counter()

    def recorded(name, operation):
        def apply(image, strength):
            seen[name, round(strength, 4)] += 1
            return image

        return Operation(apply, *operation[1:])

    operations = {name: recorded(name, each) for name, each in OPERATIONS.items()}
    monkeypatch.setattr("resnetkit.data.trivial_augment.OPERATIONS", operations)
    image, rng = smooth_image(4, 4), random.Random(0)
    for _ in range(14_000):
        trivial_augment(image, rng)
    by_name = Counter()
    for (name, _), count in seen.items():
        by_name[name] += count
    assert set(by_name) == set(OPERATIONS)
    assert all(880 < count < 1120 for count in by_name.values())
    rotations = {strength for name, strength in seen if name == "Rotate"}
    assert len(rotations) == 2 * BINS - 1
    negative = sum(count for (name, by), count in seen.items() if name == "Rotate" and by < 0)
    assert 0.43 < negative / by_name["Rotate"] < 0.55


def test_the_result_is_a_function_of_the_rng():
    image = smooth_image()
    for seed in range(30):
        first = trivial_augment(image, random.Random(seed))
        assert first.shape == image.shape
        assert torch.equal(first, trivial_augment(image, random.Random(seed)))
