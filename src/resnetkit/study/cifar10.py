"""CIFAR-10: its original archive, unpacked to a folder of PNG images like any other dataset.

60,000 images of 32x32 pixels in ten classes (Krizhevsky, 2009). The archives from its home page,
https://www.cs.toronto.edu/~kriz/cifar.html, are recognized by their MD5. If needed, one of them is
downloaded.
"""

from __future__ import annotations

import codecs
import hashlib
import io
import pickle
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import DataError, OutputError
from ..models.weights.download import fetch
from ..progress import bar
from ..randomness import permutation
from ..storage import write_json

# In the order of the labels.
CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
ORIGINALS = {
    "c32a1d4ab5d03f1284b67883e8d87530": "cifar-10-binary.tar.gz",
    "c58f30108f718f92721af3b95e74349a": "cifar-10-python.tar.gz",
}
HOME = "https://www.cs.toronto.edu/~kriz"
VALIDATION = 500  # images per class: section 4.2 trains on 45,000 and validates on 5,000
RECORD = 1 + 3 * 32 * 32  # a label, then the red, green and blue planes


def download_archive(folder: Path) -> Path:
    """Download the binary archive of CIFAR-10 (170 MB) to ``folder``, unless it is already there.

    Returns:
        The archive.

    Raises:
        DownloadError: the download failed.
        DataError: the downloaded file is not the original archive.
    """
    name = "cifar-10-binary.tar.gz"
    return fetch(f"{HOME}/{name}", folder, name, validate=_check_original)


def _check_original(archive: Path) -> None:
    if _md5(archive) not in ORIGINALS:
        raise DataError(
            f"The file from {HOME} is not the original archive of CIFAR-10: its MD5 is different"
        )


def _md5(archive: Path) -> str:
    with archive.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def unpack(archive: Path, target: Path) -> Path:
    """Unpack an archive to ``target/{train,val,test}/<class>/*.png``, unless ``target`` exists.

    ``<target>.json`` records which archive was unpacked.

    Returns:
        ``target``.

    Raises:
        DataError: ``archive`` does not hold the batches of CIFAR-10, or is damaged.
        OutputError: the remains of an interrupted attempt cannot be removed.
    """
    if target.is_dir():
        return target
    try:
        digest = _md5(archive)
        batches = dict(_read_batches(archive))
    except (OSError, tarfile.TarError, pickle.UnpicklingError, EOFError, ValueError) as error:
        raise DataError(f"{archive} cannot be read as CIFAR-10: {error}") from error
    training = [name for name in sorted(batches) if name.startswith("data_batch")]
    if len(training) != 5 or "test_batch" not in batches:
        raise DataError(
            f"{archive} holds {', '.join(sorted(batches)) or 'no batches'}; expected data_batch_1 "
            "to 5 and test_batch, as in cifar-10-binary.tar.gz. Unpack an archive of images first "
            "and pass the folder"
        )
    partial = target.with_name(f"{target.name}.part")
    _remove_partial(partial)
    pixels = np.concatenate([batches[name][0] for name in training])
    labels = np.concatenate([batches[name][1] for name in training])
    with bar("writing CIFAR-10 as PNG images", 10 * len(CLASSES)) as advance:
        for number, name in enumerate(CLASSES):
            members = np.flatnonzero(labels == number)
            members = members[permutation(0, number, len(members))]
            _write_images(partial / "val" / name, pixels, indices=members[:VALIDATION])
            _write_images(partial / "train" / name, pixels, indices=members[VALIDATION:])
            test_pixels, test_labels = batches["test_batch"]
            test_members = np.flatnonzero(test_labels == number)
            _write_images(partial / "test" / name, test_pixels, indices=test_members)
            for _ in range(10):
                advance("")
    record = {"archive": archive.name, "md5": digest, "original": digest in ORIGINALS}
    write_json(_record_path(target), record)
    partial.rename(target)
    return target


def _remove_partial(folder: Path) -> None:
    """Remove what an interrupted attempt left behind, so that images from two attempts do not mix.

    Raises:
        OutputError: the folder cannot be removed.
    """
    try:
        shutil.rmtree(folder)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise OutputError(
            f"{folder} is left over from an interrupted attempt and cannot be removed "
            f"({error.strerror}). Remove it and try again"
        ) from error


def is_original(folder: Path) -> bool:
    """Return whether ``folder`` was unpacked from one of CIFAR-10's original archives."""
    import json

    record = _record_path(folder)
    return record.is_file() and bool(json.loads(record.read_text(encoding="utf-8"))["original"])


def _record_path(target: Path) -> Path:
    return target.with_name(f"{target.name}.json")


def _write_images(folder: Path, pixels: np.ndarray, *, indices: np.ndarray) -> None:
    folder.mkdir(parents=True)
    for i in np.sort(indices):
        image = Image.fromarray(pixels[i].reshape(3, 32, 32).transpose(1, 2, 0).copy())
        image.save(folder / f"{i:05d}.png", compress_level=1)


def _read_batches(archive: Path) -> Iterator[tuple[str, tuple[np.ndarray, np.ndarray]]]:
    """Yield (name, (pixels (n, 3072) uint8, labels (n,))) for each batch in the archive."""
    with tarfile.open(archive) as files:
        for member in files:
            name = Path(member.name).name.removesuffix(".bin")
            if not name.startswith(("data_batch", "test_batch")):
                continue
            content = files.extractfile(member)
            if content is None:
                continue
            raw = content.read()
            is_binary = member.name.endswith(".bin")
            yield name, _parse_binary(raw) if is_binary else _parse_pickle(raw)


def _parse_binary(raw: bytes) -> tuple[np.ndarray, np.ndarray]:
    records = np.frombuffer(raw, np.uint8).reshape(-1, RECORD)  # ValueError if truncated
    return records[:, 1:], records[:, 0]


class _ArrayUnpickler(pickle.Unpickler):
    """An unpickler that loads only arrays: an unrestricted one could run any code."""

    def find_class(self, module: str, name: str) -> Any:
        """Return one of the classes that arrays need; refuse all others."""
        if (module, name) in {("numpy", "ndarray"), ("numpy", "dtype")}:
            return getattr(np, name)
        if module.endswith("multiarray") and name == "_reconstruct":
            return np._core.multiarray._reconstruct  # type: ignore[attr-defined]
        if (module, name) == ("_codecs", "encode"):  # how newer pickles store bytes
            return codecs.encode
        raise pickle.UnpicklingError(f"{module}.{name} is not expected in a batch")


def _parse_pickle(raw: bytes) -> tuple[np.ndarray, np.ndarray]:
    batch = _ArrayUnpickler(io.BytesIO(raw), encoding="bytes").load()
    try:
        return batch[b"data"].reshape(-1, RECORD - 1), np.asarray(batch[b"labels"], np.uint8)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"a batch has no {error}") from error
