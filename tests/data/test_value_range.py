from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from resnetkit.data import folder
from resnetkit.data.check import check_dataset
from resnetkit.data.preprocessing import Preprocessing
from resnetkit.data.value_range import find_value_range
from resnetkit.errors import DataError, ModelFileError
from resnetkit.evaluation.evaluate import evaluate
from resnetkit.inference.predictor import load
from resnetkit.models.weights import modelfile
from resnetkit.training.loop import train

KINDS = {
    "8 bits": (np.uint8, 0, 250, None),
    "8 bits in 16": (np.uint16, 0, 250, (0, 255)),
    "10 bits in 16": (np.uint16, 3, 1000, (0, 1023)),
    "12 bits in 16": (np.uint16, 3, 4000, (0, 4095)),
    "14 bits in 16": (np.uint16, 0, 16_000, (0, 16_383)),
    "16 bits": (np.uint16, 0, 60_000, None),
    "12 bits in 32": (np.int32, 0, 4000, (0, 4095)),
    "CT": (np.int32, -1024, 3000, (-1024, 3000)),
    "fractions": (np.float32, 0, 0.75, (0, 1)),
    "just over 1": (np.float32, 0, 1.001, (0, 1.001)),
    "large fractions": (np.float32, 0, 1020, (0, 1020)),
    "around 0": (np.float32, -1, 1, (-1, 1)),
}


def stripes(seed: int, kind: type, low: float, high: float) -> Image.Image:
    """Return vertical or horizontal stripes between two numbers, both of which occur."""
    wave = 0.5 + 0.5 * np.sin(np.arange(40) / (3 + seed % 3) + seed)
    values = low + (high - low) * (wave - wave.min()) / (wave.max() - wave.min())
    grid = np.repeat(values[None], 40, 0)
    return Image.fromarray(np.ascontiguousarray(grid if seed % 2 else grid.T).astype(kind))


def write(root, kind, low, high, count=8, start=0, extension="tif"):
    for i in range(start, start + 2 * count):
        (root / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        stripes(i, kind, low, high).save(root / "ab"[i % 2] / f"{i}.{extension}")
    return root


@pytest.mark.parametrize("name", KINDS)
def test_the_range_of_a_dataset(tmp_path, name):
    kind, low, high, expected = KINDS[name]
    split = folder.read_dataset(write(tmp_path / "d", kind, low, high)).splits["all"]
    found = find_value_range([split], 2)
    assert found == (expected if expected is None else pytest.approx(expected))
    # All images share one range, so equal values become equally bright.
    preset = Preprocessing(40, 40, value_range=found)
    seen = np.stack([preset.pixels(split.path(i))[..., 0] for i in range(len(split))])
    span = found or (0, {np.uint8: 255, np.uint16: 65535}[kind])
    with Image.open(split.path(0)) as image:
        share = (np.asarray(image).astype(np.float64) - span[0]) / (span[1] - span[0])
    assert np.abs(seen[0] - np.rint(255 * share)).max() <= 1
    assert seen.max() > 180


@pytest.mark.parametrize(
    "others", [("fractions",), ("CT",), ("8 bits",), ("fractions", "8 bits"), ("CT", "16 bits")]
)
def test_images_of_several_kinds_are_an_error(tmp_path, others):
    root = write(tmp_path / "d", *KINDS["12 bits in 16"][:3])
    for number, name in enumerate(others, 1):
        write(root, *KINDS[name][:3], count=1, start=100 * number)
    with pytest.raises(DataError, match=r"several kinds: .*--set value_range=\["):
        find_value_range([folder.read_dataset(root).splits["all"]], 2)
    (issue,) = [f for f in check_dataset(root).issues if f.kind == "deep"]
    assert issue.level == "error"


def test_the_full_16_bits_may_be_mixed_with_8_bits(tmp_path):
    root = write(tmp_path / "d", *KINDS["16 bits"][:3])
    write(root, *KINDS["8 bits"][:3], count=1, start=100)
    assert find_value_range([folder.read_dataset(root).splits["all"]], 2) is None
    train_alone = write(tmp_path / "s/train", *KINDS["8 bits"][:3])
    write(tmp_path / "s/val", *KINDS["12 bits in 16"][:3], count=1)
    splits = folder.read_dataset(train_alone.parent).splits
    with pytest.raises(DataError, match="several kinds"):
        find_value_range([splits["train"], splits["val"]], 2)


def test_the_model_file_carries_the_range(tmp_path, small, capsys):
    root = write(tmp_path / "d", *KINDS["12 bits in 16"][:3])
    run = train(root, out=tmp_path / "run", **small)
    assert "0 becomes black and 4,095 becomes white" in capsys.readouterr().err
    header = modelfile.read_header(run.model)
    assert header.preprocessing.value_range == (0, 4095)
    assert header.recipe["value_range"] == [0, 4095]
    assert evaluate(run.model, root, "val").metrics["accuracy"] == run.metrics["accuracy"]
    # The prediction is the same as for an image that NumPy converted to 8 bits.
    image = stripes(5, *KINDS["12 bits in 16"][:3])
    plain = np.rint(np.asarray(image) * (255 / 4095)).astype(np.uint8)
    predictor = load(run.model)
    assert predictor(image).top == predictor(plain).top
    issue = {f.kind: f for f in check_dataset(root).issues}["deep"]
    assert "in training, 0 becomes black and 4,095 becomes white" in issue.text
    own = train(root, out=tmp_path / "own", **small, value_range=(0, 65535))
    assert modelfile.read_header(own.model).preprocessing.value_range == (0, 65535)


def test_models_older_than_value_ranges_still_guess(tmp_path, trained):
    """The recipe in such a model has no value_range, and each image has its own range."""
    fractions = Image.fromarray(np.full((9, 9), 0.5, np.float32))
    with pytest.raises(Exception, match="value_range"):
        load(trained / "model.safetensors")(fractions)
    network, header = modelfile.read(trained / "model.safetensors")
    del header.recipe["value_range"]
    modelfile.write(tmp_path / "old.safetensors", network.state_dict(), header)
    old = modelfile.read_header(tmp_path / "old.safetensors").preprocessing
    assert old.pixels(fractions).max() == 128
    assert "value_range" not in header.preprocessing.to_dict()  # so older versions can read it


@pytest.mark.parametrize("bad", [[1], [2, 1], [0, None], "other", [0, float("inf")], 5])
def test_an_invalid_range_is_refused(bad):
    values = {**Preprocessing(8, 8).to_dict(), "value_range": bad}
    with pytest.raises(ModelFileError):
        Preprocessing.from_dict(values)


def test_16_bit_colors_have_the_range_of_their_dataset(tmp_path, small, deep_png):
    rng = np.random.default_rng(4)
    values = rng.integers(0, 4096, (12, 32, 32, 3))
    for number, image in enumerate(values):
        path = tmp_path / f"d/{'ab'[number % 2]}/{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(deep_png(image))
    run = train(tmp_path / "d", out=tmp_path / "run", **small)
    assert modelfile.read_header(run.model).preprocessing.value_range == (0, 4095)
    predictor = load(run.model)
    plain = np.rint(values[0] * (255 / 4095)).astype(np.uint8)
    assert predictor(tmp_path / "d/a/0.png").top == predictor(plain).top
    mixed = tmp_path / "d/a/8bit.png"
    Image.fromarray(plain).save(mixed)
    with pytest.raises(DataError, match=r"several kinds: 12 16-bit .*, 1 8-bit"):
        find_value_range([folder.read_dataset(tmp_path / "d").splits["all"]], 2)
