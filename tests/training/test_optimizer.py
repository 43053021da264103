from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from resnetkit.models import resnet18
from resnetkit.training.loss import class_weights
from resnetkit.training.optimizer import Optimizer
from resnetkit.training.param_groups import make_optimizer
from resnetkit.training.recipe import load_recipe
from resnetkit.training.schedule import learning_rate


def test_onecycle_is_linear_up_and_cosine_down():
    recipe = load_recipe("fast").with_settings({"lr": 0.01, "warmup": 0.25})
    steps = 400
    rates = [learning_rate(recipe, step, steps) for step in range(steps)]
    assert rates[0] == pytest.approx(0.01 / 25)
    assert max(rates) == pytest.approx(0.01)
    assert rates.index(max(rates)) == 100
    assert rates[-1] == pytest.approx(0.01 / 10_000)
    rising = torch.tensor(rates[:101], dtype=torch.float64)
    assert torch.allclose(rising.diff(), torch.full((100,), (0.01 - 0.0004) / 100).double())

    # Compare the falling part with PyTorch's own cosine.
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.01)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 299, eta_min=0.01 / 10_000)
    for rate in rates[100:]:
        assert optimizer.param_groups[0]["lr"] == pytest.approx(rate, rel=1e-9)
        optimizer.step()
        scheduler.step()


def test_constant():
    recipe = load_recipe("classic")
    assert {learning_rate(recipe, step, 50) for step in range(50)} == {1e-4}


def test_norms_and_biases_do_not_decay():
    model = resnet18(num_classes=4)
    decayed, others = make_optimizer(model, load_recipe("fast")).param_groups
    names = {id(p): name for name, p in model.named_parameters()}
    assert {names[id(p)].rsplit(".", 1)[-1] for p in decayed["params"]} == {"weight"}
    assert all("bn" in names[id(p)] or "downsample.1" in names[id(p)] or "bias" in names[id(p)]
               for p in others["params"])  # fmt: skip
    assert decayed["weight_decay"] == load_recipe("fast").weight_decay
    assert others["weight_decay"] == 0
    assert sum(len(g["params"]) for g in (decayed, others)) == len(list(model.parameters()))
    both = make_optimizer(
        model, load_recipe("fast").with_settings({"decay_norms": True})
    ).param_groups
    assert both[1]["weight_decay"] == both[0]["weight_decay"]


KINDS = {
    "adamw": (torch.optim.AdamW, {}),
    "adam": (torch.optim.Adam, {}),
    "sgd": (torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
    "sgd without momentum": (torch.optim.SGD, {}),
}


def a_few_steps(kind, layout, *, late):
    """Return the network after five steps of our optimizer, and of torch.optim's fused one.

    The module ``late`` has no gradient in the first two steps.
    """
    models, optimizers = [], []
    theirs, options = KINDS[kind]
    for kept in ("ours", "theirs"):
        torch.manual_seed(0)
        model = resnet18(num_classes=4, width=8).to(memory_format=layout)
        models.append(model)
        sgd = {"optimizer": "sgd", "momentum": options.get("momentum", 0.0)}
        settings = sgd if kind.startswith("sgd") else {"optimizer": kind}
        ours = make_optimizer(model, load_recipe("fast").with_settings({**settings, "lr": 0.01}))
        groups = [
            {"params": group["params"], "weight_decay": group["weight_decay"]}
            for group in ours.param_groups
        ]
        optimizers.append(
            ours if kept == "ours" else theirs(groups, lr=0.01, fused=True, **options)
        )
    for step in range(5):
        torch.manual_seed(step)
        images = torch.randn(4, 3, 32, 32).to(memory_format=layout)
        for model, optimizer in zip(models, optimizers, strict=True):
            model.get_submodule(late).requires_grad_(step >= 2)
            model(images).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    return [model.state_dict() for model in models]


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("kind", KINDS)
def test_optimisers_have_the_bits_of_pytorchs(kind, layout):
    # torch.optim's SGD cannot start momentum later for part of a group, so for SGD, ``late`` names
    # a module without parameters; see the next test.
    late = "fc" if "sgd" not in kind else "layer1.0.relu"
    ours, theirs = a_few_steps(kind, layout, late=late)
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_momentum_begins_with_the_first_gradient_however_late():
    early, late = (torch.nn.Parameter(torch.zeros(3)) for _ in range(2))
    group = {"params": [early, late], "weight_decay": 0.0, "scale": 1.0}
    optimizer = Optimizer("sgd", [group], lr=1.0, momentum=0.5)
    for step in range(3):
        early.grad = torch.ones(3)
        late.grad = torch.ones(3) if step else None
        optimizer.step()
    assert early.tolist() == [-(1 + 1.5 + 1.75)] * 3
    assert late.tolist() == [-(1 + 1.5)] * 3


@pytest.mark.parametrize("kind", ["adamw", "adam", "sgd"])
def test_a_gradient_in_another_order_than_its_parameter_goes_to_the_right_weights(kind):
    # Here, torch.optim's fused CPU optimizers apply to each weight the gradient of another.
    torch.manual_seed(0)
    start, gradient = torch.randn(8, 4, 3, 3), torch.randn(8, 4, 3, 3)
    found = []
    for layout in (torch.contiguous_format, torch.channels_last):
        weight = torch.nn.Parameter(start.clone().to(memory_format=layout))
        group = {"params": [weight], "weight_decay": 0.1, "scale": 1.0}
        optimizer = Optimizer(kind, [group], lr=0.1)
        for _ in range(2):
            weight.grad = gradient.clone()
            optimizer.step()
        found.append(weight.detach())
    assert not torch.equal(found[0], start)
    assert torch.equal(found[0], found[1])


def test_the_first_step_does_not_import_the_compiler():
    code = """
import sys, torch
from resnetkit.training.optimizer import Optimizer
weight = torch.nn.Parameter(torch.zeros(2))
weight.grad = torch.ones(2)
optimizer = Optimizer("adamw", [{"params": [weight], "weight_decay": 0.0}], lr=1.0)
optimizer.step()
assert weight[0] != 0
assert "torch._dynamo" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_steps_divide_by_ten_at_each_milestone():
    changes = {"schedule": "steps", "lr": 1.0, "milestones": [0.5, 0.75], "warmup": 0.1}
    recipe = load_recipe("fast").with_settings(changes)
    rates = [learning_rate(recipe, step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.04)
    assert rates[10] == rates[49] == 1.0
    assert rates[50] == rates[74] == pytest.approx(0.1)
    assert rates[75] == rates[99] == pytest.approx(0.01)


def test_class_weights_are_those_of_scikit_learn():
    from sklearn.utils.class_weight import compute_class_weight

    labels = [0] * 10 + [1] * 2 + [2] * 5
    expected = compute_class_weight("balanced", classes=np.array([0, 1, 2]), y=labels)
    recipe = load_recipe("fast")
    assert class_weights(recipe, [10, 2, 5], torch.device("cpu")) is None
    balanced = recipe.with_settings({"class_weights": "balanced"})
    found = class_weights(balanced, [10, 2, 5], torch.device("cpu"))
    assert found.tolist() == pytest.approx(expected.tolist())


def rates_of_torch(steps, rising):
    """Return the rates of LinearLR followed by CosineAnnealingLR."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    schedulers = [
        torch.optim.lr_scheduler.LinearLR(optimizer, 0.01, total_iters=rising),
        torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps - rising),
    ]
    both = torch.optim.lr_scheduler.SequentialLR(optimizer, schedulers, [rising])
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        both.step()
    return rates


def test_cosine_with_its_linear_start_is_pytorchs():
    recipe = load_recipe("fast").with_settings({"schedule": "cosine", "lr": 0.5, "warmup": 0.1})
    rates = [learning_rate(recipe, step, 300) for step in range(300)]
    assert rates == pytest.approx(rates_of_torch(300, 30), rel=1e-6, abs=1e-12)
    assert rates[0] == pytest.approx(0.005)
    assert max(rates) == rates[30] == 0.5
    plain = recipe.with_settings({"warmup": 0.0})
    assert learning_rate(plain, 0, 300) == 0.5
    assert learning_rate(recipe.with_settings({"warmup": 1.0}), 299, 300) < 0.5


def test_torchvision_v2_has_the_references_rate_at_the_start_of_each_epoch():
    batches = 1251  # the number of ImageNet images, divided by 1,024
    recipe = load_recipe("torchvision-v2")
    rates = [learning_rate(recipe, batches * epoch, batches * 600) for epoch in range(600)]
    assert rates == pytest.approx(rates_of_torch(600, 5), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("name", ["torchvision-v1", "paper-imagenet"])
def test_thirty_sixty_ninety(name):
    batches = 5004  # the number of ImageNet images, divided by 256
    recipe = load_recipe(name)
    assert recipe.epochs == 90
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=30, gamma=0.1)
    for epoch in range(90):
        rate = pytest.approx(optimizer.param_groups[0]["lr"])
        for step in (batches * epoch, batches * epoch + batches - 1):
            assert learning_rate(recipe, step, batches * 90) == rate
        optimizer.step()
        scheduler.step()


def test_paper_cifar10_divides_after_32000_and_48000_of_64000_steps():
    recipe = load_recipe("paper-cifar10")
    places = (0, 31_999, 32_000, 47_999, 48_000, 63_999)
    rates = [learning_rate(recipe, step, recipe.steps) for step in places]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])


def test_momentum_is_nesterovs_or_plain():
    sgd = load_recipe("fast").with_settings({"optimizer": "sgd"})
    for settings, expected in [({}, True), ({"nesterov": False}, False), ({"momentum": 0}, False)]:
        optimizer = make_optimizer(resnet18(), sgd.with_settings(settings))
        assert optimizer.nesterov is expected
