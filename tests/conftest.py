"""Datasets and images that the tests generate."""

from __future__ import annotations

import logging
import os
import signal
import struct
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

# The tests' networks are tiny: one thread is fastest, and leaves the other cores to other tests.
os.environ.setdefault("OMP_NUM_THREADS", "1")


OURS = ("RESNETKIT", "OMP_", "ATEN_", "ONEDNN_", "WORLD_SIZE", "RANK", "LOCAL_", "HOME", "PATH")


def _process() -> dict[str, object]:
    """Return the process-wide state, which every later test in this process inherits."""
    found: dict[str, object] = {
        "signals": {one: signal.getsignal(one) for one in signal.valid_signals()},
        "folder": os.getcwd(),
        # PyTorch's compiler and pytest set variables of their own.
        "environment": {key: value for key, value in os.environ.items() if key.startswith(OURS)},
    }
    if sys.platform == "linux":
        lines = Path("/proc/self/status").read_text().splitlines()
        found["umask"] = [line for line in lines if line.startswith("Umask:")]
    if "resnetkit.progress" in sys.modules:
        found["log level"] = logging.getLogger("resnetkit").level
    if torch := sys.modules.get("torch"):
        found["compute threads"] = torch.get_num_threads()
        found["deterministic"] = torch.are_deterministic_algorithms_enabled()
        found["dtype"] = torch.get_default_dtype()
        found["gradients"] = torch.is_grad_enabled()
    return found


@pytest.fixture(autouse=True)
def _nothing_stays_behind() -> Iterator[None]:
    before = _process()
    yield
    after = _process()
    assert {key: after[key] for key in before} == before


@pytest.fixture(autouse=True)
def _own_cache(
    _nothing_stays_behind: None,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Keep tests off the internet, and away from the user's cache of weights."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path_factory.getbasetemp() / "torch"))
    monkeypatch.setenv("RESNETKIT_OFFLINE", "1")


COLORS = {"blue": (40, 60, 200), "green": (40, 180, 60), "red": (210, 40, 40)}


def draw(color: str, number: int, size: tuple[int, int] = (40, 36)) -> Image.Image:
    """Return a colored square on gray noise; its position depends on the number."""
    rng = np.random.default_rng([sorted(COLORS).index(color), number])
    noise = rng.integers(90, 170, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    left, top = (int(v) for v in rng.integers(0, 14, 2))
    ImageDraw.Draw(image).rectangle((left, top, left + 18, top + 18), fill=COLORS[color])
    return image


def write(folder: Path, per_class: int, start: int = 0, extension: str = "png") -> Path:
    for color in COLORS:
        (folder / color).mkdir(parents=True)
        for number in range(start, start + per_class):
            draw(color, number).save(folder / color / f"{number:03d}.{extension}")
    return folder


@pytest.fixture
def flat_folder(tmp_path: Path) -> Path:
    """Three classes of 16 images, without splits."""
    return write(tmp_path / "squares", 16)


@pytest.fixture
def split_folder(tmp_path: Path) -> Path:
    """Three classes, 12 training and 6 validation images of each."""
    write(tmp_path / "parts" / "train", 12)
    write(tmp_path / "parts" / "validation", 6, start=100)
    return tmp_path / "parts"


SMALL = {
    "threads": 1,
    "model": "cifar_resnet20",
    "model_options": {"width": 8},
    "image_size": 32,
    "epochs": 2,
    "batch_size": 8,
    "precision": "fp32",
}


@pytest.fixture
def small() -> dict[str, object]:
    """Settings of a run that takes one second."""
    return dict(SMALL)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run on colored squares, read-only. Its data is in ``../data``."""
    from resnetkit import train

    base = tmp_path_factory.mktemp("trained")
    data = write(base / "data", 20)
    run = train(data, out=base / "run", **{**SMALL, "epochs": 6})
    return run.folder


@pytest.fixture(scope="session")
def save() -> Callable[..., Path]:
    return write


def _deep_png(values: np.ndarray) -> bytes:
    """Return a PNG of pixels (H, W, C) with 16 bits per channel."""
    height, width, channels = values.shape
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    chunks = (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.fixture
def deep_png() -> Callable[[np.ndarray], bytes]:
    """Return a PNG of 16-bit (H, W, C) pixels, also in color, which Pillow cannot write."""
    return _deep_png


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network with three classes and random weights, whose answers are far from ties."""
    import torch

    from resnetkit import models
    from resnetkit.data.preprocessing import Preprocessing
    from resnetkit.models.weights import modelfile

    options = {"num_classes": 3, "width": 4}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = models.get_model("cifar_resnet20", **options)
    network.fc.weight.data *= 3
    classes = ("blue", "green", "red")
    header = modelfile.Header("cifar_resnet20", options, classes, Preprocessing(32, 32))
    path = tmp_path_factory.mktemp("tiny") / "model.safetensors"
    modelfile.write(path, network.state_dict(), header)
    return path
