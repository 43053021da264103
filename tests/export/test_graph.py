"""The exported preprocessing matches Pillow's, and exported networks give the same answers."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

from resnetkit.data.preprocessing import STATISTICS, Preprocessing
from resnetkit.data.transforms import normalize
from resnetkit.export import sessions
from resnetkit.export.artefact import Manifest, read_artefact
from resnetkit.export.graph import resize_and_crop
from resnetkit.export.writers import write
from resnetkit.models import get_model


def slow(*values):
    """Return a parameter that only the slow tests use."""
    return pytest.param(*values, marks=pytest.mark.slow)


SIZES = [(375, 500), (500, 375), (77, 101), (20, 31), (64, 64), (1, 300), (300, 1), (640, 13)]


def scene(height, width, channels=3, seed=0):
    """Return an image with smooth areas and noise, ``(H, W, C)`` uint8."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (-(-height // 8), -(-width // 8), channels), dtype=np.uint8)
    smooth = np.stack(
        [
            np.asarray(Image.fromarray(coarse[..., i]).resize((width, height)))
            for i in range(channels)
        ],
        axis=2,
    )
    noise = rng.integers(-20, 21, smooth.shape)
    return (smooth.astype(int) + noise).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "hamming", "lanczos"])
@pytest.mark.parametrize(("resize", "crop"), [(256, 224), (96, 96), (100, 112)])
def test_resizing_is_that_of_pillow(interpolation, resize, crop):
    preprocessing = Preprocessing(resize, crop, decoder="full", interpolation=interpolation)
    for size in SIZES:
        pixels = scene(*size)
        expected = preprocessing.crop(preprocessing.pixels(pixels)).float()
        found = resize_and_crop(
            torch.from_numpy(pixels).permute(2, 0, 1)[None].float(), preprocessing
        )
        levels = (found[0] - expected).abs()
        assert found.shape[1:] == expected.shape
        if interpolation == "bilinear":
            assert torch.equal(found[0], expected), size
        else:
            assert float(levels.max()) <= 1, size
            assert float(levels.mean()) < 0.01, size  # Pillow rounds its weights from float64


@pytest.mark.parametrize("ending", [".onnx", slow(".xml"), slow(".pt2")])
def test_every_runtime_crops_exactly_as_pillow(ending, tmp_path):
    """The levels are equal, even where a weighted sum is halfway between two levels."""
    preprocessing = Preprocessing(73, 64, decoder="full")
    network = seeded("cifar_resnet20", width=4, num_classes=3)
    manifest = Manifest(entrance="image", classes=("a", "b", "c"), preprocessing=preprocessing)
    write(tmp_path / f"net{ending}", network, manifest, [])
    run = sessions.start(read_artefact(tmp_path / f"net{ending}"), ("cropped",), threads=1)
    rng = np.random.default_rng(0)
    for size in [(300, 400), (375, 500), (512, 640), (66, 99), (40, 30), (219, 1168), (847, 400)]:
        noise = rng.integers(0, 256, (2, *size, 3), dtype=np.uint8)
        found = run(noise)["cropped"]
        for pixels, crop in zip(noise, found, strict=True):
            expected = preprocessing.crop(preprocessing.pixels(pixels)).numpy()
            assert np.array_equal(crop, expected), (size, np.abs(crop - expected).max())


def test_squashing_is_that_of_pillow():
    preprocessing = Preprocessing(90, 80, decoder="full", squash=True)
    for size in SIZES:
        pixels = scene(*size)
        expected = preprocessing.crop(preprocessing.pixels(pixels)).float()
        found = resize_and_crop(
            torch.from_numpy(pixels).permute(2, 0, 1)[None].float(), preprocessing
        )
        assert torch.equal(found[0], expected), size


def session(path):
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def exported(network, preprocessing, folder, entrance="image"):
    """Return a session for the exported network, whose classes are numbered."""
    classes = tuple(map(str, range(network.fc.out_features)))
    manifest = Manifest(entrance=entrance, classes=classes, preprocessing=preprocessing)
    write(folder / "net.onnx", network, manifest, [])
    return session(folder / "net.onnx")


def seeded(name, **options):
    """Return a network whose batch norms have seen a batch, so that none is the identity."""
    torch.manual_seed(0)
    network = get_model(name, **options)
    with torch.no_grad():
        network.train()(torch.randn(4, options.get("in_channels", 3), 32, 32))
    return network.eval()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet18", {"width": 8}),
        slow("resnet50", {"width": 8}),
        slow("resnet50", {"width": 8, "replace_stride_with_dilation": [False, True, True]}),
        slow("resnet50", {"groups": 2, "width_per_group": 16}),
        slow("cifar_resnet20", {"width": 4}),
        ("cifar_resnet20", {"width": 4, "shortcut": "A"}),
        slow("resnet18", {"width": 8, "in_channels": 1}),
        ("resnet18", {"width": 8, "in_channels": 4}),
    ],
)
def test_answers_are_those_of_eager_pytorch_in_every_batch(name, options, tmp_path):
    network = seeded(name, num_classes=7, **options)
    channels = options.get("in_channels", 3)
    mean, std = STATISTICS[channels]
    preprocessing = Preprocessing(36, 32, mean, std, decoder="full")
    run = exported(network, preprocessing, tmp_path)
    pixels = scene(50, 61, 4 if channels == 4 else 3)
    mode = Image.fromarray(pixels).convert("L") if channels == 1 else Image.fromarray(pixels)
    crop = preprocessing.crop(preprocessing.pixels(mode))
    with torch.inference_mode():
        expected = network(normalize(crop[None], preprocessing))[0].numpy()
    (alone,) = run.run(["logits"], {"image": pixels[None]})
    spread = expected.std()
    assert np.abs(alone[0] - expected).max() < 0.05 * spread + 1e-4
    others = np.stack([scene(50, 61, pixels.shape[2], seed) for seed in range(1, 64)])
    for count in (2, 7, 64):
        batch = np.concatenate([pixels[None], others])[:count]
        logits, shares = run.run(None, {"image": batch})
        assert np.abs(logits[0] - alone[0]).max() < 1e-4 * spread + 1e-6
        assert shares.shape == (count, 7)
        assert np.abs(shares.sum(1) - 1).max() < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnext50_32x4d",
        "resnext101_32x8d", "resnext101_64x4d", "wide_resnet50_2", "wide_resnet101_2",
    ],
)  # fmt: skip
def test_every_published_architecture_exports(name, tmp_path):
    network = seeded(name, num_classes=5, width=16)  # unscaled, the largest needs 4 GB to export
    preprocessing = Preprocessing(64, 64, decoder="full")
    run = exported(network, preprocessing, tmp_path, "crop")
    pixels = scene(64, 64)
    with torch.inference_mode():
        image = torch.from_numpy(pixels).permute(2, 0, 1)[None]
        expected = network(normalize(image, preprocessing))[0].numpy()
    (found,) = run.run(["logits"], {"crop": pixels[None]})
    assert np.abs(found[0] - expected).max() < 1e-3 * expected.std() + 1e-5


def test_the_file_has_two_outputs_and_one_input(tmp_path):
    preprocessing = Preprocessing(36, 32, decoder="full")
    run = exported(seeded("cifar_resnet20", width=4, num_classes=3), preprocessing, tmp_path)
    assert [(item.name, item.type) for item in run.get_inputs()] == [("image", "tensor(uint8)")]
    assert [item.name for item in run.get_outputs()] == ["logits", "probabilities"]
    assert run.get_inputs()[0].shape[3] == 3
    assert run.get_outputs()[0].shape[1] == 3


@pytest.mark.parametrize(
    ("resize", "crop", "squash"), [(40, 36, False), (64, 60, False), (64, 64, True)]
)
def test_transparency_is_resized_as_by_pillow(resize, crop, squash):
    mean, std = STATISTICS[4]
    preprocessing = Preprocessing(resize, crop, mean, std, decoder="full", squash=squash)
    for size in [(50, 61), (64, 64), (64, 90), (30, 20)]:
        pixels = scene(*size, 4)
        pixels[: size[0] // 3, :, 3] = 0
        expected = preprocessing.crop(preprocessing.pixels(pixels)).float()
        found = resize_and_crop(
            torch.from_numpy(pixels).permute(2, 0, 1)[None].float(), preprocessing
        )
        levels = (found[0] - expected).abs()
        visible = expected[3] > 16  # where almost nothing is visible, colors have few levels
        assert float(levels[3].max()) <= 2, size
        assert float((levels[:3, visible] <= 2).float().mean()) > 0.98, size
        if min(size) == resize and (not squash or max(size) == resize):
            assert float(levels.max()) == 0
