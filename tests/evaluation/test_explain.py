from __future__ import annotations

import numpy as np
import pytest
import torch
from captum.attr import LayerAttribution, LayerGradCam
from PIL import Image, ImageDraw

from resnetkit import train
from resnetkit.data.transforms import normalize
from resnetkit.errors import RecipeError
from resnetkit.evaluation.explain import default_layer, explain, grad_cam
from resnetkit.models import get_model
from resnetkit.models.weights import modelfile


@pytest.fixture(scope="module")
def images():
    return torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(1)
    net = get_model("resnet18", num_classes=5, width=16).train()
    net(torch.randn(16, 3, 64, 64))  # sets the batch norm statistics
    return net.eval()


@pytest.mark.parametrize(
    "layer", ["layer4", "layer2", "layer3.1", "layer4.1.conv2", "layer1.0.bn1"]
)
def test_maps_equal_captums(net, images, layer):
    targets = [4, 0, 2]
    cam = LayerGradCam(net, net.get_submodule(layer))
    theirs = cam.attribute(images, target=torch.tensor(targets), relu_attributions=True)
    theirs = LayerAttribution.interpolate(theirs, (64, 64), "bilinear").detach()[:, 0]
    highest = theirs.amax((1, 2), keepdim=True)
    assert (highest > 0).any()
    expected = torch.where(highest > 0, theirs / highest.clamp(min=1e-30), 0)
    found = grad_cam(net, images, layer, targets)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert found.shape == (3, 64, 64)


def test_the_model_is_left_as_it_was(net, images):
    before = {name: p.clone() for name, p in net.state_dict().items()}
    answer = net(images).detach()
    net.train().requires_grad_(False)
    found = grad_cam(net, images)  # frozen, and in training mode
    assert net.training
    net.eval().requires_grad_(True)
    assert torch.equal(found, grad_cam(net, images, "layer4", answer.argmax(1)))
    assert all(torch.equal(p, before[name]) for name, p in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())
    assert not net.layer4._forward_hooks


def test_default_layers_of_other_networks(images):
    for name, last in (("cifar_resnet20", "layer3"), ("darknet53", "layer5")):
        other = get_model(name, num_classes=3)
        assert default_layer(other) == last
        assert grad_cam(other, images).shape == (3, 64, 64)


@pytest.mark.parametrize(
    ("layer", "target", "message"),
    [
        ("layer9", None, "no layer 'layer9'; it has conv1"),
        ("fc", None, "has no feature maps"),
        (None, 5, "target must be 0 to 4; got 5"),
        (None, [1, 2], r"or one for each of 3 images; got \[1, 2\]"),
        (None, [[1], [2], [3]], "or one for each of 3 images"),
        (None, [], r"a class index or one per image; got \[\]"),
        (None, 1.0, r"a class index or one per image; got 1\.0"),
        (None, [True, False, True], r"a class index or one per image; got \[True"),
    ],
)
def test_a_wrong_layer_or_target_is_an_error(net, images, layer, target, message):
    with pytest.raises(RecipeError, match=message):
        grad_cam(net, images, layer, target)
    assert not net.layer4._forward_hooks


def test_the_map_depends_on_the_weights(net, images):
    """A map that ignores the weights explains nothing (Adebayo et al., arXiv:1810.03292)."""
    before = grad_cam(net, images, target=1)
    weights = net.fc.weight.detach().clone()
    with torch.no_grad():
        net.fc.weight.copy_(torch.randn_like(weights))
    after = grad_cam(net, images, target=1)
    with torch.no_grad():
        net.fc.weight.copy_(weights)
    assert (before - after).abs().mean() > 0.05
    assert torch.equal(grad_cam(net, images, target=1), before)


def test_files_are_explained(trained, tmp_path):
    data = trained.parent / "data"
    files = [data / "red" / "000.png", tmp_path / "gone.png", data / "blue" / "001.png"]
    one, gone, other = explain(trained / "model.safetensors", files, classes="green", side=80)
    assert gone.error is not None
    assert "gone.png" in gone.error
    assert one.image.shape == (80, 80, 3)
    assert one.heat.shape == (80, 80)
    assert (one.target, other.target) == ("green", "green")
    model, header = modelfile.read(trained / "model.safetensors")
    seen = header.preprocessing.crop(header.preprocessing.pixels(files[0]))
    expected = grad_cam(model, normalize(seen[None], header.preprocessing), target=1)
    expected = torch.nn.functional.interpolate(expected[None], (80, 80), mode="bilinear")[0, 0]
    torch.testing.assert_close(torch.from_numpy(one.heat), expected, rtol=1e-3, atol=1e-4)
    (own,) = explain(trained / "model.safetensors", files[:1])
    assert own.target == own.answer
    with pytest.raises(RecipeError, match=r"no class 'gren'\. Did you mean 'green'"):
        next(explain(trained / "model.safetensors", files, classes="gren"))
    several = explain(trained / "model.safetensors", files, classes=["green", "red"])
    assert [next(several).target, next(several).target] == ["green", ""]
    with pytest.raises(RecipeError, match=r"more images than classes \(2\)\. Name one class"):
        next(several)


@pytest.mark.slow
def test_the_map_points_at_the_planted_shape(tmp_path):
    """A model that tells discs from crosses looks at the shape, wherever in the image it is."""
    rng = np.random.default_rng(0)

    def draw_shape(kind: str) -> tuple[Image.Image, tuple[int, int]]:
        noise = rng.integers(60, 196, (64, 64, 3), dtype=np.uint8)
        image = Image.fromarray(noise)
        x, y = (int(v) for v in rng.integers(2, 44, 2))
        draw = ImageDraw.Draw(image)
        if kind == "disc":
            draw.ellipse((x, y, x + 18, y + 18), fill="white")
        else:
            draw.line((x, y, x + 18, y + 18), fill="white", width=6)
            draw.line((x, y + 18, x + 18, y), fill="white", width=6)
        return image, (x + 9, y + 9)

    for kind in ("cross", "disc"):
        (tmp_path / "data" / kind).mkdir(parents=True)
        for i in range(60):
            draw_shape(kind)[0].save(tmp_path / "data" / kind / f"{i}.png")
    settings = {"model": "cifar_resnet20", "image_size": 64, "epochs": 8, "batch_size": 16}
    options = {"width": 16}
    run = train(tmp_path / "data", out=tmp_path / "run", model_options=options, **settings)
    assert run.metrics["accuracy"] > 0.9
    inside = 0
    for i in range(20):
        image, (x, y) = draw_shape("disc" if i % 2 else "cross")
        image.save(tmp_path / f"new{i}.png")
        (found,) = explain(run.model, [tmp_path / f"new{i}.png"], side=64)
        row, column = np.unravel_index(found.heat.argmax(), found.heat.shape)
        inside += abs(int(row) - y) <= 13 and abs(int(column) - x) <= 13
    assert inside >= 16  # random maps would give about three
