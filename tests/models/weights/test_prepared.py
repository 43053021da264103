"""How other code prepared its images: from files, flags, or noted assumptions."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torchvision.transforms import v2
from typer.testing import CliRunner

from resnetkit.cli.commands import app
from resnetkit.data.preprocessing import Preprocessing
from resnetkit.data.transforms import normalize
from resnetkit.errors import ModelFileError, WeightsError
from resnetkit.models import convert, resnet18
from resnetkit.models.weights.modelfile import read, read_header
from resnetkit.models.weights.prepared import read_preprocessing


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return torchvision.models.resnet18(num_classes=3).eval()


@pytest.fixture
def file(net, tmp_path):
    torch.save(net.state_dict(), tmp_path / "pytorch_model.bin")
    return tmp_path / "pytorch_model.bin"


@pytest.fixture
def photo(tmp_path):
    """A smooth image with noise, whose sides are odd."""
    rng = np.random.default_rng(3)
    small = Image.fromarray(rng.integers(0, 256, (9, 13, 3), dtype=np.uint8))
    pixels = np.asarray(small.resize((533, 401), Image.Resampling.BICUBIC)).astype(int)
    noisy = (pixels + rng.integers(-20, 20, pixels.shape)).clip(0, 255).astype(np.uint8)
    Image.fromarray(noisy).save(tmp_path / "photo.jpg", quality=90)
    return tmp_path / "photo.jpg"


@pytest.mark.parametrize("squash", [False, True])
@pytest.mark.parametrize("mode", ["bilinear", "bicubic", "lanczos", "nearest", "box", "hamming"])
@pytest.mark.parametrize("sizes", [(96, 64), (64, 64), (600, 512)])
def test_resizing_has_the_bits_of_torchvision(photo, squash, mode, sizes):
    resize, crop = sizes
    ours = Preprocessing(resize, crop, decoder="full", interpolation=mode, squash=squash)
    theirs = v2.Compose(
        [
            v2.Resize((resize, resize) if squash else resize, v2.InterpolationMode(mode)),
            v2.CenterCrop(crop),
            v2.PILToTensor(),
        ]
    )
    image = Image.open(photo)
    expected = theirs(image)
    for given in (photo, photo.read_bytes(), image, np.asarray(image)):
        assert torch.equal(ours.crop(ours.pixels(given)), expected)
    assert Preprocessing.from_dict(json.loads(json.dumps(ours.to_dict()))) == ours


def test_the_usual_preprocessing_is_written_as_before():
    assert list(Preprocessing(256, 224).to_dict()) == [
        "resize_size", "crop_size", "mean", "std", "decoder",
    ]  # fmt: skip
    for other in ({"squash": True}, {"interpolation": "bicubic"}, {"squash": 1, "decoder": "full"}):
        with pytest.raises(ModelFileError, match="this version does not support"):
            Preprocessing.from_dict({"resize_size": 64, "crop_size": 64, **other})


HUGGING_FACE = {
    "crop_pct": 0.875,
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "ConvNextFeatureExtractor",
    "image_mean": [0.5, 0.4, 0.3],
    "image_std": [0.2, 0.3, 0.4],
    "resample": 3,
    "size": 224,
}
CLIP = {
    **{k: v for k, v in HUGGING_FACE.items() if k not in ("crop_pct", "feature_extractor_type")},
    "image_processor_type": "CLIPImageProcessor",
    "crop_size": {"height": 192, "width": 192},
    "size": {"shortest_edge": 200},
    "resample": 2,
}
VIT = {
    **{k: v for k, v in CLIP.items() if k != "crop_size"},
    "image_processor_type": "ViTImageProcessor",
    "size": {"height": 160, "width": 160},
}
TIMM = {
    "architecture": "resnet18.a1_in1k",
    "num_classes": 3,
    "pretrained_cfg": {
        "input_size": [3, 224, 224],
        "crop_pct": 0.95,
        "crop_mode": "center",
        "interpolation": "bicubic",
        "mean": [0.5, 0.4, 0.3],
        "std": [0.2, 0.3, 0.4],
    },
}


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("preprocessor_config.json", HUGGING_FACE, (256, 224, "bicubic", False)),
        (
            "preprocessor_config.json",
            {**HUGGING_FACE, "size": {"shortest_edge": 384}},
            (384, 384, "bicubic", True),
        ),
        ("preprocessor_config.json", CLIP, (200, 192, "bilinear", False)),
        ("preprocessor_config.json", VIT, (160, 160, "bilinear", True)),
        ("config.json", TIMM, (235, 224, "bicubic", False)),
        ("preprocessing.yaml", None, (100, 80, "bilinear", False)),
    ],
)
def test_preprocessing_comes_from_config_files(file, tmp_path, name, content, expected):
    if content is None:
        (tmp_path / name).write_text(
            "resize: 100\ncrop: 80\nmean: 0.5, 0.4, 0.3\nstd: [0.2, 0.3, 0.4]"
        )
        found = convert(file, tmp_path / "m", preprocessing=read_preprocessing(tmp_path / name))
    else:
        (tmp_path / name).write_text(json.dumps(content))
        found = convert(tmp_path, tmp_path / "m")  # a folder from a model hub
        assert any(f"used the preprocessing from {name}" in note for note in found.notes)
    made = read_header(tmp_path / "m").preprocessing
    assert (made.resize_size, made.crop_size, made.interpolation, made.squash) == expected
    assert (made.mean, made.std, made.decoder) == ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4), "full")
    assert not any("does not say how its images" in note for note in found.notes)


def test_config_json_gives_classes_and_the_stride(tmp_path):
    torch.manual_seed(0)
    state = torchvision.models.resnet50(num_classes=2).state_dict()
    torch.save(state, tmp_path / "pytorch_model.bin")
    config = {"model_type": "resnet", "id2label": {"0": "cat", "1": "dog"}}
    config["downsample_in_bottleneck"] = True
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = convert(tmp_path, tmp_path / "m")
    assert read_header(tmp_path / "m").classes == ("cat", "dog")
    assert found.options["stride_on"] == "1x1"
    del config["downsample_in_bottleneck"]  # the default puts the stride on the 3x3
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = convert(tmp_path, tmp_path / "v1.5")
    assert found.options["stride_on"] == "3x3"
    assert not any("V1 and V1.5" in note for note in found.notes)
    config["hidden_act"] = "gelu"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match="activation or first stage differs"):
        convert(tmp_path, tmp_path / "n")


def test_config_json_with_an_unsupported_network_raises(file, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({**TIMM, "architecture": "resnetblur18.x"}))
    with pytest.raises(
        WeightsError, match=r"names resnetblur18, which is not a network in resnetkit.*--arch"
    ):
        convert(file, tmp_path / "m")
    assert convert(file, tmp_path / "m", architecture="resnet18").architecture == "resnet18"


def test_a_bgr_network_gives_the_same_logits(net, file, photo, tmp_path):
    """Keras's mode `caffe`: BGR, 0 to 255, minus the mean of each channel."""
    given = {"resize": 64, "crop": 64, "mean": "103.939,116.779,123.68", "std": 1, "bgr": True}
    found = convert(file, tmp_path / "m", preprocessing=given)
    assert any("reversed its first convolution" in note for note in found.notes)
    model, header = read(tmp_path / "m")
    image = v2.functional.center_crop(v2.functional.resize(Image.open(photo), 64), [64, 64])
    pixels = np.asarray(image).astype(np.float32)[None, :, :, ::-1]
    expected = torch.from_numpy((pixels - np.float32([103.939, 116.779, 123.68])).copy())
    ours = header.preprocessing
    seen = ours.crop(ours.pixels(photo))[None]
    with torch.no_grad():
        theirs = net(expected.permute(0, 3, 1, 2))
        assert torch.allclose(
            model(normalize(seen, ours)), theirs, rtol=0, atol=1e-4 * float(theirs.abs().max())
        )


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"center": 3}, "preprocessing: unknown center. Known: resize_size"),
        ({"interpolation": "cubic"}, "interpolation must be one of nearest, .*; got 'cubic'"),
        ({"mean": "a,b,c"}, "mean must be one number, or one for each channel; got 'a,b,c'"),
        ({"mean": "104,117,124"}, "on a scale of 0 to 255, give both mean and std"),
        ({"squash": True, "decoder": "scaled"}, "decoder scaled needs bilinear interpolation"),
        ({"decoder": "fast"}, "decoder must be full or scaled; got 'fast'"),
        ({"std": "0.1,-1,1"}, "std must be greater than 0; got -1"),
        ({"std": [0, 1, 1]}, "std must be greater than 0; got 0"),
        ({"mean": "nan,0,0"}, "mean must be finite; got nan"),
        ({"crop": 0}, "crop_size must be 1 to 4096 px; got 0"),
        ({"resize": -5}, "resize_size must be 1 to 8192 px; got -5"),
    ],
)
def test_invalid_fields_raise(file, tmp_path, given, words):
    with pytest.raises(WeightsError, match=words):
        convert(file, tmp_path / "m", preprocessing=given)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.yaml", "- 1", "holds a list; expected resize_size"),
        ("a.yaml", "a: [", "cannot be read as YAML or JSON"),
        ("a.json", json.dumps({**CLIP, "do_center_crop": False}), "no center crop is given"),
        ("a.json", json.dumps({**CLIP, "do_resize": False}), "do_resize must not be false"),
        ("a.json", json.dumps({**CLIP, "do_thumbnail": True}), "do_thumbnail=True is not supp"),
        ("a.json", json.dumps({**CLIP, "do_flip_channel_order": True}), "do_flip_channel_order=T"),
        ("a.json", json.dumps({**CLIP, "rescale_factor": 0}), "rescale_factor must be greater"),
        ("a.json", json.dumps({**CLIP, "crop_pct": 0.9}), "crop_pct is supported only for Conv"),
        ("a.json", json.dumps({**CLIP, "resample": 6}), "resample must be 0 to 5; got 6"),
        ("a.json", json.dumps({**CLIP, "resample": -1}), "resample must be 0 to 5; got -1"),
        ("a.json", json.dumps({**CLIP, "resample": None}), "resample is missing"),
        ("a.json", json.dumps({**CLIP, "size": {"longest_edge": 9}}), "size with longest_edge"),
        ("a.json", json.dumps({**CLIP, "image_processor_type": "LevitImageProcessor"}),
         "LevitImageProcessor is not known; known: ConvNext"),
        ("a.json", json.dumps({**VIT, "size": {"height": 9, "width": 8}}), "images must be square"),
        ("a.json", json.dumps({**CLIP, "image_std": None}), "image_std is missing"),
    ],
)  # fmt: skip
def test_invalid_files_raise(tmp_path, name, content, words):
    (tmp_path / name).write_text(content)
    with pytest.raises(WeightsError, match=words):
        read_preprocessing(tmp_path / name)


MEAN = (0.485, 0.456, 0.406)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], (256, 224, MEAN, "full", False)),
        (["--crop", "128"], (146, 128, MEAN, "full", False)),
        (["--set", "crop_size=128", "--set", "mean=[0.5,0.5,0.5]"],
         (146, 128, (0.5,) * 3, "full", False)),
        (["--mean", "0.5", "--std", "0.5", "--decoder", "scaled"],
         (256, 224, (0.5,) * 3, "scaled", False)),
        (["--resize", "96", "--squash"], (96, 96, MEAN, "full", True)),
    ],
)  # fmt: skip
def test_flags_override_and_assumptions_are_noted(file, tmp_path, flags, expected):
    result = CliRunner().invoke(app, ["convert", str(file), str(tmp_path / "m"), *flags])
    assert result.exit_code == 0, result.output
    made = read_header(tmp_path / "m").preprocessing
    assert (made.resize_size, made.crop_size, made.mean, made.decoder, made.squash) == expected
    output = result.stderr
    assert ("does not say how its images" in output) == (not flags)
    assert ("no size was given" in output) == ("--mean" in flags)
    assert ("used ImageNet's values where" in output) == bool(flags and "--mean" not in flags)
    assert (
        resnet18(num_classes=3).state_dict().keys() == read(tmp_path / "m")[0].state_dict().keys()
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"global_pool": "max"},
            "names resnet18 with global_pool='max', which no network in resnetkit has",
        ),
        ({"model_args": {"output_stride": 16}}, "names resnet18 with output_stride=16"),
        ({"model_args": {"aa_layer": "blurpc"}}, "names resnet18 with aa_layer='blurpc'"),
    ],
)
def test_timm_arguments_that_tensors_do_not_show_raise(file, tmp_path, changes, words):
    config = {**TIMM, "architecture": "resnet18.a1_in1k", "global_pool": "avg"}
    (tmp_path / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(WeightsError, match=rf"{words}.*--arch resnet18"):
        convert(file, tmp_path / "m.safetensors")
    convert(file, tmp_path / "m.safetensors", architecture="resnet18")


def test_harmless_timm_arguments_are_accepted(file, tmp_path):
    usual = {"num_classes": 3, "in_chans": 3, "global_pool": "avg", "output_stride": 32}
    config = {**TIMM, "architecture": "resnet18.a1_in1k", "model_args": {**usual, "drop_rate": 0.1}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert convert(file, tmp_path / "m.safetensors").architecture == "resnet18"


def config_reference(config, image):
    """Prepare an image as transformers documents.

    Resize, crop, `v * rescale_factor`, `(v - mean) / std`.
    """
    filters = list(v2.InterpolationMode)
    mode = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
    mode = filters[[f.value for f in filters].index(mode[config["resample"]])]
    size = config["size"]
    shape = [size["height"], size["width"]] if "height" in size else size["shortest_edge"]
    image = v2.functional.resize(image, shape, mode)
    if config.get("do_center_crop", True) and "crop_size" in config:
        image = v2.functional.center_crop(image, [config["crop_size"]["height"]] * 2)
    values = np.asarray(image, np.float64)
    if config.get("do_rescale", True):
        values = values * config.get("rescale_factor", 1 / 255)
    if config.get("do_normalize", True):
        values = (values - config["image_mean"]) / config["image_std"]
    return torch.from_numpy(values).permute(2, 0, 1)[None]


CHANGES = [
    {},
    {"rescale_factor": 1 / 127.5, "image_mean": [1, 1, 1], "image_std": [1, 1, 1]},
    {"rescale_factor": 1.0, "image_mean": [124, 117, 104], "image_std": [58, 57, 57]},
    {"rescale_factor": 1e-05},
    {"do_rescale": False, "image_mean": [124, 117, 104], "image_std": [1, 1, 1]},
    {"do_rescale": False, "do_normalize": False},
    {"do_normalize": False},
    {"do_normalize": False, "rescale_factor": 2 / 255},
    {"resample": 0}, {"resample": 1}, {"resample": 3}, {"resample": 4}, {"resample": 5},
]  # fmt: skip


@pytest.mark.parametrize("changes", CHANGES, ids=str)
@pytest.mark.parametrize(
    "base",
    [
        *(CLIP, VIT, {**VIT, "crop_size": {"height": 9, "width": 9}}),
        {**CLIP, "image_processor_type": "BitImageProcessorFast"},
    ],
)
def test_every_step_of_a_preprocessor_config_is_followed(photo, tmp_path, base, changes):
    config = base | changes
    (tmp_path / "p.json").write_text(json.dumps(config))
    fields = read_preprocessing(tmp_path / "p.json")
    ours = Preprocessing.from_dict({"decoder": "full", **fields})
    seen = normalize(ours.crop(ours.pixels(photo))[None], ours)
    if "ViT" in base["image_processor_type"]:  # it crops only if do_center_crop says so
        config = {key: value for key, value in config.items() if key != "crop_size"}
    expected = config_reference(config, Image.open(photo))
    size = float(expected.abs().max())
    assert seen.shape == expected.shape
    assert torch.allclose(seen.double(), expected, rtol=0, atol=1e-5 * size)


@pytest.mark.parametrize("changes", CHANGES, ids=str)
@pytest.mark.parametrize("base", [CLIP, VIT], ids=["CLIP", "ViT"])
def test_the_input_is_that_of_transformers(photo, tmp_path, base, changes):
    transformers = pytest.importorskip("transformers")
    config = base | changes
    (tmp_path / "p.json").write_text(json.dumps(config))
    ours = Preprocessing.from_dict({"decoder": "full", **read_preprocessing(tmp_path / "p.json")})
    theirs = getattr(transformers, f"{config['image_processor_type']}Pil")
    theirs = theirs(**{k: v for k, v in config.items() if k != "image_processor_type"})
    image = Image.open(photo)
    expected = theirs(image, return_tensors="pt")["pixel_values"].double()
    seen = normalize(ours.crop(ours.pixels(image))[None], ours).double()
    # transformers' crop starts at floor(d / 2), torchvision's and ours at round(d / 2).
    assert seen.shape == expected.shape
    assert float((seen - expected).abs().max()) <= 1e-5 * float(expected.abs().max())


def test_a_yaml_beside_the_checkpoint_is_found(file, tmp_path):
    (tmp_path / "preprocessing.yaml").write_text("resize: 90")
    found = convert(file, tmp_path / "m1")
    assert read_header(tmp_path / "m1").preprocessing.resize_size == 90
    (note,) = [note for note in found.notes if "next to the file" in note]
    assert note == (
        "preprocessing.yaml next to the file says how images were prepared: resize_size 90, "
        "crop_size 79; override with --preprocessing FILE"
    )
    # A file with the settings of a training run is ignored.
    (tmp_path / "pytorch_model.yaml").write_text("epochs: 3\nbatch: 8")
    convert(file, tmp_path / "m2")
    assert read_header(tmp_path / "m2").preprocessing.resize_size == 90
    (tmp_path / "pytorch_model.yaml").write_text("resize: 100\nmean: [0.5, 0.5, 0.5]\nstd: 0.5")
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(CLIP))
    found = convert(file, tmp_path / "m3", preprocessing={"crop": 60})
    made = read_header(tmp_path / "m3").preprocessing
    assert (made.resize_size, made.crop_size, made.mean) == (100, 60, (0.5,) * 3)
    assert not any("preprocessor_config" in note for note in found.notes)
    (tmp_path / "other.yaml").write_text("crop: 70")
    convert(file, tmp_path / "m4", preprocessing_file=tmp_path / "other.yaml")
    made = read_header(tmp_path / "m4").preprocessing
    assert (made.resize_size, made.crop_size, made.mean) == (80, 70, MEAN)


SETTINGS = """
model: resnet18
encoder: resnet18
optimizer: sgd
lr: 0.1
momentum: 0.9
batch_size: 32
image_size: 224
img_size: 224
input_size: 224
epochs: 90
seed: 1
name: run 3
device: cuda
precision: bf16
pretrained: false
resume: last.pth
steps: [30, 60]
3: 4
"": x
"""


def test_the_settings_of_a_training_run_beside_the_checkpoint_are_ignored(file, tmp_path):
    (tmp_path / "pytorch_model.yaml").write_text(SETTINGS)
    found = convert(file, tmp_path / "m")
    assert not any("pytorch_model.yaml" in note for note in found.notes)


@pytest.mark.parametrize("key", ["resiz", "reszie", "means", "interpolate", "cropsize"])
def test_a_misspelled_field_beside_the_checkpoint_is_named(file, tmp_path, key):
    (tmp_path / "pytorch_model.yaml").write_text(f"{key}: 1\nlr: 0.1\n")
    with pytest.raises(WeightsError, match=f"unknown {key}. Did you mean"):
        convert(file, tmp_path / "m")


def test_a_wrong_yaml_beside_the_checkpoint_raises(file, tmp_path):
    (tmp_path / "pytorch_model.yml").write_text("resise: 90\n")
    with pytest.raises(WeightsError, match=r"pytorch_model.yml: unknown resise. Did you mean 'res"):
        convert(file, tmp_path / "m")
    (tmp_path / "pytorch_model.yaml").write_text("resize: 90\n")
    with pytest.raises(WeightsError, match=r"could both say .* Name one with --preprocessing"):
        convert(file, tmp_path / "m")
    assert not (tmp_path / "m").exists()
    with pytest.raises(WeightsError, match="squash must be true or false; got 'no'"):
        convert(file, tmp_path / "m", preprocessing={"squash": "no", "resize": 9},
                preprocessing_file=tmp_path / "pytorch_model.yaml")  # fmt: skip


def test_flags_override_single_fields_of_a_config(file, tmp_path):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(CLIP))
    convert(file, tmp_path / "m", preprocessing={"crop": 160})
    made = read_header(tmp_path / "m").preprocessing
    assert (made.resize_size, made.crop_size, made.mean) == (200, 160, (0.5, 0.4, 0.3))
    with pytest.raises(WeightsError, match="192 px is larger than the image resized to 90 px"):
        convert(file, tmp_path / "n", preprocessing={"resize": 90})


def test_a_preprocessor_config_of_unclear_meaning_raises(file, tmp_path):
    (tmp_path / "preprocessor_config.json").write_text('{"size": 224, "do_resize": true}')
    with pytest.raises(WeightsError, match="does not name its image_processor_type"):
        convert(file, tmp_path / "m")
    (tmp_path / "own.yaml").write_text("resize: 90")
    convert(file, tmp_path / "m", preprocessing_file=tmp_path / "own.yaml")
