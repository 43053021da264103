"""Every broken file and every file that is not an image is named in an error.

Decoding runs in a separate process with limited memory; if that process dies, the test fails.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import resource
import socket
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from resnetkit.data import decode, files, folder
from resnetkit.data.check import check_dataset
from resnetkit.data.digits import write_digits
from resnetkit.errors import ImageError

ROOM = 2**30  # bytes on top of what the imports take

LIMITED = """
import faulthandler, hashlib, json, resource, sys
faulthandler.enable()
faulthandler.dump_traceback_later(240, exit=True)
from pathlib import Path
import torch
torch.set_num_threads(1)
from resnetkit.data import decode
from resnetkit.errors import ImageError
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv[1]),) * 2)
for name in sys.stdin.read().split("\\0"):
    found = {}
    ways = {"whole": (decode.decode, None), "scaled": (decode.decode, 64),
            "full": (decode.decode_full, 64)}
    for way, (function, size) in ways.items():
        try:
            pixels = function(Path(name), size)
            found[way] = [pixels.shape, hashlib.sha256(pixels.tobytes()).hexdigest()]
        except ImageError as error:
            found[way] = str(error)
    print(json.dumps([name, found]), flush=True)
"""


def decoded(paths: list[Path]) -> dict[str, dict[str, object]]:
    """Return the results of the three ways of decoding, from a process with little memory."""
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(ROOM)],
        input="\0".join(map(str, paths)),
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"},
    )
    assert done.returncode == 0, f"after {done.stdout[-300:]}\n{done.stderr[-3000:]}"
    return dict(json.loads(line) for line in done.stdout.splitlines())


def photo(width: int = 61, height: int = 47, mode: str = "RGB") -> Image.Image:
    small = np.random.default_rng([width, height]).integers(0, 256, (5, 6, 4), dtype=np.uint8)
    image = Image.fromarray(small, "RGBA").resize((width, height), Image.Resampling.BICUBIC)
    return image.convert(mode)


def saved(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.copy().save(buffer, format, **options)
    return buffer.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, *chunks: bytes, depth: int = 8, interlaced: int = 0) -> bytes:
    """Return a gray PNG with ``chunks`` between the header and the end."""
    header = struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, interlaced)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(chunks) + chunk(b"IEND", b"")


def interlaced_png() -> bytes:
    """Return an Adam7 PNG with one transparent shade."""
    gray = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
    passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2),
              (0, 1, 1, 2)]  # fmt: skip
    rows = b"".join(
        b"\0" + row.tobytes() for x, y, right, down in passes for row in gray[y::down, x::right]
    )
    clear = chunk(b"tRNS", struct.pack(">H", 100))
    return png(8, 8, clear, chunk(b"IDAT", zlib.compress(rows)), interlaced=1)


def frame(jpeg: bytes, **changes: int) -> bytes:
    """Return a JPEG whose frame header has another kind, precision, height or width."""
    at = jpeg.index(b"\xff\xc0")
    fields = list(struct.unpack(">BBHBHH", jpeg[at : at + 9]))
    for name, value in changes.items():
        fields[["ff", "kind", "length", "precision", "height", "width"].index(name)] = value
    return jpeg[:at] + struct.pack(">BBHBHH", *fields) + jpeg[at + 9 :]


ARITHMETIC = base64.b64decode(
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAA0JCgsKCA0LCgsODg0PEyAVExISEyccHhcgLikxMC4pLSwzOko+MzZGNy"
    "wtQFdBRkxOUlNSMj5aYVpQYEpRUk//2wBDAQ4ODhMREyYVFSZPNS01T09PT09PT09PT09PT09PT09PT09PT09PT09P"
    "T09PT09PT09PT09PT09PT09PT09PT0//yQARCAAQABADASIAAhEBAxEB/8wACgAQEAUBEBEF/9oADAMBAAIRAxEAPw"
    "D/AHhxVHHnZPP231HEzUFdsxfJVk6yq5x9tXP/2Q=="
)
"""`smooth_jpeg` after ``jpegtran -arithmetic``."""


def smooth_jpeg() -> bytes:
    y, x = np.mgrid[0:16, 0:16]
    pixels = np.stack([16 * x, 16 * y, 8 * (x + y)], -1).astype(np.uint8)
    return saved(Image.fromarray(pixels), "JPEG", quality=60)


def deep_jpeg(precision: int = 12) -> bytes:
    """Return an 8x8 gray JPEG of one shade: two tables of one code each, and two bits of data."""

    def segment(kind: int, body: bytes) -> bytes:
        return bytes([255, kind]) + struct.pack(">H", len(body) + 2) + body

    codes = bytes([1] + 15 * [0] + [0])  # one code of one bit, for the symbol 0
    return b"".join([
        b"\xff\xd8", segment(0xDB, b"\0" + 64 * b"\1"),
        segment(0xC1, struct.pack(">BHHB", precision, 8, 8, 1) + b"\1\x11\0"),
        segment(0xC4, b"\0" + codes), segment(0xC4, b"\x10" + codes),
        segment(0xDA, b"\1\1\0\0\x3f\0"), b"\x3f\xff\xd9",
    ])  # fmt: skip


def local_palettes() -> bytes:
    """Return a GIF without a global palette: each of its two frames has its own."""
    whole = saved(photo().quantize(30), "GIF", save_all=True,
                  append_images=[photo(60, 46).quantize(200)])  # fmt: skip
    table = 3 * 2 ** ((whole[10] & 7) + 1)
    colors, rest = whole[13 : 13 + table], whole[13 + table :]
    at = rest.index(b"\x2c\0\0\0\0") + 9  # the flags of the first frame
    frame = bytes([rest[at] | 0x80 | (whole[10] & 7)]) + colors
    return (
        whole[:10] + bytes([whole[10] & 0x78]) + whole[11:13] + rest[:at] + frame + rest[at + 1 :]
    )


def good() -> dict[str, bytes]:
    """Return unusual but valid images."""
    jpeg = saved(photo(), "JPEG")
    turned = Image.Exif()
    turned[0x0112] = 5
    long = Image.Exif()
    long[0x010E] = "a" * 60_000
    return {
        "cmyk.jpg": saved(photo(mode="CMYK"), "JPEG"),
        "gray.jpg": saved(photo(mode="L"), "JPEG"),
        "progressive.jpg": saved(photo(), "JPEG", progressive=True),
        "arithmetic.jpg": ARITHMETIC,
        "eight bits.jpg": deep_jpeg(8),
        "local palettes.gif": local_palettes(),
        "turned.jpg": saved(photo(), "JPEG", exif=turned),
        "exif.jpg": saved(photo(), "JPEG", exif=long),
        "large profile.jpg": saved(photo(), "JPEG", icc_profile=os.urandom(300_000)),
        "broken profile.png": saved(photo(), "PNG", icc_profile=b"no profile"),
        "two.mpo.jpg": saved(photo(), "MPO", save_all=True, append_images=[photo(60, 47)]),
        "bytes after the end.jpg": jpeg + b"more" * 1000,
        "palette.png": saved(photo().quantize(30), "PNG"),
        "clear palette.png": saved(photo().quantize(30), "PNG", transparency=3),
        "alpha.png": saved(photo(mode="RGBA"), "PNG"),
        "bits.png": saved(photo(mode="1"), "PNG"),
        "interlaced.png": interlaced_png(),
        "long text.png": png(2, 1, chunk(b"zTXt", b"k\0\0" + zlib.compress(b"a" * 10_000)),
                             chunk(b"IDAT", zlib.compress(b"\0\x10\xf0"))),
        "one.png": saved(photo(1, 1), "PNG"),
        "column.png": saved(photo(1, 10_000), "PNG"),
        "row.jpg": saved(photo(10_000, 1), "JPEG"),
        "moving.gif": saved(photo(), "GIF", save_all=True, append_images=[photo(60, 47)]),
        "moving.png": saved(photo(), "PNG", save_all=True, append_images=[photo(60, 47)]),
        "moving.webp": saved(photo(60, 46), "WEBP", save_all=True,
                             append_images=[photo(60, 46).rotate(180)]),
        "lossless.webp": saved(photo(), "WEBP", lossless=True),
        "pages.tif": saved(photo(), "TIFF", save_all=True, append_images=[photo(60, 47)]),
        "lzw.tiff": saved(photo(), "TIFF", compression="tiff_lzw"),
        "x.bmp": saved(photo(), "BMP"),
        "x.ppm": saved(photo(), "PPM"),
        "a jpeg.png": jpeg,
        " space '\"quotes\n花ü$(x);*.jpg": jpeg,
    }  # fmt: skip


def bad() -> dict[str, bytes]:
    """Return files that are not valid images."""
    jpeg, whole = saved(photo(), "JPEG"), saved(photo(), "PNG")
    bomb = zlib.compress(b"\0" * 200_000_000, 9)
    return {
        "empty.jpg": b"",
        "text.jpg": b"Dear diary",
        "drawing.png": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
        "page.jpg": b"<!DOCTYPE html><html><h1>404 Not Found</h1></html>",
        "zeros.png": b"\0" * 1000,
        "script.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n",
        "only head.jpg": jpeg[:3],
        "no size.jpg": frame(jpeg, height=0, width=0),
        "no width.jpg": frame(jpeg, width=0),
        "twelve bits.jpg": deep_jpeg(),
        "claims twelve bits.jpg": frame(jpeg, precision=12),
        "bomb.png": saved(Image.new("1", (20_000, 20_000)), "PNG"),
        "claims.jpg": frame(jpeg, height=65_000, width=65_000),
        "claims.bmp": struct.pack("<2sIHHI", b"BM", 54, 0, 0, 54)
        + struct.pack("<IiiHHIIiiII", 40, 100_000, 100_000, 1, 24, 0, 0, 0, 0, 0, 0),
        "claims.gif": b"GIF89a" + struct.pack("<HHBBB", 65_535, 65_535, 0, 0, 0) + b";",
        "claims.pgm": b"P5 13000 13000 255\n" + b"\0" * 100,
        "no data.png": png(10, 10),
        "no pixels.png": png(0, 10, chunk(b"IDAT", zlib.compress(b""))),
        "bomb in profile.png": png(2, 1, chunk(b"iCCP", b"k\0\0" + bomb),
                                   chunk(b"IDAT", zlib.compress(b"\0\x10\xf0"))),
        "bomb in text.png": png(2, 1, chunk(b"zTXt", b"k\0\0" + bomb),
                                chunk(b"IDAT", zlib.compress(b"\0\x10\xf0"))),
        "short.png": whole[: len(whole) // 2],
        "short.tif": saved(photo(), "TIFF")[:2000],
        "short.webp": saved(photo(), "WEBP")[:300],
    }  # fmt: skip


def damaged() -> dict[str, bytes]:
    """Return files cut at every tenth byte, and with single bits flipped."""
    made = {}
    formats = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "TIFF": "tif"}
    for format, suffix in formats.items():
        whole = saved(photo(24, 18), format)
        for end in range(1, len(whole), 10):
            made[f"cut-{end}.{suffix}"] = whole[:end]
        rng = np.random.default_rng(len(whole))
        for number in range(100):
            changed = bytearray(whole)
            changed[rng.integers(len(whole))] ^= 1 << int(rng.integers(8))
            made[f"bit-{number}.{suffix}"] = bytes(changed)
    return made


def put(folder: Path, contents: dict[str, bytes]) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    for name, body in contents.items():
        (folder / name).write_bytes(body)
    return [folder / name for name in contents]


def by_pillow(path: Path) -> np.ndarray:
    image = Image.open(path)
    turned = ImageOps.exif_transpose(image).copy()
    image.close()  # a `with` block would leave a file with several frames open
    if not turned.has_transparency_data:
        return np.asarray(turned.convert("RGB"))
    white = Image.new("RGBA", turned.size, "white")
    return np.asarray(Image.alpha_composite(white, turned.convert("RGBA")).convert("RGB"))


def test_unusual_images_have_the_pixels_of_pillow(tmp_path):
    paths = put(tmp_path, good())
    for name, found in decoded(paths).items():
        expected = by_pillow(Path(name))
        whole = [list(expected.shape), hashlib.sha256(expected.tobytes()).hexdigest()]
        assert found["whole"] == whole, name
        for way in ("scaled", "full"):
            assert isinstance(found[way], list), (name, found[way])


def test_images_in_another_encoding_have_the_same_pixels(tmp_path):
    plain = saved(photo().quantize(30), "GIF")
    paths = put(tmp_path, {"a.jpg": ARITHMETIC, "b.jpg": smooth_jpeg(),
                           "a.gif": local_palettes(), "b.gif": plain})  # fmt: skip
    found = decoded(paths)
    for kind in ("jpg", "gif"):
        assert found[str(tmp_path / f"a.{kind}")] == found[str(tmp_path / f"b.{kind}")]


def test_an_unsupported_jpeg_is_called_a_jpeg():
    with pytest.raises(ImageError, match="an unsupported kind of JPEG"):
        decode.decode(deep_jpeg())


@pytest.mark.slow
def test_large_images_take_seven_bytes_per_pixel(tmp_path):
    """Four in Pillow's own copy and three in the result; copies in other modes would not fit."""
    clear = Image.new("RGBA", (10_000, 8_000), (255, 0, 0, 51))
    wide = Image.new("I;16", (10_000, 8_000), 65535)
    paths = put(
        tmp_path,
        {
            f"{i}.png": saved(image, "PNG", compress_level=1)
            for i, image in enumerate([clear, wide])
        },
    )
    for path, color in zip(paths, ([255, 204, 204], [255, 255, 255]), strict=True):
        for way, result in decoded([path])[str(path)].items():
            assert isinstance(result, list), (path.name, way, result)
            expected = np.full(result[0], color, np.uint8).tobytes()
            assert result[1] == hashlib.sha256(expected).hexdigest(), (path.name, way)


def test_files_that_are_not_images_are_named(tmp_path):
    paths = put(tmp_path, bad())
    found = decoded(paths)
    for path in paths:
        for way, result in found[str(path)].items():
            assert isinstance(result, str), f"{path.name} was read, {way}: {result}"
            assert result.startswith(f"{path}: "), result


@pytest.mark.slow
def test_damaged_images_are_read_or_named(tmp_path):
    paths = put(tmp_path, damaged())
    found = decoded(paths)
    assert len(found) == len(paths) > 700
    for name, ways in found.items():
        for result in ways.values():
            assert not isinstance(result, str) or result.startswith(f"{name}: "), result
    for format in ("jpg", "png", "webp"):
        cut = [ways["whole"] for name, ways in found.items() if f"cut-1.{format}" in name]
        assert all(isinstance(result, str) for result in cut)


@pytest.fixture
def strange(tmp_path):
    """Yield a folder of special files with names like those of images, and {name: error}."""
    (tmp_path / "folder.jpg").mkdir()
    os.mkfifo(tmp_path / "pipe.jpg")
    here = os.getcwd()
    os.chdir(tmp_path)  # the path of a socket is limited to 100 bytes
    server = socket.socket(socket.AF_UNIX)
    server.bind("socket.jpg")
    os.chdir(here)
    (tmp_path / "zero.jpg").symlink_to("/dev/zero")
    (tmp_path / "dangling.jpg").symlink_to("nowhere")
    (tmp_path / "circle.jpg").symlink_to("circle.jpg")
    with (tmp_path / "huge.jpg").open("wb") as file:
        file.truncate(files.MAX_BYTES + 1)  # a sparse file
    yield (
        tmp_path,
        {
            "folder.jpg": "Is a directory",
            "pipe.jpg": "it is a named pipe",
            "socket.jpg": "it is a socket",
            "zero.jpg": "it is a device",
            "dangling.jpg": "No such file or directory",
            "circle.jpg": "Too many levels of symbolic links",
            "huge.jpg": "it has 536,870,913 bytes; the limit is 536,870,912",
        },
    )
    server.close()


def test_special_files_are_named_and_never_block(strange):
    where, expected = strange
    found = decoded([where / name for name in expected])
    for name, result in expected.items():
        assert all(str(text).startswith(f"{where / name}: {result}") for text in found[
            str(where / name)].values())  # fmt: skip
        with pytest.raises(ImageError, match=name):
            decode.image_size(where / name)


def test_impossible_file_names():
    for name in ("nul\0.jpg", "x" * 300 + ".jpg", "lone\udce4.jpg"):
        with pytest.raises(ImageError):
            decode.decode(Path(name))


def test_a_file_without_read_permission(tmp_path, monkeypatch):
    (path,) = put(tmp_path, {"secret.jpg": saved(photo(), "JPEG")})
    path.chmod(0)
    if os.access(path, os.R_OK):  # root can read everything

        def refuse(self, *arguments):
            raise PermissionError(13, "Permission denied", str(self))

        monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ImageError, match=r"secret\.jpg: Permission denied"):
        decode.decode(path)


def test_circular_links(tmp_path):
    for name in ("a", "b"):
        put(tmp_path / name, {"1.png": b"x", "2.png": b"x"})
        (tmp_path / name / "up").symlink_to("..")
        (tmp_path / name / "self").symlink_to(".")
    found = folder.read_dataset(tmp_path)
    assert list(found.splits["all"].paths) == ["a/1.png", "a/2.png", "b/1.png", "b/2.png"]
    assert found.left_out["links to a folder that is read anyway"] == 4


def test_valid_images_are_predicted_the_same_beside_bad_files(tmp_path, trained, strange):
    from resnetkit.inference.predictor import Predictor

    where, odd = strange
    fine, wrong = put(tmp_path / "in", good()), put(tmp_path / "in", bad())
    wrong += [where / name for name in odd if name != "folder.jpg"]
    mixed = sorted([*fine, *wrong], key=lambda path: hashlib.sha256(str(path).encode()).digest())
    predictor = Predictor(trained / "model.safetensors", "cpu")
    alone = {answer.source: answer for answer in predictor(fine)}
    for answer in predictor(mixed):
        if answer.source in alone:
            assert answer.class_name == alone[answer.source].class_name
            assert answer.probability == pytest.approx(alone[answer.source].probability, abs=1e-6)
        else:
            assert answer.error.startswith(f"{answer.source}: ")


def test_the_check_names_all_unreadable_files(tmp_path, strange):
    where, odd = strange
    put(where / "a", {**good(), **bad()})
    for name in odd:
        if name != "folder.jpg":
            (where / name).rename(where / "a" / name)
    put(where / "b", {"1.png": saved(photo(30, 30), "PNG")})
    (unreadable,) = [f for f in check_dataset(where).issues if f.kind == "unreadable"]
    named = {group[0].removeprefix("a/") for group in unreadable.groups}
    assert named == {*bad(), *odd} - {"folder.jpg"}


def test_a_scan_names_all_unreadable_files(tmp_path):
    from resnetkit.data.cache import scan
    from resnetkit.data.preprocessing import Preprocessing

    write_digits(tmp_path / "d")
    put(tmp_path / "d/train/0", bad())
    os.mkfifo(tmp_path / "d/train/1/pipe.png")
    split = folder.read_dataset(tmp_path / "d").splits["train"]
    found = scan(split, Preprocessing(32, 32), 2, lambda text: None)
    assert {split.path(i).name for i in found.unreadable} == {*bad(), "pipe.png"}


def mutated(count: int) -> None:
    """Decode ``count`` mutated files with limited memory; run this in a separate process."""
    from hypothesis import HealthCheck, given, settings
    from hypothesis import strategies as st

    small = {name: body for name, body in good().items() if len(body) < 4000}
    small |= {f"small.{f}": saved(photo(9, 8), f) for f in ("JPEG", "PNG", "WEBP", "GIF", "TIFF")}
    bodies = st.sampled_from(sorted(small.values()))
    edits = st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=4)), max_size=6)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, used + ROOM))
    done = 0

    @settings(max_examples=count, deadline=None, database=None, derandomize=True,
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(bodies, edits, st.floats(0, 1), st.booleans(), st.sampled_from([None, 4]))
    def one(body, edits, end, cut, size):
        nonlocal done
        done += 1
        changed = bytearray(body)
        for place, put in edits:
            at = int(place * (len(changed) - 1))
            changed[at : at + len(put)] = put
        contents = bytes(changed[: max(1, int(end * len(changed)))] if cut else changed)
        for function in (decode.decode, decode.decode_full)[: 2 if size else 1]:
            try:
                pixels = function(contents, size)
            except ImageError as error:
                result = str(error)
            else:
                assert (pixels.dtype, pixels.ndim, pixels.shape[2]) == (np.uint8, 3, 3)
                continue
            assert result.startswith("the image: ")

    one()
    print(done)


@pytest.mark.slow
def test_ten_thousand_mutated_files_do_no_harm():
    program = "import runpy, sys; runpy.run_path(sys.argv[1])['mutated'](10_000)"
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", program, __file__],
        capture_output=True,
        text=True,
        timeout=500,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"},
    )
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-6000:]
    assert int(done.stdout) >= 9_000
