"""Headers that would keep a decoder busy for minutes are refused; a lot of metadata is not."""

from __future__ import annotations

import io
import struct
import zlib
from types import SimpleNamespace

import pytest
from PIL import Image

from resnetkit.data import decode
from resnetkit.data.bounded import STEPS
from resnetkit.errors import ImageError

SIZE = 2**20
GIF = b"GIF89a\x08\0\x08\0\0\0\0"


def encoded(kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 12), (200, 30, 30)).save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    crc = struct.pack(">I", zlib.crc32(name + data))
    return struct.pack(">I", len(data)) + name + data + crc


def segment(marker: int, data: bytes) -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", len(data) + 2) + data


JPEG, PNG = encoded("JPEG"), encoded("PNG")
PROFILE = chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(900_000)))
RESOURCES = segment(0xED, b"Photoshop 3.0\0" + (b"8BIM\4\4" + bytes(6)) * 5000)
HOSTILE = {
    "empty JPEG segments": JPEG[:2] + segment(0xE5, b"") * (SIZE // 4) + JPEG[2:],
    "JPEG fill bytes": JPEG[:2] + b"\xff" * SIZE + JPEG[2:],
    "JPEG junk": b"\xff\xd8\xff\xe0\0\2" + bytes(SIZE),
    "small EXIF segments": JPEG[:2] + segment(0xE1, b"Exif\0\0a") * (SIZE // 11) + JPEG[2:],
    "large EXIF segments": JPEG[:2] + segment(0xE1, b"Exif\0\0" + bytes(65527)) * 200 + JPEG[2:],
    "Photoshop resources": JPEG[:2] + RESOURCES * 40 + JPEG[2:],
    "empty PNG chunks": PNG[:33] + chunk(b"abCd", b"") * (SIZE // 12) + PNG[33:],
    "PNG chunks after the pixels": PNG[:-12] + chunk(b"abCd", b"") * (SIZE // 12) + PNG[-12:],
    "PNG profiles": PNG[:33] + PROFILE * 200 + PNG[33:],
    "GIF comments": GIF + b"!\xfe\1a\0" * (SIZE // 5),
    "GIF blocks": GIF + b"!\xfe" + b"\1a" * (SIZE // 2),
    "PPM comments": b"P6\n" + b"#\n" * (SIZE // 2),
    "PPM spaces": b"P6" + b" " * SIZE,
    "BigTIFF entries": b"II+\0\x08\0\0\0" + struct.pack("<QQ", 16, 150_000) + bytes(3_000_000),
}


class Counted(io.BytesIO):
    reads = 0

    def read(self, size: int | None = -1) -> bytes:
        self.reads += 1
        return super().read(size)


@pytest.mark.parametrize("contents", HOSTILE.values(), ids=HOSTILE)
def test_millions_of_parts_are_refused_after_a_bounded_number_of_reads(contents, monkeypatch):
    opened: list[Counted] = []

    def count(contents: bytes) -> Counted:
        opened.append(Counted(contents))
        return opened[-1]

    monkeypatch.setattr(decode, "io", SimpleNamespace(BytesIO=count))
    with pytest.raises(ImageError, match="too many segments, chunks or comments"):
        decode.stored_size(contents)
        decode.decode(contents)  # for files whose excess is at the end
    assert all(file.reads <= STEPS + len(contents) // 64 for file in opened)


@pytest.mark.parametrize("kind", ["EXIF", "profile"])
def test_costly_parts_are_refused_early(kind):
    """Pillow copies all earlier EXIF segments for each one, and decompresses every profile."""
    small = segment(0xE1, b"Exif\0\0a") * 1000
    contents = JPEG[:2] + small + JPEG[2:] if kind == "EXIF" else HOSTILE["PNG profiles"]
    with pytest.raises(ImageError, match="too many segments"):
        decode.stored_size(contents)


def test_much_metadata_is_read():
    """A 16 MB color profile, depth maps as extended XMP, EXIF in several segments."""
    metadata = (
        b"".join(segment(0xE2, b"ICC_PROFILE\0%c\xff" % n + bytes(60_000)) for n in range(1, 256))
        + segment(0xE1, b"http://ns.adobe.com/xmp/extension/\0" + bytes(65_000)) * 1000
        + segment(0xE1, b"Exif\0\0" + bytes(65_000)) * 20
        + segment(0xED, b"Photoshop 3.0\0" + (b"8BIM\4\4" + bytes(6)) * 200) * 20
    )
    assert decode.stored_size(JPEG[:2] + metadata + JPEG[2:]) == (16, 12)
    assert decode.decode(JPEG[:2] + metadata + JPEG[2:]).shape == (12, 16, 3)
    text = chunk(b"tEXt", b"key\0value") * 5000
    assert decode.decode(PNG[:33] + text + PNG[33:-12] + text + PNG[-12:]).shape == (12, 16, 3)
    xmp = GIF + b"!\xfe" + (b"\x50" + b"a" * 0x50) * 20_000 + b"\0" + encoded("GIF")[13:]
    assert decode.stored_size(xmp) == (16, 12)
    assert decode.stored_size(b"P6\n#" + b"a" * 50_000 + b"\n5 4\n255\n" + bytes(60)) == (5, 4)


def test_pixels_that_are_read_one_by_one_are_not_counted():
    side = 400
    header = b"P6 %d %d 100\n" % (side, side)  # 160,000 reads of 3 bytes
    assert decode.decode(header + bytes(3 * side * side)).shape == (side, side, 3)
