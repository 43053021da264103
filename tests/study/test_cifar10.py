"""The archive of CIFAR-10, in both of its forms, made small here."""

from __future__ import annotations

import io
import pickle
import tarfile

import numpy as np
import pytest
from PIL import Image

from resnetkit.data import folder
from resnetkit.errors import DataError
from resnetkit.study import cifar10

PER_BATCH = 20


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(cifar10, "VALIDATION", 2)


@pytest.fixture
def batches():
    chance = np.random.default_rng(0)
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    return {
        name: (
            chance.integers(0, 256, (PER_BATCH, 3072), dtype=np.uint8),
            np.arange(PER_BATCH, dtype=np.uint8) % 10,
        )
        for name in names
    }


def write(path, files):
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(f"cifar-10-batches/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def binary(path, batches):
    return write(
        path,
        {
            f"{name}.bin": np.hstack([labels[:, None], pixels]).tobytes()
            for name, (pixels, labels) in batches.items()
        },
    )


def python(path, batches):
    return write(
        path,
        {
            name: pickle.dumps({b"data": pixels, b"labels": labels.tolist()}, protocol=2)
            for name, (pixels, labels) in batches.items()
        },
    )


@pytest.mark.parametrize("form", [binary, python])
def test_an_archive_becomes_a_folder_of_the_same_pixels(form, batches, tmp_path):
    target = cifar10.unpack(form(tmp_path / "c.tar.gz", batches), tmp_path / "cifar10")
    listing = folder.read(target)
    assert {name: len(part) for name, part in listing.parts.items()} == {
        "train": 80,
        "val": 20,
        "test": 20,
    }
    assert listing.classes == tuple(sorted(cifar10.CLASSES))
    pixels, labels = batches["test_batch"]
    for number in (0, 13):
        picture = Image.open(
            target / "test" / cifar10.CLASSES[labels[number]] / f"{number:05d}.png"
        )
        # red, green and blue planes of 32 rows each
        row, column = 5, 9
        expected = tuple(
            int(pixels[number][plane * 1024 + row * 32 + column]) for plane in range(3)
        )
        assert picture.getpixel((column, row)) == expected
    assert not cifar10.is_original(target)
    assert cifar10.unpack(tmp_path / "gone.tar.gz", target) == target  # it is there already


def test_the_original_is_known_by_its_checksum(batches, tmp_path, monkeypatch):
    import hashlib

    archive = binary(tmp_path / "c.tar.gz", batches)
    digest = hashlib.md5(archive.read_bytes()).hexdigest()
    monkeypatch.setattr(cifar10, "ORIGINALS", {digest: "c.tar.gz"})
    assert cifar10.is_original(cifar10.unpack(archive, tmp_path / "out" / "cifar10"))


def test_what_is_no_such_archive_is_told(batches, tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        cifar10.unpack(tmp_path / "missing.tar.gz", tmp_path / "a")
    (tmp_path / "text.tar.gz").write_text("no archive")
    with pytest.raises(DataError, match="cannot be read"):
        cifar10.unpack(tmp_path / "text.tar.gz", tmp_path / "a")
    with pytest.raises(DataError, match="give its folder"):
        cifar10.unpack(write(tmp_path / "p.tar.gz", {"a.jpg": b"x"}), tmp_path / "a")
    short = dict(batches)
    del short["data_batch_3"]
    with pytest.raises(DataError, match="data_batch_1"):
        cifar10.unpack(binary(tmp_path / "s.tar.gz", short), tmp_path / "a")
    with pytest.raises(DataError, match="cannot be read"):
        cifar10.unpack(write(tmp_path / "t.tar.gz", {"test_batch.bin": b"123"}), tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_a_pickle_that_wants_to_run_something_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return print, ("run",)

    archive = write(tmp_path / "e.tar.gz", {"data_batch_1": pickle.dumps(Evil())})
    with pytest.raises(DataError, match="print"):
        cifar10.unpack(archive, tmp_path / "a")
