from __future__ import annotations

import io

import imagehash
import numpy as np
import pytest
from PIL import Image, ImageEnhance

from resnetkit.data import decode, near_duplicates


def scene(number: int, size: tuple[int, int] = (96, 80)) -> Image.Image:
    """Return soft blobs of color, different for each number."""
    rng = np.random.default_rng(number)
    small = Image.fromarray(rng.integers(0, 256, (6, 7, 3), dtype=np.uint8))
    return small.resize(size, Image.Resampling.BICUBIC)


def groups_of(images: list[Image.Image]) -> list[list[int]]:
    signatures = [near_duplicates.signature(np.asarray(image)) for image in images]
    hashes = np.array([each.hash for each in signatures], np.uint64)
    thumbs = np.stack([each.thumb for each in signatures])
    return near_duplicates.near_duplicate_groups(hashes, thumbs, np.arange(len(images)))


@pytest.mark.parametrize("number", range(20))
def test_the_hash_equals_that_of_imagehash(number):
    gray = scene(number, (32, 32)).convert("L")
    expected = imagehash.phash(gray)
    assert near_duplicates.phash(np.asarray(gray, np.float64)) == int(str(expected), 16)


@pytest.mark.parametrize("count", [1, 500])
def test_all_pairs_within_the_distance_are_found(count):
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**64, count, dtype=np.uint64)
    for flips in range(9):  # copies with some random bits flipped
        for i in range(min(count, 60)):
            bits = rng.choice(64, flips, replace=False).astype(np.uint64)
            changed = hashes[i] ^ np.bitwise_or.reduce(np.uint64(1) << bits, initial=np.uint64(0))
            hashes = np.append(hashes, changed)
    apart = np.bitwise_count(hashes[:, None] ^ hashes[None, :])
    expected = {(i, j) for i, j in np.argwhere(apart <= near_duplicates.DISTANCE).tolist() if i < j}
    assert len(expected) >= 8
    pairs = np.concatenate(list(near_duplicates.near_pairs(hashes)))
    assert {tuple(pair) for pair in pairs.tolist()} == expected


def test_resaved_resized_and_brightened_copies_are_found():
    originals = [scene(number, (200, 160)) for number in range(40)]
    buffer = io.BytesIO()
    originals[3].save(buffer, "JPEG", quality=30)
    changed = [
        Image.open(buffer).convert("RGB"),
        originals[4].resize((70, 56), Image.Resampling.LANCZOS),
        ImageEnhance.Brightness(originals[5]).enhance(0.85),
        ImageEnhance.Contrast(originals[6]).enhance(0.8),
    ]
    assert groups_of(originals + changed) == [[3, 40], [4, 41], [5, 42], [6, 43]]


def test_different_images_of_the_same_kind_are_not_found():
    """A square at another position on the same background: similar hashes, but different images."""
    images = []
    for left in range(0, 60, 15):
        pixels = np.full((90, 90, 3), 230, np.uint8)
        pixels[30:60, left : left + 30] = (200, 30, 30)
        images.append(Image.fromarray(pixels))
    red_and_blue = np.asarray(images[0])
    images.append(Image.fromarray(np.ascontiguousarray(red_and_blue[..., ::-1])))
    assert groups_of(images) == []


def test_images_of_one_color_are_flat():
    for color in ("white", "black", (7, 90, 200)):
        assert near_duplicates.signature(np.asarray(Image.new("RGB", (64, 64), color))).flat
    noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    assert near_duplicates.signature(noise // 64 + 100).flat
    assert not near_duplicates.signature(np.asarray(scene(0))).flat


def test_only_few_pairs_of_many_images_are_compared(monkeypatch):
    """30,000 random hashes, then 30,000 equal ones: either way, half a billion pairs in all."""
    compared = []

    def counting(function, argument):
        def counted(*given):
            compared.append(len(given[argument]))
            return function(*given)

        return counted

    monkeypatch.setattr(np, "bitwise_count", counting(np.bitwise_count, 0))
    monkeypatch.setattr(near_duplicates, "correlations", counting(near_duplicates.correlations, 1))
    rng = np.random.default_rng(0)
    count = 30_000
    thumbs = rng.integers(0, 256, (1, 16, 16, 3), dtype=np.uint8).repeat(count, 0)
    hashes = rng.integers(0, 2**64, count, dtype=np.uint64)
    hashes[-1] = hashes[0] ^ np.uint64(0b111)
    everything = np.arange(count)
    groups = near_duplicates.near_duplicate_groups(hashes, thumbs, everything)
    assert groups == [[0, count - 1]]
    assert count < sum(compared) < 20 * count
    compared.clear()
    same = np.full(count, 5, np.uint64)
    groups = near_duplicates.near_duplicate_groups(same, thumbs, everything)
    assert groups == [list(range(count))]
    assert count < sum(compared) < 50 * count


def test_images_with_one_hash_are_compared_by_their_thumbnails():
    rng = np.random.default_rng(1)
    thumbs = rng.integers(0, 256, (300, 16, 16, 3), dtype=np.uint8)
    thumbs[299] = thumbs[0]
    thumbs[120] = thumbs[50]
    hashes = np.full(300, 9, np.uint64)
    find = near_duplicates.near_duplicate_groups
    assert find(hashes, thumbs, np.arange(300)) == [[0, 299], [50, 120]]
    assert find(hashes, thumbs, np.array([50, 119, 120, 299])) == [[50, 120]]


def test_the_hash_of_a_reduced_image_is_nearly_the_same():
    buffer = io.BytesIO()
    scene(3, (640, 480)).save(buffer, "JPEG", quality=90)
    small = near_duplicates.signature(decode.decode(buffer.getvalue(), 64))
    whole = near_duplicates.signature(decode.decode(buffer.getvalue()))
    assert (small.hash ^ whole.hash).bit_count() <= 2
