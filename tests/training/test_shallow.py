from __future__ import annotations

import pytest
import torch

from resnetkit import train
from resnetkit.errors import RecipeError
from resnetkit.models import get_model
from resnetkit.models.weights import modelfile
from resnetkit.training import initial_weights, loop
from resnetkit.training.param_groups import set_trainable
from resnetkit.training.recipe import Recipe
from resnetkit.training.shallow import shallow_model

HALF = Recipe(shallow_share=0.5)


@pytest.mark.parametrize(
    ("name", "options", "left"),
    [
        ("resnet34", {"width": 8}, 4),
        ("resnet50", {"width": 8}, 4),
        ("cifar_resnet20", {"shortcut": "A"}, 3),
    ],
)
def test_it_is_the_same_function_until_it_is_trained(name, options, left):
    torch.manual_seed(0)
    model = get_model(name, num_classes=5, zero_init_residual=True, **options)
    short = shallow_model(model, HALF)
    images = torch.rand(3, 3, 64, 64)
    for mode in (True, False):
        assert torch.equal(short.train(mode)(images), model.train(mode)(images))
    blocks = [m for m in short.modules() if type(m).__name__ in ("BasicBlock", "Bottleneck")]
    assert len(blocks) == left
    assert {id(p) for p in short.parameters()} < {id(p) for p in model.parameters()}
    assert shallow_model(model, Recipe()) is model


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet34", {}),
        ("cifar_resnet20", {"shortcut": "C", "zero_init_residual": True}),
        ("cifar_resnet20", {"shortcut": "none", "zero_init_residual": True}),
    ],
)
def test_blocks_that_are_not_the_identity_cannot_be_left_out(name, options):
    with pytest.raises(RecipeError, match=r"layer1\.1 does not.*--weights none.*shortcut A or B"):
        shallow_model(get_model(name, **options), HALF)


def test_only_resnets_grow():
    with pytest.raises(RecipeError, match="darknet53 is not one"):
        shallow_model(get_model("darknet53"), Recipe(model="darknet53", shallow_share=0.5))


def test_no_gradient_reaches_what_is_left_out():
    model = get_model("resnet34", width=8)
    set_trainable(model, HALF, 4, 10)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert "layer1.0.conv1.weight" in trained
    assert "fc.weight" in trained
    assert not any(name.split(".")[1] in "12345" for name in trained if "layer" in name)
    set_trainable(model, HALF, 5, 10)
    assert all(p.requires_grad for p in model.parameters())


def test_left_out_blocks_are_trained_from_their_step_on(flat_folder, small, tmp_path):
    settings = {**small, "epochs": 2, "lr": 0.01}
    run = train(flat_folder, out=tmp_path / "run", **settings, shallow_share=0.5)
    other = train(flat_folder, out=tmp_path / "other", **settings, shallow_share=1.0)
    first, _ = initial_weights.make_network(run.recipe, 3)
    grown, never = (modelfile.read(r.folder / "last.safetensors")[0] for r in (run, other))
    name = "layer2.1.conv1.weight"
    assert torch.equal(never.state_dict()[name], first.state_dict()[name])
    assert not torch.equal(grown.state_dict()[name], first.state_dict()[name])
    assert run.history[0] == other.history[0]
    assert run.history[1]["train_loss"] != other.history[1]["train_loss"]


@pytest.mark.parametrize("share", ["shallow_share", "head_share"])
def test_what_is_trained_changes_at_its_step_within_an_epoch(
    share, flat_folder, small, tmp_path, monkeypatch
):
    real, seen = loop.training_step, []

    def step(state, *args):
        deep = state.model.layer2[1].conv1.weight.requires_grad
        seen.append((deep, share == "head_share" or (state.forward is state.model) == deep))
        return real(state, *args)

    monkeypatch.setattr(loop, "training_step", step)
    settings = {**small, "epochs": 1, "batch_size": 8, share: 0.3}
    train(flat_folder, out=tmp_path / "run", **settings)
    steps = len(seen)
    assert steps > 4
    assert seen == [(number >= 0.3 * steps, True) for number in range(steps)]
