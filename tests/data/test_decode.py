from __future__ import annotations

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch.nn import functional as F
from torchvision.transforms import v2

from resnetkit.data import decode, resize
from resnetkit.data.gray import dataset_range
from resnetkit.errors import ImageError
from resnetkit.models.weights.preset import ImageClassification


def smooth(width, height, mode="RGB"):
    """Return an image without sharp edges, so that different filters agree closely."""
    y, x = np.mgrid[0:height, 0:width] / max(width, height)
    rgb = np.stack([255 * x, 255 * y, 127 + 120 * np.sin(4 * x + 3 * y)], -1)
    return Image.fromarray(rgb.clip(0, 255).astype(np.uint8)).convert(mode)


def save(image, tmp_path, name, **options):
    image.save(tmp_path / name, **options)
    return tmp_path / name


@pytest.mark.parametrize("name", ["x.png", "x.bmp", "x.tiff", "x.ppm", "x.webp", "x.gif"])
def test_formats(tmp_path, name):
    options = {"lossless": True} if name == "x.webp" else {}
    path = save(smooth(30, 20), tmp_path, name, **options)
    with Image.open(path) as image:
        assert np.array_equal(decode.decode(path), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("mode", ["L", "P", "1", "LA", "RGBA", "CMYK", "YCbCr"])
def test_modes_become_rgb(tmp_path, mode):
    image = smooth(24, 16, mode if mode != "LA" else "L").convert(mode)
    name = "x.jpg" if mode in ("CMYK", "YCbCr") else "x.png"
    pixels = decode.decode(save(image, tmp_path, name))
    assert pixels.shape == (16, 24, 3)
    expected = np.asarray(image.convert("RGB")).astype(int)
    assert np.abs(pixels.astype(int) - expected).mean() < (6 if name == "x.jpg" else 0.5)


def test_transparency_is_composited_over_white(tmp_path):
    image = Image.new("RGBA", (4, 2), (200, 0, 0, 255))
    image.putpixel((0, 0), (0, 0, 0, 0))
    image.putpixel((1, 0), (0, 0, 0, 51))  # black, 20% opaque
    pixels = decode.decode(save(image, tmp_path, "x.png"))
    assert pixels[0, 0].tolist() == [255, 255, 255]
    assert pixels[0, 1].tolist() == [204, 204, 204]
    assert pixels[0, 2].tolist() == [200, 0, 0]
    palette = Image.new("P", (2, 1), 0)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    palette.putpixel((1, 0), 1)
    pixels = decode.decode(save(palette, tmp_path, "p.png", transparency=0))
    assert pixels[0].tolist() == [[255, 255, 255], [10, 20, 30]]


def test_sixteen_bits(tmp_path):
    gray = np.array([[0, 32768, 65535]], dtype=np.uint16)
    pixels = decode.decode(save(Image.fromarray(gray), tmp_path, "x.png"))
    assert pixels[0, :, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(smooth(30, 20), tmp_path, "x.png", exif=exif)
    with Image.open(path) as image:
        upright = ImageOps.exif_transpose(image)
    assert np.array_equal(decode.decode(path), np.asarray(upright))
    assert decode.image_size(path) == upright.size


@pytest.mark.parametrize("name", ["x.png", "x.jpg", "x.webp"])
@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0no TIFF at all",
        b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x02\0\0\0X\0\0\0\0\0\0\0",  # the tag is "X"
        b"Exif\0\0II*\0",
    ],
    ids=["damaged", "text", "short"],
)
def test_an_orientation_that_cannot_be_read_is_ignored(tmp_path, name, exif):
    path = save(smooth(30, 20), tmp_path, name, exif=exif)
    assert decode.decode(path).shape == (20, 30, 3)
    assert decode.image_size(path) == (30, 20)


def test_first_frame_of_an_animation(tmp_path):
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    path = save(frames[0], tmp_path, "x.gif", save_all=True, append_images=frames[1:])
    assert decode.decode(path)[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("name", ["x.jpg", "x.png"])
@pytest.mark.parametrize("size", [(640, 480), (300, 700), (64, 90)])
def test_working_size_agrees_with_pillow(tmp_path, name, size):
    """Almost the same as Pillow's own full decode and resize."""
    path = save(smooth(*size), tmp_path, name)
    pixels = decode.decode(path, 64)
    with Image.open(path) as image:
        expected = image.convert("RGB").resize((pixels.shape[1], pixels.shape[0]), Image.BILINEAR)
    assert min(pixels.shape[:2]) == 64
    assert np.abs(pixels.astype(int) - np.asarray(expected).astype(int)).mean() < 1.0


def by_pillow(contents, working_size, monkeypatch):
    def refused(_):
        raise ValueError("left to another decoder")

    with monkeypatch.context() as patch:
        patch.setattr(decode.simplejpeg, "decode_jpeg_header", refused)
        return decode.decode(contents, working_size)


@pytest.fixture
def opened(monkeypatch):
    """A list that grows by one whenever Pillow opens a JPEG."""
    Image.init()
    (real, accept), calls = Image.OPEN["JPEG"], []
    counting = lambda *given: calls.append(given) or real(*given)  # noqa: E731
    monkeypatch.setitem(Image.OPEN, "JPEG", (counting, accept))
    return calls


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("size", [(3, 5), (7, 7), (50, 37), (331, 250), (641, 479), (90, 1000)])
def test_jpegs_have_the_same_bits_as_from_pillow(monkeypatch, opened, size, subsampling, mode):
    """This holds at every scale of the decoder, so it does not matter which one reads a file."""
    noise = np.random.default_rng(1).integers(0, 40, (size[1], size[0], 3))
    image = Image.fromarray((np.asarray(smooth(*size)) // 2 + noise).astype(np.uint8)).convert(mode)
    for progressive in (False, True):
        buffer = io.BytesIO()
        options = {} if mode == "L" else {"subsampling": subsampling}
        image.save(buffer, "JPEG", quality=87, progressive=progressive, **options)
        for working_size in (None, 4, 31, 64, 240):
            pixels = decode.decode(buffer.getvalue(), working_size)
            assert not opened
            assert np.array_equal(pixels, by_pillow(buffer.getvalue(), working_size, monkeypatch))
            assert opened.pop()


def test_odd_jpegs_are_left_to_pillow(tmp_path, opened):
    cmyk = save(smooth(24, 16, "CMYK"), tmp_path, "x.jpg").read_bytes()
    opened.clear()
    decode.decode(cmyk)
    assert opened.pop()
    plain = contents(tmp_path)
    for damaged in (plain[:500], plain[:-200], b"\xff\xd8\xff"):
        opened.clear()
        with pytest.raises(ImageError):
            decode.decode(damaged)
        assert opened


WAYS_OF_DAMAGE = {
    "cut and closed": lambda jpeg, at: jpeg[:at] + b"\xff\xd9",
    "zeros": lambda jpeg, at: jpeg[:at] + bytes(900) + jpeg[at + 900 :],
    "random bytes": lambda jpeg, at: jpeg[:at] + noise_bytes(900) + jpeg[at + 900 :],
    "missing bytes": lambda jpeg, at: jpeg[:at] + jpeg[at + 900 :],
}


def noise_bytes(count):
    return np.random.default_rng(3).integers(0, 255, count, np.uint8).tobytes()  # never 0xff


def noisy_jpeg(mode="RGB", **options):
    noise = np.random.default_rng(1).integers(0, 60, (150, 200, 3))
    image = Image.fromarray((np.asarray(smooth(200, 150)) // 2 + noise).astype(np.uint8))
    buffer = io.BytesIO()
    image.convert(mode).save(buffer, "JPEG", quality=85, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("damage", WAYS_OF_DAMAGE)
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(
    "options",
    [{}, {"progressive": True}, {"restart_marker_blocks": 9}, {"mode": "L"}, {"mode": "CMYK"}],
)
def test_a_jpeg_with_damaged_pixels_is_named(tmp_path, damage, turned, options):
    """Pillow reads all of these without an error, with large parts gray or shifted."""
    exif = Image.Exif()
    if turned:
        exif[0x0112] = 6
    jpeg = noisy_jpeg(exif=exif, **options)
    assert decode.decode(jpeg).shape[2] == 3
    contents = WAYS_OF_DAMAGE[damage](jpeg, len(jpeg) // 2)
    with Image.open(io.BytesIO(contents)) as image:
        image.load()
    path = tmp_path / "x.jpg"
    path.write_bytes(contents)
    for read in (
        decode.decode,
        lambda p: decode.decode(p, 32),
        lambda p: decode.decode_full(p, 32),
    ):
        with pytest.raises(ImageError, match=r"x\.jpg: a damaged JPEG \(.*\)"):
            read(path)


def test_harmless_warnings_about_a_jpeg_change_nothing():
    jpeg = noisy_jpeg()
    at = jpeg.index(b"JFIF") + 5
    odd = {
        "zeros before the end marker": jpeg[:-2] + bytes(7) + jpeg[-2:],
        "bytes after the end": jpeg + noise_bytes(500),
        "another revision of JFIF": jpeg[:at] + b"\x03\x07" + jpeg[at + 2 :],
    }
    expected = np.asarray(Image.open(io.BytesIO(jpeg)))
    for name, contents in odd.items():
        assert np.array_equal(decode.decode(contents), expected), name
        assert np.array_equal(decode.decode(contents, 40), decode.decode(jpeg, 40)), name
    hidden = WAYS_OF_DAMAGE["random bytes"](odd["another revision of JFIF"], len(jpeg) // 2)
    with pytest.raises(ImageError, match="a damaged JPEG"):
        decode.decode(hidden)


@pytest.mark.parametrize("name", ["x.png", "x.gif", "x.webp", "x.tiff", "x.bmp", "x.ppm", "x.avif"])
def test_other_formats_that_end_early_are_named(tmp_path, name):
    whole = save(Image.open(io.BytesIO(noisy_jpeg())), tmp_path, name).read_bytes()
    assert decode.decode(whole).shape == (150, 200, 3)
    ends = {"x.png": whole[-12:], "x.gif": b"\0;"}
    for cut in (whole[: len(whole) // 2], whole[: len(whole) // 2] + ends.get(name, b"")):
        for read in (decode.decode, lambda c: decode.decode_full(c, 32)):
            with pytest.raises(ImageError, match=r"cannot be decoded|not an image"):
                read(cut)


def test_a_png_that_fails_its_own_checksum_is_named(tmp_path):
    whole = save(Image.open(io.BytesIO(noisy_jpeg())), tmp_path, "x.png").read_bytes()
    for at in (20, len(whole) // 2):  # in the header, which has a CRC; in the pixels
        changed = whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]
        with pytest.raises(ImageError):
            decode.decode(changed)


TURNED = [
    ("png", {}),
    ("webp", {"lossless": True}),
    ("avif", {"quality": 100, "subsampling": "4:4:4"}),
    ("jpeg", {"quality": 95}),
    ("mpo", {"quality": 95}),
    ("tiff", {}),
    ("tiff", {"compression": "tiff_lzw"}),
    ("tiff", {"compression": "tiff_adobe_deflate"}),
    ("tiff", {"compression": "packbits"}),
    ("tiff", {"compression": "jpeg", "quality": 95}),
]


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize(("kind", "options"), TURNED)
def test_every_format_is_turned_exactly_once(tmp_path, kind, options, mode):
    """Rotate like `ImageOps.exif_transpose`; Pillow itself rotates a TIFF while loading it."""
    stored = smooth(90, 60, mode)
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        path = save(stored, tmp_path, f"{orientation}.{kind}", exif=exif, **options)
        tag = Image.Exif()
        tag[0x0112] = orientation
        plain = stored.copy()
        plain.info["exif"] = tag.tobytes()
        upright = np.asarray(ImageOps.exif_transpose(plain).convert("RGB")).astype(int)

        def check(pixels, upright=upright):
            assert pixels.shape == upright.shape
            assert np.abs(pixels.astype(int) - upright).mean() < 6  # over 20 if rotated wrongly

        check(decode.decode(path))
        check(decode.decode_full(path, 60))
        assert decode.image_size(path) == (upright.shape[1], upright.shape[0])
        for loaded in (False, True):
            for full in (False, True):
                # Given a path, Pillow may memory-map the file.
                opened = io.BytesIO(path.read_bytes()) if loaded else path
                with Image.open(opened) as image:
                    if loaded:
                        image.load()
                    check(decode.pixels_from_memory(image, 60, full=full))
        with path.open("rb") as file, Image.open(file) as image:
            check(decode.pixels_from_memory(image.convert("RGB")))
        with path.open("rb") as file, Image.open(file) as image:
            check(decode.pixels_from_memory(ImageOps.exif_transpose(image)))
        with path.open("rb") as file, Image.open(file) as image:
            ImageOps.exif_transpose(image, in_place=True)
            check(decode.pixels_from_memory(image))


def test_heic_is_turned_exactly_once(tmp_path):
    heif = pytest.importorskip("pillow_heif")
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        options = {"exif": exif.tobytes(), "quality": 100, "chroma": 444}
        path = tmp_path / f"{orientation}.heic"
        heif.from_pillow(smooth(90, 60)).save(path, **options)
        plain = smooth(90, 60)
        plain.info["exif"] = exif.tobytes()
        upright = np.asarray(ImageOps.exif_transpose(plain))
        pixels = decode.decode(path)
        assert pixels.shape == upright.shape
        assert np.abs(pixels.astype(int) - upright).mean() < 6
        assert decode.image_size(path) == (upright.shape[1], upright.shape[0])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_jpegs_are_turned_by_their_exif(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(smooth(200, 120), tmp_path, "x.jpg", exif=exif, quality=95)
    with Image.open(path) as image:
        upright = np.asarray(ImageOps.exif_transpose(image))
    assert np.array_equal(decode.decode(path), upright)
    start, rest = path.read_bytes()[:2], path.read_bytes()[2:]
    filled = start + b"\xff\xff\xff\xfe\xff\xff" + b"a" * 65533 + rest  # fill bytes, a comment
    assert np.array_equal(decode.decode(filled), upright)
    assert decode.decode(path, 40).shape[:2] == ((40, 66) if orientation < 5 else (66, 40))


def test_resize_keeps_channels_last():
    pixels = np.asarray(smooth(60, 40))[5:35, 7:50]
    small = resize.resize_tensor(pixels, (20, 16))
    assert small.is_contiguous(memory_format=torch.channels_last)
    channels_first = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].contiguous()
    plain = F.interpolate(channels_first, (16, 20), mode="bilinear", antialias=True)
    assert torch.equal(small, plain)


def test_decoding_a_file_its_bytes_or_twice_gives_the_same_bits(tmp_path):
    path = save(smooth(200, 150), tmp_path, "x.jpg")
    first = decode.decode(path, 48)
    assert np.array_equal(first, decode.decode(path.read_bytes(), 48))
    assert np.array_equal(first, decode.decode(path, 48))


def test_pixels_from_memory(tmp_path):
    image = smooth(50, 40)
    assert np.array_equal(decode.pixels_from_memory(image), np.asarray(image))
    assert np.array_equal(decode.pixels_from_memory(np.asarray(image)), np.asarray(image))
    assert decode.pixels_from_memory(np.asarray(image.convert("L"))).shape == (40, 50, 3)
    png = decode.decode(save(image, tmp_path, "x.png"), 32)
    assert np.array_equal(decode.pixels_from_memory(image, 32), png)
    with pytest.raises(ImageError, match=r"uint8; got \(40, 50, 3\) float64"):
        decode.pixels_from_memory(np.zeros((40, 50, 3)))


def contents(tmp_path, name="x.jpg"):
    return save(smooth(64, 64), tmp_path, name).read_bytes()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: b"", "the file is empty"),
        (lambda folder: b"Dear diary", "holds text, not an image .it begins with 'Dear diary'"),
        (lambda folder: b"\x93\xff\xfe" * 40, "not an image in a known format"),
        (lambda folder: contents(folder)[:900], "cannot be decoded"),
        (lambda folder: contents(folder, "x.png")[:200], "cannot be decoded"),
    ],
)
def test_broken_files_are_named(tmp_path, make, message):
    path = tmp_path / "broken.jpg"
    path.write_bytes(make(tmp_path))
    with pytest.raises(ImageError, match=rf"broken\.jpg: .*{message}"):
        decode.decode(path, 32)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(ImageError, match=r"gone\.png: No such file"):
        decode.decode(tmp_path / "gone.png")
    with pytest.raises(ImageError, match="Is a directory"):
        decode.decode(tmp_path)


@pytest.mark.parametrize(
    ("there", "asked"), [("a.JPG", "a.jpg"), ("a.jpg", "a.jpeg"), ("a.png", "a.jpg")]
)
def test_a_missing_file_that_differs_in_its_suffix_is_named(tmp_path, there, asked):
    save(smooth(20, 10), tmp_path, there)
    with pytest.raises(ImageError, match=rf"{asked}: No such file.*\(but {there} exists\)"):
        decode.decode(tmp_path / asked)


def test_too_many_pixels_are_refused_undecoded(tmp_path):
    bomb = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(bomb, "PNG")
    with pytest.raises(ImageError, match="at most 178,000,000 pixels are decoded"):
        decode.decode(bomb.getvalue())


def test_the_size_of_a_tiff_that_only_xmp_rotates(tmp_path):
    """Pillow rotates it after loading, not while loading, as it does for the TIFF tag."""
    turn = b'<rdf:Description tiff:Orientation="6" xmlns:tiff="http://ns.adobe.com/tiff/1.0/"/>'
    smooth(60, 40, "RGB").save(tmp_path / "x.tif", tiffinfo={700: turn})
    assert decode.decode(tmp_path / "x.tif").shape == (60, 40, 3)
    assert decode.image_size(tmp_path / "x.tif") == (40, 60)


@pytest.mark.parametrize("name", ["x.png", "x.jpg", "x.bmp", "x.ppm", "x.gif", "x.avif"])
def test_the_limit_of_the_calling_program_is_neither_used_nor_changed(tmp_path, monkeypatch, name):
    image = smooth(60, 40, "CMYK" if name == "x.jpg" else "RGB")
    path = save(image, tmp_path, name)
    expected = decode.decode(path)
    expected_full = decode.decode_full(path, 32)
    for limit in (2000, 1000):  # the image has 2400 pixels: Pillow warns, which is an error in
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)  # these tests, or refuses it
        assert np.array_equal(decode.decode(path), expected)
        assert np.array_equal(decode.decode_full(path, 32), expected_full)
        assert decode.image_size(path) == (60, 40)
        with pytest.raises((Image.DecompressionBombWarning, Image.DecompressionBombError)):
            Image.open(path)


def test_where_pillow_enforces_its_limit_the_error_is_ours(tmp_path, monkeypatch):
    path = save(smooth(60, 40), tmp_path, "x.tiff")  # one strip, whose size Pillow checks itself
    for limit in (2000, 1000):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(ImageError, match=rf"x\.tiff: .*exceeds limit of {2000}"):
            decode.decode(path)


def test_a_very_long_image_is_cut_without_the_limit_of_the_calling_program(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    pixels = np.zeros((10, 1000, 3), np.uint8)
    pixels[:, 400:600] = 255  # the middle, 20 times as long as high
    assert (decode.pixels_from_memory(pixels, 5, full=True) == 255).all()


def test_warnings_about_metadata_are_our_errors_or_ignored(tmp_path):
    image = smooth(30, 20)
    exif = image.getexif()
    exif[0x0112] = 1
    path = save(image, tmp_path, "x.jpg", exif=exif.tobytes()[:-6])  # cut short
    with pytest.raises(UserWarning), Image.open(path) as opened:  # warnings are errors here
        opened.getexif()
    with pytest.raises(ImageError, match=r"x\.jpg: cannot be decoded"):
        decode.decode(path)
    with warnings.catch_warnings(action="ignore"):
        assert decode.decode(path).shape == (20, 30, 3)


def test_heic_is_read_without_registering_it_with_pillow():
    pillow_heif = pytest.importorskip("pillow_heif")
    packed = io.BytesIO()
    pillow_heif.from_pillow(Image.new("RGB", (64, 48), (200, 30, 10))).save(packed)
    known = set(Image.OPEN)
    pixels = decode.decode(packed.getvalue())
    assert pixels.shape == (48, 64, 3)
    assert np.abs(pixels.astype(int) - (200, 30, 10)).max() < 8
    assert set(Image.OPEN) == known
    assert decode.read_traits(packed.getvalue()).format == "HEIF"


def test_heic_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pillow_heif", None)
    path = tmp_path / "x.heic"
    path.write_bytes(b"\0\0\0\x18ftypheic" + b"\0" * 100)
    with pytest.raises(ImageError, match=r'pip install "resnetkit\[heif\]"'):
        decode.decode(path)


@pytest.mark.parametrize("mode", ["I", "F"])
def test_wide_gray_is_as_bright_as_its_numbers_say(tmp_path, mode):
    shades = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
    expected = decode.pixels_from_memory(shades)
    for scale in (1, 257):
        image = Image.fromarray(shades.astype(np.int32) * scale).convert(mode)
        image.save(tmp_path / "x.tif")
        for span in ((0, 255 * scale), "image"):  # what older model files guess
            assert (decode.pixels_from_memory(image, value_range=span) == expected).all()
            assert (decode.decode(tmp_path / "x.tif", value_range=span) == expected).all()


def test_dark_images_of_sixteen_bits_stay_dark(tmp_path):
    dark = np.full((8, 8), 200, np.uint16)
    Image.fromarray(dark).save(tmp_path / "x.png")
    head = b"P5 8 8 65535\n"
    (tmp_path / "x.pgm").write_bytes(head + dark.astype(">u2").tobytes())
    for name in ("x.png", "x.pgm"):
        assert decode.decode(tmp_path / name).max() == 0


def color_png(values):
    """Return a 16-bit RGB PNG with the same ``(H, W)`` uint16 values in every channel."""
    height, width = values.shape
    rows = b"".join(b"\0" + row.repeat(3).astype(">u2").tobytes() for row in values)

    def chunk(kind, body):
        checksum = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + checksum

    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def test_every_sixteen_bit_value_keeps_its_upper_eight_bits_however_it_is_read(tmp_path):
    values = np.arange(2**16, dtype=np.uint16).reshape(256, 256)
    with Image.open(io.BytesIO(color_png(values))) as by_pillow:
        expected = np.array(by_pillow)
    by_torchvision = v2.functional.to_dtype(torch.from_numpy(values), torch.uint8, scale=True)
    assert np.array_equal(expected[..., 0], by_torchvision.numpy())

    gray = Image.fromarray(values)
    images = {mode: Image.fromarray(values.astype(np.int32)).convert(mode) for mode in ("I", "F")}
    images["I;16"] = gray
    for name in ("x.png", "x.tif", "x.pgm"):
        gray.save(tmp_path / name)
        pixels = decode.decode(tmp_path / name)
        assert np.array_equal(pixels, expected), name
        assert np.array_equal(decode.decode_full(tmp_path / name, 256), expected), name
        images[name] = Image.open(tmp_path / name)
    assert np.array_equal(decode.decode(color_png(values)), expected)
    plain = {"mean": [0.0] * 3, "std": [1.0] * 3}
    preset = ImageClassification(crop_size=256, resize_size=256, **plain)
    for name, image in images.items():
        guessed = decode.pixels_from_memory(
            image, value_range="image"
        )  # I and F have no default range
        assert np.array_equal(guessed, expected), name
        if name != "F":  # which the preset refuses
            pixels = (preset(image) * 255).round().permute(1, 2, 0).numpy()
            assert np.array_equal(pixels, expected), name


RANGES = [
    (np.uint16, (0, 4095)),
    (np.uint16, (0, 1023)),
    (np.uint16, (100, 50_000)),
    (np.int32, (-1024, 3071)),
    (np.int32, (0, 2**24 - 1)),
    (np.float32, (0, 1)),
    (np.float32, (-1, 1)),
    (np.float32, (0, 1020)),
]


@pytest.mark.parametrize(("kind", "span"), RANGES)
def test_a_range_becomes_black_to_white_and_never_wraps_around(tmp_path, kind, span):
    """Compared with the formula in float64; numbers outside are clipped."""
    low, high = span
    room = 0.3 * (high - low)
    values = np.linspace(low - room, high + room, 64 * 48).reshape(48, 64)
    if kind == np.uint16:
        values = values.clip(0, 65535)
    values = values.astype(kind)
    share = (values.astype(np.float64) - low) / (high - low)
    expected = np.rint(255 * share.clip(0, 1)).astype(int)
    image = Image.fromarray(values)
    image.save(tmp_path / "x.tif")
    for channels in (1, 3, 4):
        form = {"channels": channels, "value_range": span}
        for pixels in (
            decode.decode(tmp_path / "x.tif", **form),
            decode.pixels_from_memory(image, **form),
            decode.decode_full(tmp_path / "x.tif", 48, **form),
        ):
            assert pixels.shape == (48, 64, channels)
            colors = pixels[..., : min(channels, 3)].astype(int)
            assert np.abs(colors - expected[..., None]).max() <= 1  # ties may round either way
            assert channels < 4 or (pixels[..., 3] == 255).all()
    assert decode.read_depth(tmp_path / "x.tif").high == pytest.approx(values.max())
    assert decode.read_depth(tmp_path / "x.tif").low == pytest.approx(values.min())


def test_32_bits_without_a_range_are_refused(tmp_path):
    for kind in (np.int32, np.float32):
        image = Image.fromarray(np.array([[0, 1, 300]], kind))
        image.save(tmp_path / "x.tif")
        message = r"32-bit gray, from 0 to 300, and nothing says .*--set value_range="
        with pytest.raises(ImageError, match=rf"x\.tif: .*{message}"):
            decode.decode(tmp_path / "x.tif")
        with pytest.raises(ImageError, match=message):
            decode.pixels_from_memory(image)


def test_a_range_does_not_change_eight_bits_or_pgm(tmp_path):
    gray = save(smooth(20, 10, "L"), tmp_path, "x.png")
    expected = np.asarray(smooth(20, 10, "L"))
    assert (decode.decode(gray, value_range=(0, 4095))[..., 0] == expected).all()
    twelve = np.array([[0, 2048, 4095]], ">u2")
    (tmp_path / "x.pgm").write_bytes(b"P5 3 1 4095\n" + twelve.tobytes())
    for span in (None, (0, 4095)):
        assert decode.decode(tmp_path / "x.pgm", value_range=span)[0, :, 0].tolist() == [
            0,
            128,
            255,
        ]
    for path in (gray, tmp_path / "x.pgm", save(smooth(20, 10), tmp_path, "x.jpg")):
        assert decode.read_depth(path) is None
    assert decode.read_depth(save(smooth(20, 10), tmp_path, "8bit.tif")) is None


MODES = ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("channels", [1, 4])
def test_gray_and_transparency_as_pillow_converts(tmp_path, mode, channels):
    if mode == "I;16":
        image = Image.fromarray(np.asarray(smooth(60, 40, "L")).astype(np.uint16) * 257)
        plain = smooth(60, 40, "L")
    else:
        image = plain = smooth(60, 40, "RGBA" if mode in ("LA", "RGBA") else "RGB").convert(mode)
    if mode in ("LA", "RGBA"):
        image.putalpha(smooth(60, 40).getchannel(1))
    name = "x.jpg" if mode in ("CMYK", "YCbCr") else "x.png"
    path = save(image, tmp_path, name)
    with Image.open(path) as opened:
        seen = plain if mode == "I;16" else opened.convert("RGBA")
    if channels == 4:
        expected = np.asarray(seen.convert("RGBA"))
    else:
        over = Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen.convert("RGBA"))
        expected = np.asarray(over.convert("RGB").convert("L"))[..., None]
    pixels = decode.decode(path, channels=channels)
    assert (pixels == expected).all()
    assert (decode.decode_full(path, 40, channels=channels) == expected).all()


@pytest.mark.parametrize("channels", [1, 4])
def test_gray_and_transparency_resized_as_torchvision_does(tmp_path, channels):
    from torchvision.transforms.v2 import functional as F

    image = smooth(200, 150, "RGBA")
    image.putalpha(smooth(200, 150).getchannel(0))
    path = save(image if channels == 4 else image.convert("RGB"), tmp_path, "x.png")
    with Image.open(path) as opened:
        theirs = opened.convert("L" if channels == 1 else "RGBA")
    expected = np.asarray(F.resize(theirs, [64])).reshape(64, 85, channels)
    assert (decode.decode_full(path, 64, channels=channels) == expected).all()
    pixels = decode.decode(path, 64, channels=channels)
    tensor = F.resize(F.pil_to_tensor(theirs), [64], antialias=True).permute(1, 2, 0).numpy()
    assert np.abs(pixels.astype(int) - tensor).max() <= 1


@pytest.mark.parametrize("orientation", [3, 6])
@pytest.mark.parametrize("kind", ["jpeg", "png", "tiff"])
def test_gray_is_turned_too(tmp_path, kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(smooth(90, 60), tmp_path, f"x.{kind}", exif=exif)
    rgb = Image.fromarray(decode.decode(path))
    assert (decode.decode(path, channels=1)[..., 0] == np.asarray(rgb.convert("L"))).all()


def tiff(values: np.ndarray, photometric: int) -> bytes:
    """Return an uncompressed gray TIFF."""
    data, (height, width) = values.astype(values.dtype.newbyteorder("<")).tobytes(), values.shape
    bits, kind = values.dtype.itemsize * 8, {"u": 1, "f": 3}[values.dtype.kind]
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1}
    tags |= {278: height, 279: len(data), 339: kind}
    fields = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    start = struct.pack("<2sHI", b"II", 42, 8 + len(data))
    return start + data + struct.pack("<H", len(tags)) + fields + bytes(4)


@pytest.mark.parametrize("kind", ["u1", "u2", "f4"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_tiffs_whose_0_is_white(kind, channels):
    most = {"u1": 255, "u2": 65535, "f4": 1.0}[kind]
    values = (np.linspace(0, 1, 48).reshape(6, 8) * most).astype(kind)
    span = (0.0, 1.0) if kind == "f4" else None
    usual, turned = (
        decode.decode(tiff(values, photometric), channels=channels, value_range=span)
        for photometric in (1, 0)
    )
    assert (usual[0, 0, 0], usual[-1, -1, 0]) == (0, 255)
    colors = min(channels, 3)
    assert np.abs(turned[..., :colors] - (255.0 - usual[..., :colors])).max() <= 1
    if kind == "u2":
        half = decode.decode(tiff(values // 16, 0), channels=channels, value_range=(0, 4095))
        assert (half[0, 0, 0], half[-1, -1, 0]) == (255, 0)


def deep_tiff(values, order, compression, planar):
    """Return a TIFF of (H, W, 3 or 4) uint16 values in one strip per plane."""
    height, width, colors = values.shape
    stored = values.astype(f"{order}u2")
    parts = [stored[..., i].tobytes() for i in range(colors)] if planar else [stored.tobytes()]
    if compression == 8:
        parts = [zlib.compress(part) for part in parts]
    tags = {256: [width], 257: [height], 258: [16] * colors, 259: [compression], 262: [2]}
    tags |= {273: [0] * len(parts), 277: [colors], 278: [height], 279: [len(p) for p in parts]}
    tags |= {284: [2 if planar else 1], **({338: [2]} if colors == 4 else {})}
    start = 8 + 2 + 12 * len(tags) + 4
    extra = b""
    after = start + sum(4 * len(v) for v in tags.values() if len(v) > 1)
    tags[273] = [after + sum(map(len, parts[:i])) for i in range(len(parts))]
    fields = b""
    for tag, numbers in sorted(tags.items()):
        packed = struct.pack(f"{order}{len(numbers)}I", *numbers)
        where = packed if len(numbers) == 1 else struct.pack(f"{order}I", start + len(extra))
        extra += packed if len(numbers) > 1 else b""
        fields += struct.pack(f"{order}HHI", tag, 4, len(numbers)) + where
    head = struct.pack(f"{order}2sHIH", b"II" if order == "<" else b"MM", 42, 8, len(tags))
    return head + fields + bytes(4) + extra + b"".join(parts)


def narrowed(values, most):
    """Return (H, W, C) uint16 as 8 bits by the documented rule, over white if transparent."""
    wide = values.astype(np.float64)
    colors = (wide[..., :3].clip(0, most) * 255 / most).round()
    if values.shape[2] < 4:
        return colors
    alpha = (values[..., 3:] >> 8) / 255
    return colors * alpha + 255 * (1 - alpha)


@pytest.mark.parametrize("most", [1023, 4095, 16383])
@pytest.mark.parametrize(
    "kind", ["RGB", "RGBA", "LA", "tiff<", "tiff>", "packed", "planes", "RGBA tiff"]
)
def test_16_bit_colors_follow_the_value_range(most, kind, deep_png):
    rng = np.random.default_rng(most)
    values = rng.integers(0, most + 1, (40, 53, 4)).astype(np.uint16)
    values[..., 3] = rng.integers(0, 65536, (40, 53))
    order = ">" if ">" in kind else "<"
    if kind == "LA":
        file = deep_png(values[..., [0, 3]])
        values[..., 1:3] = values[..., :1]
    elif kind in ("RGB", "RGBA"):
        values = values[..., : len(kind)]
        file = deep_png(values)
    else:
        values = values if kind == "RGBA tiff" else values[..., :3]
        file = deep_tiff(values, order, 8 if kind == "packed" else 1, kind == "planes")
    depth = decode.read_depth(file)
    assert (depth.kind, dataset_range([depth])) == ("16-bit", (0, most))
    seen = decode.decode(file, value_range=(0.0, float(most)))
    assert np.abs(seen - narrowed(values, most)).max() <= (1 if values.shape[2] == 4 else 0)
    for unknown in (None, "image", (0.0, 65535.0)):  # keeps the upper 8 bits
        dark = decode.decode(file, value_range=unknown)
        assert np.abs(dark - narrowed(values >> 8 << 8, 65280)).max() < 2
        assert np.array_equal(dark, decode.decode(file))


@pytest.mark.parametrize("kind", ["tiff", "planes"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_the_full_16_bits_of_a_color_tiff(kind, order):
    values = np.random.default_rng(2).integers(0, 65536, (40, 53, 3)).astype(np.uint16)
    file = deep_tiff(values, order, 1, kind == "planes")
    assert np.array_equal(decode.decode(file), values >> 8)
    assert dataset_range([decode.read_depth(file)]) is None


def test_planes_whose_lower_bits_cannot_be_read_are_refused():
    values = np.random.default_rng(2).integers(0, 4096, (40, 53, 3)).astype(np.uint16)
    file = deep_tiff(values, "<", 8, True)
    with pytest.raises(
        ImageError, match=r"Only the upper 8 bits of each value can be read.*interleaved"
    ):
        decode.decode(file, value_range=(0.0, 4095.0))
    assert np.array_equal(decode.decode(file), values >> 8)


def test_pixels_of_tiffs_that_pillow_cannot_read_are_named():
    values = np.arange(48, dtype=np.uint8).reshape(6, 8)
    signed = tiff(values, 1).replace(
        struct.pack("<HHII", 339, 4, 1, 1), struct.pack("<HHII", 339, 4, 1, 2)
    )
    with pytest.raises(ImageError, match="signed 8-bit values"):
        decode.decode(signed)
    with pytest.raises(ImageError, match="such as 64-bit floats; save it with 8 or 16 bits"):
        decode.decode(tiff(values / 48, 1))
