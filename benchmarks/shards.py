"""Compare many small files with shards when a dataset is read for the first time, with a cold
cache.

    python benchmarks/shards.py FOLDER --images 5000 --rounds 3

The script writes generated JPEGs of about ``--kilobytes`` into FOLDER, which must be on the disk to
measure, packs them with `write_shards`, and removes both at the end. Three ways of reading take
turns:

- in order: the bytes of every image, in the order of the dataset, as training reads them first
- shuffled: the same in the order of an epoch, as training reads what does not fit in its caches
- first pass: read, hash and decode every image in order, which is all that training does with files

Files are checked for size only; images in shards also for their tar header and SHA-256. Before each
reading, the system's cache is emptied (root only; it slows other programs for a while). Without
permission, only the files' contents leave the cache, and small files look faster than they are. The
results are medians of the rounds, in images per second of wall time.
"""

from __future__ import annotations

import argparse
import io
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from resnetkit.data import files
from resnetkit.data.cache import scan
from resnetkit.data.folder import Split, read_dataset
from resnetkit.data.preprocessing import Preprocessing
from resnetkit.data.sampling import epoch_order
from resnetkit.data.shard_writer import write_shards
from resnetkit.prefetch import prefetch_map

CLASSES = 20


def write_photos(folder: Path, count: int, kilobytes: int) -> None:
    """Write ``count`` JPEGs of noise, all different, in `CLASSES` folders."""
    side = max(16, int((kilobytes * 1000 / 1.05) ** 0.5))  # about 1.05 bytes per pixel
    rng = np.random.default_rng(0)
    for number in range(count):
        small = rng.integers(0, 256, (side // 2, side // 2, 3), np.uint8)
        parent = folder / f"class{number % CLASSES:02d}"
        parent.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        Image.fromarray(small).resize((side, side)).save(buffer, "JPEG", quality=90)
        (parent / f"{number:07d}.jpg").write_bytes(buffer.getvalue())


def empty_cache(folders: list[Path]) -> bool:
    """Empty the cache; return whether that includes the locations of the files."""
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3")
        return True
    except OSError:
        for file in (file for folder in folders for file in folder.rglob("*") if file.is_file()):
            with file.open("rb") as opened:
                os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return False


def read_in_order(split: Split, workers: int) -> None:
    for _ in prefetch_map(lambda i: files.read_file(split.path(i)), range(len(split)), workers):
        pass


def read_shuffled(split: Split, workers: int) -> None:
    order = epoch_order(split.labels, 0, epoch=0, batch_size=32, balanced=False, repeats=1)[
        :, 0
    ].tolist()
    for _ in prefetch_map(lambda i: files.read_file(split.path(i)), order, workers):
        pass


def first_pass(split: Split, workers: int) -> None:
    scan(split, Preprocessing(64, 56), workers, lambda text: None)


WAYS: dict[str, Callable[[Split, int], None]] = {
    "in order": read_in_order,
    "shuffled": read_shuffled,
    "first pass": first_pass,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--kilobytes", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    base = Path(tempfile.mkdtemp(dir=options.folder))
    try:
        write_photos(base / "photos", options.images, options.kilobytes)
        start = time.perf_counter()
        written = write_shards(base / "photos", base / "shards")
        seconds = time.perf_counter() - start
        total = sum(shard.bytes for shard in written.manifest.shards)
        print(f"python {platform.python_version()}, {os.cpu_count()} cores, load {os.getloadavg()}")
        print(
            f"{options.images:,} images in {len(written.manifest.shards)} shards, "
            f"{total / 1e6:,.1f} MB in total, packed in {seconds:.1f} s; {options.workers} threads"
        )
        times: dict[tuple[str, str], list[float]] = {}
        is_cold = True
        for _ in range(options.rounds):
            for way, read in WAYS.items():
                for form in ("photos", "shards"):
                    split = read_dataset(base / form).splits["all"]
                    is_cold &= empty_cache([base])
                    start = time.perf_counter()
                    read(split, options.workers)
                    times.setdefault((way, form), []).append(time.perf_counter() - start)
        if not is_cold:
            print("No permission to empty the system's cache: the locations of files stayed in it.")
        for way in WAYS:
            photos, shards = (
                [options.images / value for value in times[way, form]]
                for form in ("photos", "shards")
            )
            ratio = statistics.median(shards) / statistics.median(photos)
            print(
                f"{way:10}  files {statistics.median(photos):8,.0f}/s ({_range(photos)})  "
                f"shards {statistics.median(shards):8,.0f}/s ({_range(shards)})  x {ratio:.2f}"
            )
    finally:
        shutil.rmtree(base)


def _range(values: list[float]) -> str:
    return f"{min(values):,.0f} to {max(values):,.0f}"


if __name__ == "__main__":
    sys.exit(main())
