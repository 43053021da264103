"""Model files of published weights answer as torchvision does, from the file to the logits."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image, ImageOps
from torchvision.transforms._presets import ImageClassification as Preset

from resnetkit.data.transforms import Preprocessing
from resnetkit.errors import WeightsError
from resnetkit.inference.predictor import Predictor
from resnetkit.models import convert
from resnetkit.models.weights import ResNet18_Weights, modelfile

SIZES = [(500, 375), (301, 517), (1601, 1203), (97, 64), (256, 256), (224, 900), (33, 600)]


def photo(size: tuple[int, int], mode: str = "RGB") -> Image.Image:
    width, height = size
    rng = np.random.default_rng([width, height])
    small = Image.fromarray(rng.integers(0, 256, (7, 9, 4), dtype=np.uint8), "RGBA")
    smooth = np.asarray(small.resize(size, Image.Resampling.BICUBIC)).astype(int)
    noisy = (smooth + rng.integers(-20, 21, smooth.shape)).clip(0, 255).astype(np.uint8)
    return Image.fromarray(noisy, "RGBA").convert(mode)


def saved(image: Image.Image, format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def theirs(contents: bytes) -> Image.Image:
    """Upright, in RGB, over white: what torchvision's preset is given."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(contents)))
    if image.mode != "RGBA":
        return image.convert("RGB")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB")


def cases() -> list[bytes]:
    turned = Image.Exif()
    turned[0x0112] = 6
    return [
        *(saved(photo(size), "JPEG", quality=90) for size in SIZES),
        saved(photo((640, 427)), "JPEG", progressive=True),
        saved(photo((400, 300)), "JPEG", exif=turned),
        saved(photo((300, 400), "L"), "JPEG"),
        saved(photo((300, 200), "CMYK"), "JPEG"),
        saved(photo((280, 350), "RGBA"), "PNG"),
        saved(photo((280, 350), "L"), "PNG"),
        saved(photo((280, 350)).quantize(64), "PNG"),
    ]


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """The preset's numbers do not depend on the weights: random ones will do."""
    folder = tmp_path_factory.mktemp("published")
    torch.manual_seed(0)
    network = torchvision.models.resnet18().eval()
    torch.save(network.state_dict(), folder / "r.pth")
    convert(folder / "r.pth", folder / "m.safetensors", classes="imagenet")
    return network, folder / "m.safetensors"


@pytest.mark.parametrize("case", range(len(cases())))
def test_the_same_logits_from_a_file(converted, case, tmp_path):
    network, file = converted
    contents = cases()[case]
    (tmp_path / "picture.jpg").write_bytes(contents)
    predictor = Predictor(file, "cpu")
    preset = Preset(crop_size=224, resize_size=256)
    with torch.inference_mode():
        expected = network(preset(theirs(contents))[None])[0]
    answer = predictor(tmp_path / "picture.jpg", top_k=1000)
    found = dict(answer.top)
    ordered = torch.tensor([found[name] for name in dict.fromkeys(predictor.classes)])
    assert predictor.preprocessing.decoder == "full"
    prepared = predictor.preprocessing.crop(predictor.preprocessing.pixels(contents))
    assert torch.equal(prepared, pixels_of(preset, theirs(contents)))
    wanted = expected.softmax(0)
    kept = [predictor.classes.index(name) for name in dict.fromkeys(predictor.classes)]
    twice = {n for n in predictor.classes if predictor.classes.count(n) > 1}
    once = [i for i, k in enumerate(kept) if predictor.classes[k] not in twice]
    assert torch.allclose(ordered[once], wanted[kept][once], rtol=1e-4, atol=1e-9)


def pixels_of(preset: Preset, image: Image.Image) -> torch.Tensor:
    """``(3, 224, 224)`` uint8: the preset before it normalises."""
    plain = Preset(crop_size=224, resize_size=256, mean=(0, 0, 0), std=(1, 1, 1))
    return (plain(image) * 255).round().to(torch.uint8)


@pytest.mark.parametrize("sizes", [(256, 224), (232, 224), (40, 64), (32, 32)])
def test_the_same_pixels_for_other_sizes_and_from_memory(sizes):
    resize_size, crop_size = sizes
    ours = Preprocessing(resize_size, crop_size, decoder="full")
    preset = Preset(crop_size=crop_size, resize_size=resize_size, mean=(0, 0, 0), std=(1, 1, 1))
    for size in SIZES:
        image = photo(size)
        expected = (preset(image) * 255).round().to(torch.uint8)
        for given in (saved(image, "PNG"), image, np.asarray(image)):
            assert torch.equal(ours.crop(ours.pixels(given)), expected)


def test_a_line_of_pixels_takes_little_memory():
    found = Preprocessing(256, 224, decoder="full").pixels(saved(photo((1, 10_000)), "PNG"))
    assert found.shape == (5120, 256, 3)


def test_converted_models_decode_in_full_and_trained_ones_scaled(tmp_path, monkeypatch, trained):
    network = torchvision.models.resnet18()
    torch.save(network.state_dict(), tmp_path / "r.pth")
    found = convert(tmp_path / "r.pth", tmp_path / "plain.safetensors")
    assert "decoded in full" in found.notes[-1]
    plain = modelfile.read_header(tmp_path / "plain.safetensors").preprocessing
    large = saved(photo((1601, 1203)), "JPEG", quality=90)
    preset = Preset(crop_size=224, resize_size=256)  # what its own code usually is
    assert torch.equal(plain.crop(plain.pixels(large)), pixels_of(preset, theirs(large)))
    known = "resnetkit.models.weights.convert.find_published"  # as if the hash matched
    monkeypatch.setattr(known, lambda path: ResNet18_Weights.IMAGENET1K_V1)
    convert(tmp_path / "r.pth", tmp_path / "known.safetensors")
    header = modelfile.read_header(tmp_path / "known.safetensors")
    assert header.preprocessing == Preprocessing(256, 224, decoder="full")
    trained_header = modelfile.read_header(trained / "model.safetensors")
    assert trained_header.preprocessing.decoder == "scaled"


@pytest.mark.parametrize("channels", [1, 4])
def test_converted_networks_of_other_channels_see_what_their_own_code_sees(tmp_path, channels):
    torch.manual_seed(0)
    network = torchvision.models.resnet18(num_classes=5)
    network.conv1 = torch.nn.Conv2d(channels, 64, 7, 2, 3, bias=False)
    torch.save(network.state_dict(), tmp_path / "r.pth")
    found = convert(tmp_path / "r.pth", tmp_path / "m.safetensors")
    assert any(f"it takes {channels} channel" in note for note in found.notes)
    predictor = Predictor(tmp_path / "m.safetensors", "cpu")
    image = photo((500, 375), "L" if channels == 1 else "RGBA")
    plain = Preset(crop_size=224, resize_size=256, mean=(0,) * channels, std=(1,) * channels)
    expected = (plain(image) * 255).round().to(torch.uint8)
    for given in (saved(image, "PNG"), image):
        pixels = predictor.preprocessing.crop(predictor.preprocessing.pixels(given))
        assert torch.equal(pixels, expected)
    mean, std = predictor.preprocessing.mean, predictor.preprocessing.std
    preset = Preset(crop_size=224, resize_size=256, mean=mean, std=std)
    with torch.inference_mode():
        wanted = network.eval()(preset(image)[None])[0].softmax(0)
    answer = dict(predictor(saved(image, "PNG"), top_k=5).top)
    assert torch.allclose(torch.tensor([answer[str(i)] for i in range(5)]), wanted, rtol=1e-4)
    # A file that an older version converted says three numbers: it is read as it has to be.
    tensors, header = modelfile.read(tmp_path / "m.safetensors")
    old = replace(header, preprocessing=Preprocessing(256, 224, decoder="full"))
    modelfile.write(tmp_path / "old.safetensors", tensors.state_dict(), old)
    assert modelfile.read_header(tmp_path / "old.safetensors") == header


def test_networks_that_no_image_can_feed_are_refused(tmp_path):
    network = torchvision.models.resnet18()
    network.conv1 = torch.nn.Conv2d(6, 64, 7, 2, 3, bias=False)
    torch.save(network.state_dict(), tmp_path / "r.pth")
    with pytest.raises(WeightsError, match="takes 6 channels, but images have 1"):
        convert(tmp_path / "r.pth", tmp_path / "m.safetensors")
