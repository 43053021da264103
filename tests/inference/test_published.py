"""Converted model files match torchvision, from the image file to the logits."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image, ImageOps
from torchvision.transforms._presets import ImageClassification as Preset

from resnetkit.data.preprocessing import Preprocessing
from resnetkit.errors import WeightsError
from resnetkit.inference.predictor import Predictor
from resnetkit.models import convert
from resnetkit.models.weights import ResNet18_Weights, modelfile
from resnetkit.models.weights.download import hash_in_name

SIZES = [(500, 375), (301, 517), (1601, 1203), (97, 64), (256, 256), (224, 900), (33, 600)]


def make_photo(size: tuple[int, int], mode: str = "RGB") -> Image.Image:
    width, height = size
    rng = np.random.default_rng([width, height])
    small = Image.fromarray(rng.integers(0, 256, (7, 9, 4), dtype=np.uint8), "RGBA")
    smooth = np.asarray(small.resize(size, Image.Resampling.BICUBIC)).astype(int)
    noisy = (smooth + rng.integers(-20, 21, smooth.shape)).clip(0, 255).astype(np.uint8)
    return Image.fromarray(noisy, "RGBA").convert(mode)


def encode(image: Image.Image, format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def decode_upright(contents: bytes) -> Image.Image:
    """Return an image as input to torchvision's preset: upright, RGB, over white."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(contents)))
    if image.mode != "RGBA":
        return image.convert("RGB")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB")


def encoded_cases() -> list[bytes]:
    rotated = Image.Exif()
    rotated[0x0112] = 6
    return [
        *(encode(make_photo(size), "JPEG", quality=90) for size in SIZES),
        encode(make_photo((640, 427)), "JPEG", progressive=True),
        encode(make_photo((400, 300)), "JPEG", exif=rotated),
        encode(make_photo((300, 400), "L"), "JPEG"),
        encode(make_photo((300, 200), "CMYK"), "JPEG"),
        encode(make_photo((280, 350), "RGBA"), "PNG"),
        encode(make_photo((280, 350), "L"), "PNG"),
        encode(make_photo((280, 350)).quantize(64), "PNG"),
    ]


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """A converted network; the preset does not depend on the weights, so they are random."""
    folder = tmp_path_factory.mktemp("published")
    torch.manual_seed(0)
    network = torchvision.models.resnet18().eval()
    torch.save(network.state_dict(), folder / "r.pth")
    convert(folder / "r.pth", folder / "m.safetensors", classes="imagenet")
    return network, folder / "m.safetensors"


@pytest.mark.parametrize("case", range(len(encoded_cases())))
def test_the_same_logits_from_a_file(converted, case, tmp_path):
    network, file = converted
    contents = encoded_cases()[case]
    (tmp_path / "photo.jpg").write_bytes(contents)
    predictor = Predictor(file, "cpu")
    preset = Preset(crop_size=224, resize_size=256)
    with torch.inference_mode():
        expected = network(preset(decode_upright(contents))[None])[0]
    answer = predictor(tmp_path / "photo.jpg", top_k=1000)
    found = dict(answer.top)
    ordered = torch.tensor([found[name] for name in dict.fromkeys(predictor.classes)])
    assert predictor.preprocessing.decoder == "full"
    prepared = predictor.preprocessing.crop(predictor.preprocessing.pixels(contents))
    assert torch.equal(prepared, preset_pixels(preset, decode_upright(contents)))
    wanted = expected.softmax(0)
    kept = [predictor.classes.index(name) for name in dict.fromkeys(predictor.classes)]
    twice = {n for n in predictor.classes if predictor.classes.count(n) > 1}
    unique = [i for i, k in enumerate(kept) if predictor.classes[k] not in twice]
    assert torch.allclose(ordered[unique], wanted[kept][unique], rtol=1e-4, atol=1e-9)


def resized_width_first(image: Image.Image, side: int) -> Image.Image:
    """Resize as torchvision does, but in the order of Pillow 12 even with Pillow 13."""
    size = torchvision.transforms.functional.resize(image, side).size
    narrow = image.resize((size[0], image.height), Image.Resampling.BILINEAR)
    return narrow.resize(size, Image.Resampling.BILINEAR)


def preset_pixels(preset: Preset, image: Image.Image) -> torch.Tensor:
    """Return the preset's output before normalizing, ``(3, 224, 224)`` uint8."""
    plain = Preset(crop_size=224, resize_size=256, mean=(0, 0, 0), std=(1, 1, 1))
    return (plain(image) * 255).round().to(torch.uint8)


@pytest.mark.parametrize("sizes", [(256, 224), (232, 224), (40, 64), (32, 32)])
def test_the_same_pixels_for_other_sizes_and_from_memory(sizes):
    resize_size, crop_size = sizes
    ours = Preprocessing(resize_size, crop_size, decoder="full")
    preset = Preset(crop_size=crop_size, resize_size=resize_size, mean=(0, 0, 0), std=(1, 1, 1))
    for size in SIZES:
        image = make_photo(size)
        expected = (preset(resized_width_first(image, resize_size)) * 255).round().to(torch.uint8)
        for given in (encode(image, "PNG"), image, np.asarray(image)):
            assert torch.equal(ours.crop(ours.pixels(given)), expected)


def test_a_very_narrow_image_takes_little_memory():
    found = Preprocessing(256, 224, decoder="full").pixels(encode(make_photo((1, 10_000)), "PNG"))
    assert found.shape == (5120, 256, 3)


def test_converted_models_decode_at_full_size_and_trained_ones_scaled(
    tmp_path, monkeypatch, trained
):
    network = torchvision.models.resnet18()
    torch.save(network.state_dict(), tmp_path / "r.pth")
    found = convert(tmp_path / "r.pth", tmp_path / "plain.safetensors")
    assert "decoded at full size" in found.notes[-1]
    plain = modelfile.read_header(tmp_path / "plain.safetensors").preprocessing
    large = encode(make_photo((1601, 1203)), "JPEG", quality=90)
    preset = Preset(crop_size=224, resize_size=256)  # the usual preset for such models
    assert torch.equal(
        plain.crop(plain.pixels(large)), preset_pixels(preset, decode_upright(large))
    )
    published = hash_in_name(ResNet18_Weights.IMAGENET1K_V1.url)
    monkeypatch.setattr("resnetkit.models.weights.convert.sha256", lambda path: published)
    convert(tmp_path / "r.pth", tmp_path / "known.safetensors")
    header = modelfile.read_header(tmp_path / "known.safetensors")
    assert header.preprocessing == Preprocessing(256, 224, decoder="full")
    trained_header = modelfile.read_header(trained / "model.safetensors")
    assert trained_header.preprocessing.decoder == "scaled"


@pytest.mark.parametrize("channels", [1, 4])
def test_converted_networks_with_other_channels_see_the_same_pixels(tmp_path, channels):
    torch.manual_seed(0)
    network = torchvision.models.resnet18(num_classes=5)
    network.conv1 = torch.nn.Conv2d(channels, 64, 7, 2, 3, bias=False)
    torch.save(network.state_dict(), tmp_path / "r.pth")
    found = convert(tmp_path / "r.pth", tmp_path / "m.safetensors")
    assert any(f"takes {channels} channel" in note for note in found.notes)
    predictor = Predictor(tmp_path / "m.safetensors", "cpu")
    image = make_photo((500, 375), "L" if channels == 1 else "RGBA")
    plain = Preset(crop_size=224, resize_size=256, mean=(0,) * channels, std=(1,) * channels)
    expected = (plain(image) * 255).round().to(torch.uint8)
    for given in (encode(image, "PNG"), image):
        pixels = predictor.preprocessing.crop(predictor.preprocessing.pixels(given))
        assert torch.equal(pixels, expected)
    mean, std = predictor.preprocessing.mean, predictor.preprocessing.std
    preset = Preset(crop_size=224, resize_size=256, mean=mean, std=std)
    with torch.inference_mode():
        wanted = network.eval()(preset(image)[None])[0].softmax(0)
    answer = dict(predictor(encode(image, "PNG"), top_k=5).top)
    assert torch.allclose(torch.tensor([answer[str(i)] for i in range(5)]), wanted, rtol=1e-4)
    # Older versions wrote three means and deviations; reading corrects them.
    tensors, header = modelfile.read(tmp_path / "m.safetensors")
    old = replace(header, preprocessing=Preprocessing(256, 224, decoder="full"))
    modelfile.write(tmp_path / "old.safetensors", tensors.state_dict(), old)
    assert modelfile.read_header(tmp_path / "old.safetensors") == header


def test_networks_with_other_channels_than_images_are_refused(tmp_path):
    network = torchvision.models.resnet18()
    network.conv1 = torch.nn.Conv2d(6, 64, 7, 2, 3, bias=False)
    torch.save(network.state_dict(), tmp_path / "r.pth")
    with pytest.raises(WeightsError, match="takes 6 channels, but images have 1"):
        convert(tmp_path / "r.pth", tmp_path / "m.safetensors")
