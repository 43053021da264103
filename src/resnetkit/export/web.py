"""Export a model file as a folder with a web page that classifies photos in the browser.

Any static file server can serve the folder. The browser computes the answers with ONNX Runtime Web,
in WebAssembly, so photos never leave the user's machine.
"""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import subprocess
import tarfile
import tempfile
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import torch

from ..errors import ArtefactError, OutputError, RecipeError
from ..models.weights.download import is_offline
from ..progress import say
from ..storage import atomic
from .export import Export, export
from .quantize import worse_path

RUNTIME = "onnxruntime-web"
RUNTIME_VERSION = "1.30.0"
RUNTIME_INTEGRITY = (
    "sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZ"
    "ClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
)
"""The SHA-512 of the npm package, as npm writes it."""

RUNTIME_FILES = {
    # Some servers do not know that .mjs is JavaScript.
    "ort.wasm.bundle.min.mjs": "ort.wasm.bundle.min.js",
    "ort-wasm-simd-threaded.wasm": "ort-wasm-simd-threaded.wasm",
}
"""The files in the package's ``dist`` folder that the page needs, and their names in the page."""

MODEL = "model.onnx"

_BY_HAND = (
    f"On a machine with npm, run\n"
    f"    npm pack {RUNTIME}@{RUNTIME_VERSION}\n"
    f"    tar -xzf {RUNTIME}-{RUNTIME_VERSION}.tgz package/dist\n"
    "then add --runtime package/dist"
)


def export_web(
    model_file: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    runtime: Path | None = None,
    **settings: Any,
) -> Export:
    """Write a folder with a web page that classifies photos with a model.

    Args:
        model_file: the model file.
        out: the folder; it must be new or empty.
        runtime: the ``dist`` folder of the npm package `RUNTIME`. By default, the package comes
            from the cache, or from npm.
        settings: other arguments of `export`.

    Raises:
        OutputError: the folder has files, or cannot be written.
        RecipeError: the runtime is not available, or for the same reasons as in `export`.
        ArtefactError: for the same reasons as in `export`.
    """
    folder = Path(out)
    _refuse_full(folder)
    files = runtime_files(runtime)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as holder:
            page = Path(holder) / "page"
            page.mkdir()
            done = _export_into(page, model_file, folder, settings)
            for name, source in files.items():
                shutil.copyfile(source, page / name)
            for part in ("page_base", "web_page"):
                for file in (resources.files(__package__) / part).iterdir():
                    (page / file.name).write_bytes(file.read_bytes())
            if folder.is_dir():
                folder.rmdir()  # it is empty; Windows does not replace folders
            page.replace(folder)
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(f"{folder} cannot be written ({error.strerror})") from error
    return replace(done, path=folder, report=replace(done.report, path=folder / MODEL))


def _export_into(
    page: Path, model_file: str | os.PathLike[str], folder: Path, settings: dict[str, Any]
) -> Export:
    """Export the model into a page; keep an 8-bit file next to ``folder`` if it is worse."""
    try:
        return export(model_file, "onnx", page / MODEL, **settings)
    except ArtefactError as error:
        worse = worse_path(page / MODEL)
        if not worse.is_file():
            raise
        kept = worse_path(folder.with_name(f"{folder.name}.onnx"))
        worse.replace(kept)
        raise ArtefactError(str(error).replace(str(worse), str(kept))) from error


def runtime_files(folder: Path | None = None) -> dict[str, Path]:
    """Return the files of the runtime, by their names in the page.

    Args:
        folder: the ``dist`` folder of the npm package. By default, a folder in the cache, which npm
            fills if it is missing.

    Raises:
        RecipeError: files are missing, and npm cannot fetch them.
    """
    if folder is None:
        folder = Path(torch.hub.get_dir()) / "resnetkit" / f"{RUNTIME}-{RUNTIME_VERSION}"
        if not all((folder / name).is_file() for name in RUNTIME_FILES):
            _fetch(folder)
    missing = [name for name in RUNTIME_FILES if not (folder / name).is_file()]
    if missing:
        raise RecipeError(
            f"--runtime {folder} has no {' and no '.join(missing)}. It must be the dist folder of "
            f"the npm package {RUNTIME} {RUNTIME_VERSION}. {_BY_HAND}"
        )
    return {name: folder / source for source, name in RUNTIME_FILES.items()}


def _fetch(folder: Path) -> None:
    """Fetch the package with npm, check it, and keep the files that the page needs."""
    package = f"{RUNTIME}@{RUNTIME_VERSION}"
    npm = shutil.which("npm")
    if npm is None or is_offline():
        reason = "npm is not installed" if npm is None else "RESNETKIT_OFFLINE is set"
        raise RecipeError(f"The web page needs the npm package {package}, but {reason}. {_BY_HAND}")
    say(f"Fetching {package} with npm.")
    with tempfile.TemporaryDirectory() as scratch:
        command = [npm, "pack", package, "--ignore-scripts", "--loglevel=error"]
        done = subprocess.run(command, cwd=scratch, capture_output=True, text=True, check=False)
        archives = list(Path(scratch).glob("*.tgz"))
        if done.returncode or len(archives) != 1:
            reason = next(iter(done.stderr.strip().splitlines()), f"exit code {done.returncode}")
            raise RecipeError(f"npm could not fetch {package} ({reason}). {_BY_HAND}")
        _check_integrity(archives[0])
        with tarfile.open(archives[0]) as archive:
            for name in RUNTIME_FILES:
                content = archive.extractfile(f"package/dist/{name}")
                assert content is not None
                with atomic(folder / name) as unfinished:
                    unfinished.write_bytes(content.read())


def _check_integrity(archive: Path) -> None:
    digest = hashlib.sha512(archive.read_bytes()).digest()
    found = f"sha512-{base64.b64encode(digest).decode()}"
    if found != RUNTIME_INTEGRITY:
        raise RecipeError(
            f"npm fetched a different {RUNTIME} {RUNTIME_VERSION} than expected: its integrity is "
            f"{found}, not {RUNTIME_INTEGRITY}. Check npm's registry; nothing was kept"
        )


def _refuse_full(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputError(f"{folder} already exists. Choose a new folder with --out")
