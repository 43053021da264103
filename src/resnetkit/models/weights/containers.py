"""What a file is that is no file of tensors, in words."""

from __future__ import annotations

import re
import zipfile
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


def what_it_is(start: bytes) -> str:
    """Name the kind of a file by its first 512 bytes, and say what to do with it."""
    if not start:
        return "it is empty"
    begins = start[:20].decode("utf-8", "replace")
    if re.match(rb"\s*<", start):
        return f"it is a web page, such as a log-in or error page (it begins with {begins!r})"
    if start.startswith(b"version https://git-lfs"):
        return (
            f"it begins with {begins!r}: a pointer of Git LFS that stands for the real file. Get "
            "that with `git lfs pull`, or download it from the page of the repository"
        )
    archive = "a tar archive" if start[257:262] == b"ustar" else None
    for magic, kind in _ARCHIVES.items():
        archive = kind if start.startswith(magic) else archive
    if archive is not None:
        return f"it is {archive}: unpack it, and give the file that is in it"
    if start.startswith(b"\x89HDF"):
        return (
            "it is an HDF5 file, such as Keras writes, and not from PyTorch: load it with Keras, "
            "and build the same network in PyTorch to copy its weights"
        )
    return f"it is neither safetensors nor from torch.save (it begins with {begins!r})"


def check_archive(path: Path, start: bytes, name: str) -> None:
    """Make sure that a file that begins as a zip archive is one that ``torch.save`` wrote.

    Raises:
        WeightsError: it is cut short, a TorchScript program, or an archive of other files.
    """
    if not start.startswith(b"PK"):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            inside = archive.namelist()
    except (zipfile.BadZipFile, ValueError, OSError) as error:
        raise WeightsError(
            f"{name} is damaged or cut short, since its table of contents at the end is not "
            "there: copy or download it again"
        ) from error
    parts = {part for file in inside for part in Path(file).parts}
    if "constants.pkl" in parts or "code" in parts:
        raise WeightsError(
            f"{name} is a TorchScript program, not a file of tensors. Save its tensors alone:\n"
            f"  model = torch.jit.load({path.name!r})\n"
            f"  torch.save(model.state_dict(), 'weights.pth')"
        )
    if "data.pkl" not in parts:
        first = ", ".join(sorted(inside)[:3]) or "nothing"
        raise WeightsError(
            f"{name} is a zip archive of other files ({first}): unpack it, and give the file of "
            "tensors that is in it"
        )
