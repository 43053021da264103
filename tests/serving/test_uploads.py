"""Damaged and mutated files, uploaded to a real model."""

from __future__ import annotations

import io
import random

import numpy as np
import pytest
from PIL import Image

from resnetkit.serving.served import open_served

from .conftest import form, running, wait_for


def encoded(kind: str, **options: object) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (45, 60, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def mutate(content: bytes, rng: random.Random) -> bytes:
    found = bytearray(content)
    for _ in range(rng.randint(1, 12)):
        place = rng.randrange(min(len(found), 400) if rng.random() < 0.7 else len(found))
        how = rng.random()
        if how < 0.5:
            found[place] = rng.randrange(256)
        elif how < 0.6:
            found[place : place + 4] = rng.choice([b"\xff" * 4, bytes(4), b"\x7f\xff\xff\xff"])
        elif how < 0.8:
            del found[place : place + rng.randint(1, 30)]
        elif how < 0.9:
            found[place:place] = found[: rng.randint(1, 50)]
        else:
            del found[place + 1 :]
        if not found:
            return b"x"
    return bytes(found)


@pytest.mark.slow
def test_two_thousand_mutated_uploads(exported):
    """Each upload is answered or refused; the server stays ready, and its queue empties."""
    rng = random.Random(0)
    seeds = [
        encoded("JPEG"), encoded("JPEG", progressive=True), encoded("PNG"), encoded("WEBP"),
        encoded("WEBP", lossless=True), encoded("GIF"), encoded("BMP"), encoded("PPM"),
        encoded("TIFF"), encoded("TIFF", compression="tiff_lzw"),
        encoded("TIFF", compression="jpeg"), encoded("AVIF"),
    ]  # fmt: skip
    counts: dict[int, int] = {}
    with running(open_served(exported)) as server:
        for _ in range(1500):
            reply = server.request(body=mutate(rng.choice(seeds), rng))
            counts[reply.status] = counts.get(reply.status, 0) + 1
            if reply.status != 200:
                assert reply.json["error"]
        for _ in range(500):
            body, kind = form(*((str(n), rng.choice(seeds)) for n in range(rng.randint(1, 3))))
            reply = server.request(body=mutate(body, rng), Content_Type=kind)
            counts[reply.status] = counts.get(reply.status, 0) + 1
        assert set(counts) <= {200, 400, 415, 422}, counts
        assert min(counts[status] for status in (200, 400, 415, 422)) > 20, counts
        wait_for(lambda: not server.server.queue.images)
        assert server.server.engine.starts == 1
        assert '"level": "error"' not in server.log.getvalue()
        for seed in seeds:
            assert server.request(body=seed).status == 200
