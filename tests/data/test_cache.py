from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
import time
import types

import numpy as np
import pytest
import torch

from resnetkit.data import cache, dataset, decode, disk_cache, files, folder, pixels
from resnetkit.data.loader import Loader
from resnetkit.data.preprocessing import Preprocessing
from resnetkit.data.transforms import Augmentation
from resnetkit.errors import DataError, ImageError

PRESET = Preprocessing(32, 32)


@pytest.fixture
def home(tmp_path, monkeypatch):
    """The folder of a test's disk cache."""
    monkeypatch.setenv("RESNETKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "pixels"


@pytest.fixture
def split(flat_folder):
    return folder.read_dataset(flat_folder).splits["all"]


@pytest.fixture
def little_memory(monkeypatch):
    monkeypatch.setattr(cache, "available_memory", lambda: 1000)


@pytest.fixture
def decoded(monkeypatch):
    """The list of decoded images."""
    calls = []

    def counting(source, working_size=None, **form):
        calls.append(source)
        return decode.decode(source, working_size, **form)

    monkeypatch.setattr("resnetkit.data.preprocessing.decode", counting)
    return calls


def scan(split, preset=PRESET, workers=2, advance=lambda text: None):
    return cache.scan(split, preset, workers, advance)


def only_file(found, home):
    """Return the only file in the cache; check that all images equal a fresh decode."""
    for index in range(len(found.images)):
        expected = PRESET.pixels(found.images.split.path(index))
        assert np.array_equal(found.images[index], expected)
        assert not found.images[index].flags.writeable
    (file,) = home.glob("*.pixels")
    assert not list(home.glob("*.partial"))
    return file


def test_scan_finds_unreadable_images_and_duplicates(split, home, monkeypatch):
    split.path(3).write_bytes(b"\xff\xd8broken")
    split.path(5).write_bytes(split.path(4).read_bytes())
    split.path(7).unlink()
    for memory in (10**9, 1000, 1000):  # in memory, to disk, from disk
        monkeypatch.setattr(cache, "available_memory", lambda memory=memory: memory)
        ticks = []
        found = scan(split, advance=ticks.append)
        assert list(found.unreadable) == [3, 7]
        assert found.unreadable[3].startswith(f"{split.path(3)}: ")
        assert found.unreadable[7] == f"{split.path(7)}: No such file or directory"
        assert found.digests[5] == found.digests[4] != found.digests[6]
        assert len(ticks) == len(split)
        with pytest.raises(DataError, match=r"(?s)2 images cannot be read:.*--on-error skip"):
            cache.check_readable({"all": found})
        with pytest.raises(ImageError, match=split.path(3).name):
            found.images[3]


def test_pixels_that_fit_in_memory_leave_no_file(split, home, decoded):
    found = scan(split)
    decoded.clear()
    for index in range(len(split)):
        assert not found.images[index].flags.writeable
    assert not decoded
    assert not home.exists()


def test_pixels_are_kept_end_to_end_in_few_buffers(monkeypatch):
    monkeypatch.setattr(pixels, "CHUNK", 1000)
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (h, 10, 3), np.uint8) for h in (5, 9, 20, 40, 3, 7)]
    kept = pixels.Pixels.empty(len(images) + 1)
    for row, image in enumerate(images):
        kept.add(row, image)
    assert len(kept.buffers) == 4  # 5 + 9 + 20 rows would be 1,020 bytes; 40 rows are 1,200
    for row, image in enumerate(images):
        assert np.array_equal(kept.get(row), image)
    assert kept.get(len(images)) is None


def test_a_later_run_uses_the_file_and_decodes_nothing(split, home, little_memory, decoded, capsys):
    first = scan(split)
    file = only_file(first, home)
    assert "need about 0.0 GB" in capsys.readouterr().err
    before = file.stat().st_mtime_ns, file.read_bytes()
    os.utime(file, (0, 0))
    (home.parent / "now").touch()
    decoded.clear()
    again = scan(split)
    assert not decoded
    assert f"Using the cached pixels in {file}" in capsys.readouterr().err
    assert again.digests == first.digests
    assert file.read_bytes() == before[1]
    assert file.stat().st_mtime_ns >= (home.parent / "now").stat().st_mtime_ns  # marked as used
    only_file(again, home)


def test_batches_are_the_same_without_a_cache_from_memory_and_from_disk(split, home, monkeypatch):
    def batches(images):
        return list(Loader(images, 10, 2).training(Augmentation(), 24, 0, 1))

    reference = batches(dataset.Images(split, PRESET))
    for memory in (10**9, 1000, 1000):
        monkeypatch.setattr(cache, "available_memory", lambda memory=memory: memory)
        found = scan(split).images
        for batch, expected in zip(batches(found), reference, strict=True):
            assert torch.equal(batch.images, expected.images)
        evaluated = list(Loader(found, 10, 2).evaluation())
        assert torch.equal(evaluated[0].images[4], PRESET.crop(PRESET.pixels(split.path(4))))


@pytest.mark.parametrize(
    "change", ["an image", "the working size", "the decoder", "a missing image", "their order"]
)
def test_different_data_or_decoders_use_different_files(
    split, home, little_memory, decoded, monkeypatch, change
):
    scan(split)
    preset = PRESET
    if change == "an image":  # with the same length and modification time
        path = split.path(9)
        times = path.stat().st_atime_ns, path.stat().st_mtime_ns
        other = path.read_bytes()
        path.write_bytes(other[:-1] + bytes([other[-1] ^ 1]))
        os.utime(path, ns=times)
    elif change == "the working size":
        preset = Preprocessing(31, 31)
    elif change == "the decoder":
        monkeypatch.setattr(decode, "VERSION", decode.VERSION + 1)
    elif change == "a missing image":
        split = split.select(range(len(split) - 1))
    else:
        split = split.select(range(len(split))[::-1])
    decoded.clear()
    found = scan(split, preset)
    assert len(decoded) == len(split)
    assert len(list(home.glob("*.pixels"))) == 2
    assert np.array_equal(found.images[9], preset.pixels(split.path(9)))


@pytest.mark.parametrize("damage", ["empty", "cut", "longer", "magic", "count", "footer", "shapes"])
def test_a_damaged_file_is_created_again(split, home, little_memory, capsys, damage):
    file = only_file(scan(split), home)
    whole = file.read_bytes()
    offsets = {"footer": 5, "shapes": 60, "magic": 40, "count": 31}
    at = len(whole) - offsets[damage] if damage in offsets else None
    broken = {"empty": b"", "cut": whole[:100] + whole[200:], "longer": b"x" + whole}.get(damage)
    if at is not None:
        broken = whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1 :]
    file.unlink()
    file.write_bytes(broken)
    found = scan(split)
    assert only_file(found, home).read_bytes() == whole
    assert "is damaged; recreating it" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_reported(
    split, tmp_path, monkeypatch, capsys, little_memory
):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("RESNETKIT_CACHE", str(tmp_path / "file"))
    found = scan(split)
    messages = capsys.readouterr().err.replace("\n", " ")
    assert "The pixels cannot be cached on disk" in messages
    assert "48 of 48 images do not fit in memory" in messages
    assert np.array_equal(found.images[20], PRESET.pixels(split.path(20)))


def test_too_little_space_is_found_before_anything_is_written(
    split, home, little_memory, monkeypatch, capsys
):
    full = type("usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda path: full)
    scan(split)
    assert "RESNETKIT_CACHE=/path" in capsys.readouterr().err
    assert not list(home.glob("*.p*"))


def test_a_disk_that_fills_up_is_reported_and_leaves_no_file(
    split, home, little_memory, capsys, monkeypatch
):
    """The operating system refuses to write more than 50,000 bytes to a file."""
    ticks = []
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        found = scan(split, advance=ticks.append)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert os.strerror(errno.EFBIG) in capsys.readouterr().err
    assert len(ticks) == len(split)
    assert not list(home.glob("*.p*"))
    assert np.array_equal(found.images[20], PRESET.pixels(split.path(20)))


def test_images_that_do_not_fit_are_decoded_again_and_reported(
    split, tmp_path, monkeypatch, capsys, decoded
):
    """The estimate from the headers was too small."""
    one = PRESET.pixels(split.path(0)).nbytes
    monkeypatch.setattr(cache, "available_memory", lambda: int(10.5 * one / cache.RAM_SHARE))
    monkeypatch.setattr(cache, "expected_bytes", lambda *_: 0)
    found = scan(split).images
    assert "38 of 48 images do not fit in memory" in capsys.readouterr().err
    decoded.clear()
    for index in range(len(split)):
        assert np.array_equal(found[index], PRESET.pixels(split.path(index)))
    assert len(decoded) == 38 + 48


def test_an_image_that_changes_while_it_is_read_is_an_error(
    split, home, little_memory, monkeypatch
):
    original = cache._Reader.digest

    def changed(self, index):
        return "0" * 16 if index == 5 else original(self, index)

    monkeypatch.setattr(cache._Reader, "digest", changed)
    with pytest.raises(DataError, match=rf"{split.path(5).name} was changed while"):
        scan(split)
    assert not list(home.glob("*.p*"))


def test_unused_files_are_removed(split, home, little_memory):
    home.mkdir(parents=True)
    old, new = "0" * 32, "1" * 32
    ages = {f"{old}.pixels": 31, f"{old}.partial": 31, f"{new}.pixels": 29, "mine.pixels": 31}
    for name, days in ages.items():
        (home / name).write_bytes(b"x")
        os.utime(home / name, (time.time() - days * 86400,) * 2)
    scan(split)
    assert {file.name for file in home.glob(f"{old}*")} == set()
    assert (home / "mine.pixels").exists()  # not a name of ours
    assert (home / f"{new}.pixels").exists()


def test_the_size_is_estimated_from_headers(split):
    exact = sum(PRESET.pixels(split.path(i)).nbytes for i in range(len(split)))
    assert cache.expected_bytes(split, PRESET) == exact
    split.path(2).write_bytes(b"broken")
    assert cache.expected_bytes(split, PRESET) == exact


def test_the_folder_of_the_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("RESNETKIT_CACHE", str(tmp_path))
    assert disk_cache.cache_folder() == tmp_path / "pixels"
    monkeypatch.delenv("RESNETKIT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setattr(sys, "platform", "linux")
    assert disk_cache.cache_folder() == tmp_path / "xdg" / "resnetkit" / "pixels"


RUN = """
import sys
from resnetkit.data import cache, folder
from resnetkit.data.preprocessing import Preprocessing
cache.available_memory = lambda: 1000
split = folder.read_dataset(sys.argv[1]).splits["all"]
found = cache.scan(split, Preprocessing(32, 32), 1, lambda text: None)
total = sum(int(found.images[i].sum()) for i in range(len(split)))
print(total)
"""


@pytest.mark.slow
def test_runs_that_start_together_share_one_file(flat_folder, split, home):
    command = [sys.executable, "-c", RUN, str(flat_folder)]
    running = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    ends = [process.communicate(timeout=120) for process in running]
    expected = sum(int(PRESET.pixels(split.path(i)).sum()) for i in range(len(split)))
    assert [int(out) for out, _ in ends] == [expected] * 4
    assert sum("Using the cached pixels" in err for _, err in ends) == 3
    assert len(list(home.glob("*.pixels"))) == 1


@pytest.mark.slow
def test_a_run_killed_while_it_writes_leaves_no_file_that_is_used(flat_folder, split, home):
    """The run dies at the 20th image; the next one writes the file again."""
    dying = RUN.replace(
        "found =",
        """
import os
pixels = Preprocessing.pixels
decoded = iter(range(100))
Preprocessing.pixels = lambda self, file: os._exit(9) if next(decoded) == 20 else pixels(self, file)
found =""",
    )
    done = subprocess.run([sys.executable, "-c", dying, str(flat_folder)], capture_output=True)
    assert done.returncode == 9, done.stderr
    assert len(list(home.glob("*.partial"))) == 1
    command = [sys.executable, "-c", RUN, str(flat_folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert "Using the cached pixels" not in done.stderr
    expected = sum(int(PRESET.pixels(split.path(i)).sum()) for i in range(len(split)))
    assert int(done.stdout) == expected
    assert not list(home.glob("*.partial"))


def test_temporary_failures_are_not_recorded(split, home, little_memory, monkeypatch):
    split.path(3).write_bytes(b"\xff\xd8broken")
    real = decode.resize
    out_of_memory = [True]

    def resize(pixels, size):
        if out_of_memory[0]:
            raise MemoryError
        return real(pixels, size)

    monkeypatch.setattr(decode, "resize", resize)
    found = scan(split, Preprocessing(8, 8))
    assert set(found.unreadable) == set(range(len(split)))
    assert "not enough memory" in found.unreadable[5]
    (file,) = home.glob("*.pixels")
    out_of_memory[0] = False
    again = scan(split, Preprocessing(8, 8))
    assert list(home.glob("*.pixels")) == [file]
    assert list(again.unreadable) == [3]
    assert np.array_equal(again.images[5], Preprocessing(8, 8).pixels(split.path(5)))


@pytest.mark.parametrize("failing", [3, 48 + 3], ids=["hashing", "decoding"])
def test_a_read_that_fails_once_is_no_change(split, home, little_memory, monkeypatch, failing):
    real = files.read_file
    reads = iter(range(200))

    def flaky(path, name=None):
        if next(reads) == failing:
            raise ImageError(f"{name or path}: Input/output error", passing=True)
        return real(path, name)

    monkeypatch.setattr(files, "read_file", flaky)
    found = scan(split, workers=0)
    monkeypatch.setattr(files, "read_file", real)
    assert found.unreadable == {}
    assert found.digests == [files.file_digest(split.path(i)) for i in range(len(split))]
    assert np.array_equal(found.images[3], PRESET.pixels(split.path(3)))


def test_a_decoder_that_is_installed_later_is_used(split, home, little_memory, monkeypatch):
    split.path(3).write_bytes(b"\0\0\0\x18ftypheic" + b"\0" * 100)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "pillow_heif", None)
        found = scan(split)
    assert "pip install" in found.unreadable[3]
    heif = types.ModuleType("pillow_heif")

    def reader(file, name):
        raise SyntaxError("not a HEIC image")

    heif.HeifImageFile = reader
    monkeypatch.setitem(sys.modules, "pillow_heif", heif)
    again = scan(split)
    assert "pip install" not in again.unreadable[3]
    assert "not an image in a known format" in again.unreadable[3]


@pytest.mark.parametrize("name", ["pillow-heif", "simplejpeg"])
def test_the_key_includes_the_versions_of_the_decoders(monkeypatch, name):
    real, before = decode.metadata.version, decode.fingerprint()
    monkeypatch.setattr(
        decode.metadata, "version", lambda asked: "0.1.2" if asked == name else real(asked)
    )
    assert decode.fingerprint() != before
    assert f"{name} 0.1.2" in decode.fingerprint()
