"""Compare the data path with its peers: training images of 224 px per second, on one core.

    OMP_NUM_THREADS=1 GOMP_SPINCOUNT=10000 python benchmarks/data_path.py --rounds 5
    python benchmarks/data_path.py --list 1000000        (what listing many files costs)

The photos are generated: JPEGs of 500x375 and 4000x3000, quality 85. Every method produces batches
of training images, cropped at random (8 to 100% of the area) and mirrored at random:

- Pillow and torchvision's transforms v1, as in every tutorial; normalized
- torchvision's ``decode_jpeg`` and transforms v2; normalized, and once more left in uint8
- timm's own training transform; normalized
- ours, first epoch: hash and decode everything to 256 px, then crop from that; uint8
- ours, later epochs: crop from pixels kept in memory, and from the file on disk; uint8
- the same, normalized

The peers read through ``DataLoader(num_workers=0)``, ours through its own loader without threads.
All methods take turns in one process. The results are medians of the rounds, in CPU seconds because
the machine may be shared (``--clock wall`` for wall time). Needs ``pip install timm``.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

PRESET_SIZE, CROP, BATCH = 256, 224, 32
SCALE = (0.08, 1.0)
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def photo(width: int, height: int, seed: int) -> bytes:
    """Return a generated photo as JPEG: noise at all scales, stronger at larger ones, and grain."""
    rng = np.random.default_rng(seed)
    total = torch.zeros(1, 3, height, width)
    for octave in range(2, 10):
        cells = 2**octave
        shape = (1, 3, min(cells, height) + 1, min(cells, width) + 1)
        noise = torch.from_numpy(rng.normal(0, 60 / octave**1.3, shape).astype(np.float32))
        total += F.interpolate(noise, (height, width), mode="bilinear")
    total += torch.from_numpy(rng.normal(0, 9, total.shape).astype(np.float32))
    pixels = (total[0].permute(1, 2, 0) + 128).clamp(0, 255).to(torch.uint8).numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def write_photos(folder: Path, width: int, height: int, count: int) -> list[Path]:
    paths = []
    for number in range(count):
        path = folder / "train" / ("odd" if number % 2 else "even") / f"{number:04d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(photo(width, height, number))
        paths.append(path)
    return paths


class Listed(torch.utils.data.Dataset[tuple[torch.Tensor, int]]):
    def __init__(self, paths: list[Path], make: Callable[[Path], torch.Tensor]) -> None:
        self.paths, self.make = paths, make

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.make(self.paths[index]), 0


def peers() -> dict[str, Callable[[Path], torch.Tensor]]:
    from timm.data import create_transform
    from torchvision import transforms as v1
    from torchvision.io import ImageReadMode, decode_jpeg, read_file
    from torchvision.transforms import v2

    old = [v1.RandomResizedCrop(CROP, scale=SCALE), v1.RandomHorizontalFlip()]
    first = v1.Compose([*old, v1.ToTensor(), v1.Normalize(MEAN, STD)])
    cut = [v2.RandomResizedCrop(CROP, scale=SCALE, antialias=True), v2.RandomHorizontalFlip()]
    finish = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    second, second_uint8 = v2.Compose(cut + finish), v2.Compose(cut)
    timms = create_transform(CROP, is_training=True, color_jitter=0.0, interpolation="bilinear")

    def pillow(path: Path) -> Image.Image:
        with Image.open(path) as image:
            return image.convert("RGB")

    def tensor(path: Path) -> torch.Tensor:
        return decode_jpeg(read_file(str(path)), mode=ImageReadMode.RGB)

    return {
        "Pillow + torchvision v1": lambda path: first(pillow(path)),
        "decode_jpeg + torchvision v2": lambda path: second(tensor(path)),
        "decode_jpeg + torchvision v2, uint8": lambda path: second_uint8(tensor(path)),
        "timm": lambda path: timms(pillow(path)),
    }


def ways(folder: Path, paths: list[Path], batch: int) -> dict[str, Callable[[], object]]:
    """Return the methods, by name; each runs one epoch."""
    from resnetkit.data import cache
    from resnetkit.data import folder as folders
    from resnetkit.data.dataset import Images
    from resnetkit.data.loader import Loader
    from resnetkit.data.preprocessing import Preprocessing
    from resnetkit.data.transforms import Augmentation, normalize

    preset, augmentation = Preprocessing(PRESET_SIZE, CROP), Augmentation(crop_scale=SCALE)
    part = folders.read_dataset(folder).splits["train"]
    epoch = iter(range(10**9))

    def peer(make: Callable[[Path], torch.Tensor]) -> Callable[[], None]:
        loader = torch.utils.data.DataLoader(Listed(paths, make), batch, shuffle=True)
        return lambda: consume(tensors for tensors, _ in loader)

    def cut(images: Images, normalized: bool = False) -> None:
        batches = Loader(images, batch, 0).training(augmentation, CROP, 0, next(epoch))
        tensors = (one.images for one in batches)
        consume(normalize(one, preset) for one in tensors) if normalized else consume(tensors)

    def scan() -> Images:
        return cache.scan(part, preset, 0, lambda text: None).images

    available = cache.available_memory

    def on_disk() -> Images:
        cache.available_memory = lambda: 1000
        found = scan()
        cache.available_memory = available
        return found

    memory, disk = scan(), on_disk()
    return {
        **{name: peer(make) for name, make in peers().items()},
        "ours, first epoch": lambda: cut(scan()),
        "ours, first epoch, normalized": lambda: cut(scan(), True),
        "ours, later, from memory": lambda: cut(memory),
        "ours, later, from the file": lambda: cut(disk),
        "ours, later, from memory, normalized": lambda: cut(memory, True),
        "ours, a later run: hash all files, find their pixels": on_disk,
    }


def consume(batches: Iterator[torch.Tensor]) -> None:
    for images in batches:
        assert images.shape[-2:] == (CROP, CROP)


def measure(width: int, height: int, count: int, rounds: int, clock: Callable[[], float]) -> None:
    with tempfile.TemporaryDirectory() as name:
        os.environ["RESNETKIT_CACHE"] = f"{name}/cache"
        paths = write_photos(Path(name) / "photos", width, height, count)
        size = sum(path.stat().st_size for path in paths) / count
        every = ways(Path(name) / "photos", paths, min(BATCH, count))
        taken: dict[str, list[float]] = {way: [] for way in every}
        for number in range(rounds + 1):
            for way, run in every.items():
                fast = 8 if "later" in way else 1  # epochs, so that there is enough time to measure
                start = clock()
                for _ in range(fast):
                    run()
                if number:  # the first round warms up
                    taken[way].append((clock() - start) / fast)
    rates = {way: count / statistics.median(times) for way, times in taken.items()}
    slow = rates["Pillow + torchvision v1"]
    fast = max(rate for way, rate in rates.items() if not way.startswith("ours"))
    natural = max(r for w, r in rates.items() if not w.startswith("ours") and "uint8" not in w)
    print(f"\n{count} photos of {width}x{height}, {size / 1000:,.0f} KB each, {rounds} rounds\n")
    print("| method | images/s | spread | x v1 | x best peer | x best normalized peer |")
    print("|---|---|---|---|---|---|")
    for way, rate in rates.items():
        times = taken[way]
        spread = f"{count / max(times):,.0f} to {count / min(times):,.0f}"
        ratios = f"{rate / slow:.2f} | {rate / fast:.2f} | {rate / natural:.2f}"
        print(f"| {way} | {rate:,.1f} | {spread} | {ratios} |", flush=True)


LIST = """
import json, sys, time
from resnetkit.data import folder
def kilobytes(name):
    return int(next(l for l in open("/proc/self/status") if l.startswith(name)).split()[1])
before, wall, cpu = kilobytes("VmRSS"), time.perf_counter(), time.process_time()
data = folder.read_dataset(sys.argv[1])
wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
peak, kept = (kilobytes(name) - before for name in ("VmHWM", "VmRSS"))
print(f"| {len(data.splits['train']):,} | {wall:.1f} | {cpu:.1f} | {peak / 1000:.0f} |"
      f" {kept / 1000:.0f} |")
"""


def dataset(count: int) -> None:
    """Print the seconds and memory of listing empty files in 1,000 folders, and a CSV."""
    with tempfile.TemporaryDirectory() as name:
        folder, manifest = Path(name) / "files", Path(name) / "manifest.csv"
        names = [f"n{label:08d}" for label in range(1000)]
        with manifest.open("w") as rows:
            rows.write("path,label,split\n")
            for label in names:
                (folder / "train" / label).mkdir(parents=True)
                for number in range(count // 1000):
                    path = f"train/{label}/{label}_{number:08d}.JPEG"
                    os.close(os.open(folder / path, os.O_CREAT | os.O_WRONLY))
                    rows.write(f"{path},{label},train\n")
        print("\n| source | files | seconds | CPU seconds | peak MB added | MB kept |")
        print("|---|---|---|---|---|---|")
        for what, data in (("folders", folder), ("manifest", manifest)):
            done = subprocess.run(
                [sys.executable, "-c", LIST, str(data)], capture_output=True, text=True, check=True
            )
            print(f"| {what} {done.stdout.strip()}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--small", type=int, default=512, help="photos of 500x375")
    parser.add_argument("--large", type=int, default=16, help="photos of 4000x3000")
    parser.add_argument("--clock", choices=("cpu", "wall"), default="cpu")
    parser.add_argument("--list", type=int, metavar="FILES", help="measure listing only")
    args = parser.parse_args()
    if args.list:
        dataset(args.list)
        return
    import timm

    from resnetkit.runtime import environment

    torch.set_num_threads(1)
    machine = environment(torch.device("cpu"))
    machine["versions"]["timm"] = timm.__version__
    print(json.dumps(machine, indent=1))
    clock = time.process_time if args.clock == "cpu" else time.perf_counter
    measure(500, 375, args.small, args.rounds, clock)
    measure(4000, 3000, args.large, args.rounds, clock)


if __name__ == "__main__":
    main()
