"""CIFAR-10 from its original archive: a folder of PNG pictures, as any other data set.

60,000 pictures of 32x32 pixels in ten classes (Krizhevsky, 2009). The archives of its home page,
https://www.cs.toronto.edu/~kriz/cifar.html, are known by their checksums; one of them is fetched
where nobody has it yet.
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
from ..randomness import order
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
VALIDATION = 500  # of each class: section 4.2 trains on 45,000 and validates on 5,000
RECORD = 1 + 3 * 32 * 32  # a label, then the planes of red, green and blue


def original(folder: Path) -> Path:
    """The binary archive of CIFAR-10's home page, fetched into ``folder`` once (170 MB).

    Raises:
        DownloadError: it cannot be fetched.
        DataError: what arrives is another file.
    """
    name = "cifar-10-binary.tar.gz"
    return fetch(f"{HOME}/{name}", folder, name, validate=_expect_original)


def _expect_original(archive: Path) -> None:
    if _md5(archive) not in ORIGINALS:
        raise DataError(
            f"what {HOME} sends is not the archive of CIFAR-10 that is known by its MD5"
        )


def _md5(archive: Path) -> str:
    with archive.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def unpack(archive: Path, target: Path) -> Path:
    """Write ``target/{train,val,test}/<class>/*.png`` once; returns ``target``.

    ``target``.json says which archive it came from.

    Raises:
        DataError: ``archive`` is no archive of CIFAR-10's batches, or is damaged.
        OutputError: what an earlier try left there cannot be removed.
    """
    if target.is_dir():
        return target
    try:
        digest = _md5(archive)
        batches = dict(_batches(archive))
    except (OSError, tarfile.TarError, pickle.UnpicklingError, EOFError, ValueError) as error:
        raise DataError(f"{archive} cannot be read as CIFAR-10: {error}") from error
    training = [name for name in sorted(batches) if name.startswith("data_batch")]
    if len(training) != 5 or "test_batch" not in batches:
        raise DataError(
            f"{archive} holds {', '.join(sorted(batches)) or 'no batches'}; expected data_batch_1 "
            "to 5 and test_batch, as cifar-10-binary.tar.gz does. An archive of pictures has to be "
            "unpacked first: give its folder"
        )
    partial = target.with_name(f"{target.name}.part")
    _remove(partial)  # of a try that was stopped
    pixels = np.concatenate([batches[name][0] for name in training])
    labels = np.concatenate([batches[name][1] for name in training])
    with bar("writing CIFAR-10 as pictures", 10 * len(CLASSES)) as advance:
        for number, name in enumerate(CLASSES):
            members = np.flatnonzero(labels == number)
            members = members[order(0, number, len(members))]
            _write(partial / "val" / name, pixels, members[:VALIDATION])
            _write(partial / "train" / name, pixels, members[VALIDATION:])
            tested, truth = batches["test_batch"]
            _write(partial / "test" / name, tested, np.flatnonzero(truth == number))
            for _ in range(10):
                advance("")
    original = digest in ORIGINALS
    write_json(_record(target), {"archive": archive.name, "md5": digest, "original": original})
    partial.rename(target)
    return target


def _remove(folder: Path) -> None:
    """Remove what a try that was stopped left.

    Raises:
        OutputError: it cannot be removed; images of two tries would mix.
    """
    try:
        shutil.rmtree(folder)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise OutputError(
            f"{folder} is left of a try that was stopped, and cannot be removed "
            f"({error.strerror}): remove it, then try again"
        ) from error


def is_original(folder: Path) -> bool:
    """Whether ``folder`` was written from an archive of CIFAR-10's home page, unchanged."""
    import json

    record = _record(folder)
    return record.is_file() and bool(json.loads(record.read_text(encoding="utf-8"))["original"])


def _record(target: Path) -> Path:
    return target.with_name(f"{target.name}.json")


def _write(folder: Path, pixels: np.ndarray, chosen: np.ndarray) -> None:
    folder.mkdir(parents=True)
    for i in np.sort(chosen):
        image = Image.fromarray(pixels[i].reshape(3, 32, 32).transpose(1, 2, 0).copy())
        image.save(folder / f"{i:05d}.png", compress_level=1)


def _batches(archive: Path) -> Iterator[tuple[str, tuple[np.ndarray, np.ndarray]]]:
    """(name, (pixels (n, 3072) uint8, labels (n,))) of each batch in the archive."""
    with tarfile.open(archive) as files:
        for member in files:
            name = Path(member.name).name.removesuffix(".bin")
            if not name.startswith(("data_batch", "test_batch")):
                continue
            content = files.extractfile(member)
            if content is None:
                continue
            raw = content.read()
            yield name, _binary(raw) if member.name.endswith(".bin") else _pickled(raw)


def _binary(raw: bytes) -> tuple[np.ndarray, np.ndarray]:
    records = np.frombuffer(raw, np.uint8).reshape(-1, RECORD)  # ValueError: a part is missing
    return records[:, 1:], records[:, 0]


class _Arrays(pickle.Unpickler):
    """Reads arrays and nothing else: a pickle could otherwise run any program."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in {("numpy", "ndarray"), ("numpy", "dtype")}:
            return getattr(np, name)
        if module.endswith("multiarray") and name == "_reconstruct":
            return np._core.multiarray._reconstruct  # type: ignore[attr-defined]
        if (module, name) == ("_codecs", "encode"):  # how newer writers store bytes
            return codecs.encode
        raise pickle.UnpicklingError(f"{module}.{name} is not expected in a batch")


def _pickled(raw: bytes) -> tuple[np.ndarray, np.ndarray]:
    batch = _Arrays(io.BytesIO(raw), encoding="bytes").load()
    try:
        return batch[b"data"].reshape(-1, RECORD - 1), np.asarray(batch[b"labels"], np.uint8)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"a batch without {error}") from error
