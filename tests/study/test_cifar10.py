"""Small versions of the CIFAR-10 archive, in both of its forms."""

from __future__ import annotations

import io
import pickle
import tarfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from resnetkit.data import folder
from resnetkit.data.transforms import normalize
from resnetkit.errors import DataError, OutputError
from resnetkit.models.weights import modelfile
from resnetkit.study import cifar10, degradation, runs
from resnetkit.study.images import resolve_data

PER_BATCH = 20


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(cifar10, "VALIDATION", 2)


@pytest.fixture
def batches():
    rng = np.random.default_rng(0)
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    return {
        name: (
            rng.integers(0, 256, (PER_BATCH, 3072), dtype=np.uint8),
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
def test_an_archive_is_unpacked_to_the_same_pixels(form, batches, tmp_path):
    target = cifar10.unpack(form(tmp_path / "c.tar.gz", batches), tmp_path / "cifar10")
    dataset = folder.read_dataset(target)
    assert {name: len(split) for name, split in dataset.splits.items()} == {
        "train": 80,
        "val": 20,
        "test": 20,
    }
    assert dataset.classes == tuple(sorted(cifar10.CLASSES))
    pixels, labels = batches["test_batch"]
    for number in (0, 13):
        image = Image.open(target / "test" / cifar10.CLASSES[labels[number]] / f"{number:05d}.png")
        # red, green and blue planes of 32 rows each
        row, column = 5, 9
        expected = tuple(
            int(pixels[number][plane * 1024 + row * 32 + column]) for plane in range(3)
        )
        assert image.getpixel((column, row)) == expected
    assert not cifar10.is_original(target)
    assert cifar10.unpack(tmp_path / "gone.tar.gz", target) == target  # already unpacked


def test_the_original_archive_is_recognised_by_its_md5(batches, tmp_path, monkeypatch):
    import hashlib

    archive = binary(tmp_path / "c.tar.gz", batches)
    digest = hashlib.md5(archive.read_bytes()).hexdigest()
    monkeypatch.setattr(cifar10, "ORIGINALS", {digest: "c.tar.gz"})
    assert cifar10.is_original(cifar10.unpack(archive, tmp_path / "out" / "cifar10"))


def test_the_original_archive_is_downloaded_if_missing(batches, tmp_path, monkeypatch):
    import hashlib

    monkeypatch.delenv("RESNETKIT_OFFLINE", raising=False)
    home = tmp_path / "home"
    home.mkdir()
    archive = binary(home / "cifar-10-binary.tar.gz", batches)
    monkeypatch.chdir(tmp_path)
    handler = partial(SimpleHTTPRequestHandler, directory=home)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(cifar10, "HOME", f"http://127.0.0.1:{server.server_port}")
        with pytest.raises(DataError, match="not the original archive of CIFAR-10"):
            resolve_data("cifar10", tmp_path / "a")
        assert not list((tmp_path / "a").glob("*.tar.gz"))
        digest = hashlib.md5(archive.read_bytes()).hexdigest()
        monkeypatch.setattr(cifar10, "ORIGINALS", {digest: archive.name})
        found = resolve_data("cifar10", tmp_path / "b")
        server.shutdown()
    assert found == tmp_path / "b" / "cifar10"
    assert cifar10.is_original(found)
    (tmp_path / "b" / archive.name).unlink()
    assert resolve_data("cifar10", tmp_path / "b") == found  # already unpacked
    (tmp_path / "cifar10").mkdir()
    assert resolve_data("cifar10", tmp_path / "c") == Path("cifar10")  # a folder of that name


def test_other_archives_are_refused(batches, tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        cifar10.unpack(tmp_path / "missing.tar.gz", tmp_path / "a")
    (tmp_path / "text.tar.gz").write_text("no archive")
    with pytest.raises(DataError, match="cannot be read"):
        cifar10.unpack(tmp_path / "text.tar.gz", tmp_path / "a")
    with pytest.raises(DataError, match="pass the folder"):
        cifar10.unpack(write(tmp_path / "p.tar.gz", {"a.jpg": b"x"}), tmp_path / "a")
    short = dict(batches)
    del short["data_batch_3"]
    with pytest.raises(DataError, match="data_batch_1"):
        cifar10.unpack(binary(tmp_path / "s.tar.gz", short), tmp_path / "a")
    with pytest.raises(DataError, match="cannot be read"):
        cifar10.unpack(write(tmp_path / "t.tar.gz", {"test_batch.bin": b"123"}), tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_remains_of_an_interrupted_attempt_are_removed_or_named(batches, tmp_path, monkeypatch):
    archive, left = binary(tmp_path / "c.tar.gz", batches), tmp_path / "cifar10.part"
    (left / "val/odd").mkdir(parents=True)
    with monkeypatch.context() as patched:
        patched.setattr(cifar10.shutil, "rmtree", refuse)
        with pytest.raises(OutputError, match=r"part is left over from .* \(busy\)\. Remove it"):
            cifar10.unpack(archive, tmp_path / "cifar10")
    assert not (cifar10.unpack(archive, tmp_path / "cifar10") / "val/odd").exists()


def refuse(folder, *rest, ignore_errors=False, **others):
    if not ignore_errors:
        raise OSError(16, "busy", str(folder))


def test_a_pickle_that_would_run_code_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return print, ("run",)

    archive = write(tmp_path / "e.tar.gz", {"data_batch_1": pickle.dumps(Evil())})
    with pytest.raises(DataError, match="print"):
        cifar10.unpack(archive, tmp_path / "a")


@pytest.mark.slow
def test_the_original_is_compared_with_table_6(batches, tmp_path, monkeypatch):
    """Go from the archive to table 6, with the paper's recipe, shortened."""
    import hashlib

    archive = binary(tmp_path / "c.tar.gz", batches)

    def study(out):
        nets = degradation.nets([20])
        settings = {"epochs": 1, "batch_size": 16, "model_options": {"width": 4}}
        comparison, found = runs.compare(
            nets,
            str(archive),
            out,
            recipe_name=None,
            minutes=None,
            seeds=[0],
            device="cpu",
            workers=0,
            settings=settings,
        )
        return comparison, found, degradation.table6(comparison, found, "cpu")

    comparison, _, table = study(tmp_path / "other")
    assert table is None
    assert comparison.recipe.name == "paper-cifar10"
    digest = hashlib.md5(archive.read_bytes()).hexdigest()
    monkeypatch.setattr(cifar10, "ORIGINALS", {digest: "c.tar.gz"})
    _, found, table = study(tmp_path / "original")
    assert [(row.what, row.published) for row in table.rows] == [
        ("plain20, seed 0", None),
        ("resnet20, seed 0", "8.75"),
    ]
    network, header = modelfile.read(found[1].folder / "last.safetensors")
    pixels, labels = batches["test_batch"]
    images = torch.from_numpy(pixels.reshape(-1, 3, 32, 32).copy())
    with torch.no_grad():
        answers = network.eval()(normalize(images, header.preprocessing)).argmax(1)
    truth = [header.classes.index(cifar10.CLASSES[label]) for label in labels]
    wrong = sum(int(a) != t for a, t in zip(answers, truth, strict=True))
    assert table.rows[1].derived == pytest.approx(100 * wrong / len(labels))
