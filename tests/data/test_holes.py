"""Files with holes of zeros are reported as damaged where the format allows."""

from __future__ import annotations

import io
import random

import numpy as np
import pytest
from PIL import Image

from resnetkit.data import decode, holes
from resnetkit.data.check import check_dataset
from resnetkit.errors import ImageError


@pytest.fixture(scope="module")
def photo():
    rng = np.random.default_rng(3)
    small = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    pixels = np.asarray(small.resize((320, 240), Image.Resampling.BICUBIC)).astype(int)
    return Image.fromarray((pixels + rng.integers(-9, 9, pixels.shape)).clip(0, 255).astype("u1"))


def encode(image, kind):
    file = io.BytesIO()
    if kind == "HEIC":
        pillow_heif = pytest.importorskip("pillow_heif")
        pillow_heif.from_pillow(image).save(file, quality=80)
        return file.getvalue()
    name, _, compression = kind.partition(" ")
    image = image.convert("1") if compression.startswith("group") else image
    image.save(file, name, **({"compression": compression} if compression else {}))
    return file.getvalue()


COMPRESSED = ["JPEG", "PNG", "GIF", "AVIF", "HEIC", "TIFF tiff_lzw", "TIFF tiff_adobe_deflate",
              "TIFF packbits", "TIFF group4", "TIFF group3"]  # fmt: skip


@pytest.mark.parametrize("kind", COMPRESSED)
@pytest.mark.parametrize("share", [0.4, 0.8])
def test_holes_in_compressed_pixels_are_named(photo, kind, share):
    file = encode(photo, kind)
    decode.decode(file)
    start = int(len(file) * share)
    with pytest.raises(ImageError):
        decode.decode(file[:start] + bytes(600) + file[start + 600 :])


@pytest.mark.parametrize("kind", [*COMPRESSED, "WEBP", "BMP", "PPM", "TIFF"])
def test_truncated_files_are_named(photo, kind):
    file = encode(photo, kind)
    for kept in (len(file) // 2, len(file) - 100):
        with pytest.raises(ImageError):
            decode.decode(file[:kept])


@pytest.mark.parametrize("kind", [*COMPRESSED, "WEBP", "BMP", "PPM", "TIFF", "TIFF jpeg"])
@pytest.mark.parametrize("color", ["black", "white", "half"])
def test_flat_images_are_whole(photo, kind, color):
    image = Image.new("RGB", (900, 700), "black" if color == "half" else color)
    if color == "half":
        image.paste(photo, (0, 0))
    file = encode(image, kind)
    assert decode.decode(file).shape == (700, 900, 3)
    assert not holes.has_empty_block(file)


def test_zeros_in_the_metadata_of_avif_are_no_hole(photo):
    exif = Image.Exif()
    exif[0x927C] = bytes(2000)  # the maker's note
    exif[0x010F] = "maker"
    file = io.BytesIO()
    photo.save(file, "AVIF", exif=exif.tobytes() + bytes(900))
    assert bytes(holes.HOLE) in file.getvalue()
    assert decode.decode(file.getvalue()).shape == (240, 320, 3)


def test_an_empty_block_is_a_run_of_zeros_between_boundaries(monkeypatch):
    monkeypatch.setattr(holes, "BLOCK", 16)
    choice = random.Random(0)
    seen = set()
    for _ in range(2000):
        lengths = [choice.choice([1, 8, 15, 16, 32, 33]) for _ in range(choice.randint(1, 6))]
        contents = b"".join(bytes([choice.choice([0, 7])]) * length for length in lengths)
        runs = [len(part) for part in contents.split(b"\7")]
        ends = np.cumsum([run + 1 for run in runs]) - 1
        expected = any(
            run >= 16
            and end > run
            and (end - run) % 16 == 0
            and (end % 16 == 0 or end == len(contents))
            for run, end in zip(runs, ends.tolist(), strict=True)
        )
        assert holes.has_empty_block(contents) is expected
        seen.add(expected)
    assert seen == {True, False}


@pytest.mark.parametrize("kind", ["BMP", "TIFF", "PPM"])
def test_check_names_empty_blocks(tmp_path, photo, kind):
    file = encode(photo, kind)
    for name in ("a/1", "a/2", "b/1", "b/2"):
        path = tmp_path / f"{name}.{kind.lower()}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(file)
    path.write_bytes(file[:40960] + bytes(8192) + file[49152:])
    (issue,) = [issue for issue in check_dataset(tmp_path, 2).issues if issue.kind == "zeros"]
    assert (issue.level, issue.groups) == ("warning", [[f"b/2.{kind.lower()}"]])
