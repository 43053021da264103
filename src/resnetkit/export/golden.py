"""Golden images: encoded images, and the results of each stage in eager PyTorch.

Anyone who runs an exported file can recompute the results and see at which stage an answer changes.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import nn

from ..data.decode import decode
from ..data.preprocessing import Preprocessing
from ..data.transforms import normalize, stack
from ..evaluation.metrics import probabilities
from ..runtime import full_fp32
from .artefact import GoldenImage, Manifest, sample_positions
from .preparation import decode_for, to_crop

NEAR_TIE = 0.004
"""Golden images whose two largest probabilities differ by less than this are near ties: each
may be off by the 0.001 in `TOLERANCES`, so the order of two this close means little."""

PHOTOS = 8
"""Number of photos among the golden images, if there are photos."""

PHOTO_SIDE = 256
"""The shorter side in pixels that photos are reduced to, so that the file stays small."""


def drawn_images() -> Iterator[tuple[str, bytes]]:
    """Yield the names and encodings of drawn images, one for every kind that decoders differ on."""
    scene = _scene(96, 64)
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        yield f"exif-{orientation}.jpg", _encoded(scene, "JPEG", quality=95, exif=exif)
    yield "gray.png", _encoded(_scene(80, 60).convert("L"), "PNG")
    yield "palette.png", _encoded(_scene(90, 70).quantize(32), "PNG")
    yield "transparent.png", _encoded(_with_alpha(_scene(75, 75)), "PNG")
    yield "cmyk.jpg", _encoded(_scene(64, 48).convert("CMYK"), "JPEG", quality=95)
    levels = np.linspace(0, 65535, 64 * 50).reshape(50, 64).astype(np.uint16)
    yield "16-bit.png", _encoded(Image.fromarray(levels), "PNG")
    yield "odd-101x77.jpg", _encoded(_scene(101, 77), "JPEG", quality=90)
    yield "progressive.jpg", _encoded(_scene(120, 90), "JPEG", quality=85, progressive=True)
    yield "1x10000.png", _encoded(_scene(1, 10_000), "PNG")
    large = _scene(200, 150).quantize(8).resize((4000, 3000), Image.Resampling.NEAREST)
    yield "12-megapixels.png", _encoded(large, "PNG", bits=4)


def photo_images(photos: Sequence[Path]) -> Iterator[tuple[str, bytes]]:
    """Yield the names and encodings of reduced copies of photos, without their metadata."""
    for number, photo in enumerate(photos, 1):
        pixels = decode(photo, PHOTO_SIDE, value_range="image")
        yield f"photo-{number}.jpg", _encoded(Image.fromarray(pixels), "JPEG", quality=90)


def choose_photos(photos: Sequence[Path], labels: Sequence[int]) -> list[Path]:
    """Return `PHOTOS` photos, from as many classes as possible."""
    by_rank: list[tuple[int, int]] = []
    seen: dict[int, int] = {}
    for index, label in enumerate(labels):
        seen[label] = seen.get(label, 0) + 1
        by_rank.append((seen[label], index))
    return [photos[index] for _, index in sorted(by_rank)[:PHOTOS]]


def record(
    images: Sequence[tuple[str, bytes]], network: nn.Module, manifest: Manifest
) -> list[GoldenImage]:
    """Return golden images with the results of each stage, computed in eager PyTorch and fp32.

    Args:
        images: the names and encodings of the images.
        network: maps normalized images to logits; in eval mode, on the CPU.
        manifest: how images become the network's input.
    """
    preprocessing = manifest.preprocessing
    golden = []
    for name, file in images:
        pixels = decode_for(manifest, file)
        crop = to_crop(pixels, preprocessing)
        logits, shares = _answer(network, crop, preprocessing)
        best = np.sort(shares)[-2:]
        golden.append(
            GoldenImage(
                name=name,
                file=file,
                shape=pixels.shape,
                sha256=hashlib.sha256(pixels.tobytes()).hexdigest(),
                sample=pixels.reshape(-1)[sample_positions(pixels.size)],
                crop=_encoded(_to_image(crop), "PNG"),
                logits=logits,
                probabilities=shares,
                class_name=manifest.classes[int(shares.argmax())],
                near_tie=len(best) > 1 and bool(best[1] - best[0] < NEAR_TIE),
            )
        )
    return golden


def _answer(
    network: nn.Module, crop: np.ndarray, preprocessing: Preprocessing
) -> tuple[np.ndarray, np.ndarray]:
    image = torch.from_numpy(crop).permute(2, 0, 1)
    with torch.inference_mode(), full_fp32(torch.device("cpu")):
        logits = network(normalize(stack([image]), preprocessing))
        return logits[0].numpy(), probabilities(logits)[0].numpy()


def _scene(width: int, height: int) -> Image.Image:
    """Return an RGB image with gradients, edges and thin lines, bit-identical on every machine."""
    x = np.arange(width)[None] * 255 // max(1, width - 1)
    y = np.arange(height)[:, None] * 255 // max(1, height - 1)
    pixels = np.empty((height, width, 3), np.uint8)
    pixels[..., 0] = x
    pixels[..., 1] = y
    pixels[..., 2] = 255 - (x + y) // 2
    image = Image.fromarray(pixels)
    draw = ImageDraw.Draw(image)
    draw.rectangle((width // 8, height // 8, width // 3, height // 2), fill=(220, 40, 30))
    draw.rectangle((width // 2, height // 3, width - 1, height // 2), fill=(250, 250, 245))
    for start in range(0, width, 7):
        draw.line((start, height * 3 // 4, start + 5, height - 1), fill=(10, 20, 60))
    return image


def _with_alpha(image: Image.Image) -> Image.Image:
    alpha = Image.fromarray(
        np.tile(np.linspace(0, 255, image.width), (image.height, 1)).astype("u1")
    )
    image.putalpha(alpha)
    return image


def _to_image(crop: np.ndarray) -> Image.Image:
    return Image.fromarray(crop[..., 0] if crop.shape[2] == 1 else crop)


def _encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()
