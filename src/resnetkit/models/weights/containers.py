"""Messages for files that do not hold tensors: what the file is, and what to do."""

from __future__ import annotations

import re
import zipfile
import zlib
from pathlib import Path

from ...errors import WeightsError

_ARCHIVES = {
    b"\x1f\x8b": "a gzip archive",
    b"BZh": "a bzip2 archive",
    b"\xfd7zXZ\0": "an xz archive",
    b"(\xb5/\xfd": "a zstd archive",
    b"7z\xbc\xaf'\x1c": "a 7z archive",
    b"Rar!": "a RAR archive",
}


def describe_content(start: bytes) -> str:
    """Return what kind of file begins with these 512 bytes, and what to do with it."""
    if not start:
        return "it is empty"
    begins = start[:20].decode("utf-8", "replace")
    if re.match(rb"\s*<", start):
        return f"it is a web page, such as a login or error page (it begins with {begins!r})"
    if start.startswith(b"version https://git-lfs"):
        return (
            f"it is a Git LFS pointer, not the file itself (it begins with {begins!r}). Run "
            "`git lfs pull`, or download the file from the repository's web page"
        )
    archive = "a tar archive" if start[257:262] == b"ustar" else None
    for magic, kind in _ARCHIVES.items():
        archive = kind if start.startswith(magic) else archive
    if archive is not None:
        return f"it is {archive}: unpack it, and pass the file inside"
    if start.startswith(b"\x89HDF"):
        return (
            "it is an HDF5 file, such as Keras writes, not a PyTorch file: load it with Keras, and "
            "copy its weights into the same network in PyTorch"
        )
    if re.match(rb"\x08[\x03-\x1f][\x12\x1a\x3a]", start):
        return (
            "it is an ONNX file. Convert the PyTorch checkpoint that it was exported from "
            "instead, because exporting merges layers and renames tensors"
        )
    if re.match(rb"\x08\x01\x12", start):
        return "it is a TensorFlow model, not a PyTorch file"
    if re.match(rb"\s*[{\[]\s*\"", start):
        return f"it is JSON text (it begins with {begins!r}); pass the file of tensors"
    return f"it was written by neither safetensors nor torch.save (it begins with {begins!r})"


def check_archive(path: Path, start: bytes, name: str) -> None:
    """Raise unless a file that begins like a zip archive was written by ``torch.save``.

    Args:
        path: the file.
        start: its first bytes.
        name: its name, for messages.

    Raises:
        WeightsError: it is cut short or damaged, compressed, a TorchScript program, or an archive
            of other files.
    """
    if not start.startswith(b"PK"):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, ValueError, OSError) as error:
        raise WeightsError(
            f"{name} is damaged or cut short: the table of contents at its end is missing. Copy or "
            "download it again"
        ) from error
    members = [entry.filename for entry in entries]
    names = {part for member in members for part in Path(member).parts}
    if "constants.pkl" in names or "code" in names:
        raise WeightsError(
            f"{name} is a TorchScript program, not a file of tensors. Save only its tensors:\n"
            f"  model = torch.jit.load({path.name!r})\n"
            f"  torch.save(model.state_dict(), 'weights.pth')"
        )
    if "data.pkl" not in names:
        first = ", ".join(sorted(members)[:3]) or "nothing"
        raise WeightsError(
            f"{name} is a zip archive of other files ({first}): unpack it, and pass the file of "
            "tensors inside"
        )
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise WeightsError(
            f"{name} is compressed, which torch.save never does: a small file could expand "
            "and fill the memory. If you trust it, save it again:\n"
            f"  torch.save(torch.load({path.name!r}, weights_only=True), 'weights.pth')"
        )
    if sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise WeightsError(
            f"{name} is damaged: its parts would be larger than the file. Copy or download it again"
        )
    _check_sums(path, name)


def _check_sums(path: Path, name: str) -> None:
    """Raise if bytes have changed since ``torch.save`` wrote them; ``torch.load`` does not check.

    A download can leave a range of zeros. A checksum of 0 means that none was computed: see
    ``torch.serialization.set_crc32_options``.
    """
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if member.CRC == 0:
                continue
            try:
                with archive.open(member) as file:
                    while file.read(2**20):
                        pass
            except (zipfile.BadZipFile, zlib.error, EOFError) as error:
                raise WeightsError(
                    f"{name} is damaged: {member.filename} does not match its checksum. Copy or "
                    "download it again"
                ) from error
