from __future__ import annotations

import numpy as np
import pytest
import torch

from resnetkit.models import resnet18
from resnetkit.training.optim import class_weights, learning_rate, make_optimizer
from resnetkit.training.recipe import load


def test_onecycle_is_linear_up_and_cosine_down():
    recipe = load("fast").with_settings({"lr": 0.01, "warmup": 0.25})
    steps = 400
    rates = [learning_rate(recipe, step, steps) for step in range(steps)]
    assert rates[0] == pytest.approx(0.01 / 25)
    assert max(rates) == pytest.approx(0.01)
    assert rates.index(max(rates)) == 100
    assert rates[-1] == pytest.approx(0.01 / 10_000)
    rising = torch.tensor(rates[:101], dtype=torch.float64)
    assert torch.allclose(rising.diff(), torch.full((100,), (0.01 - 0.0004) / 100).double())

    # The fall against PyTorch's own cosine.
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.01)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 299, eta_min=0.01 / 10_000)
    for rate in rates[100:]:
        assert optimizer.param_groups[0]["lr"] == pytest.approx(rate, rel=1e-9)
        optimizer.step()
        scheduler.step()


def test_constant():
    recipe = load("classic")
    assert {learning_rate(recipe, step, 50) for step in range(50)} == {1e-4}


def test_norms_and_biases_do_not_decay():
    model = resnet18(num_classes=4)
    decayed, others = make_optimizer(model, load("fast")).param_groups
    names = {id(p): name for name, p in model.named_parameters()}
    assert {names[id(p)].rsplit(".", 1)[-1] for p in decayed["params"]} == {"weight"}
    assert all("bn" in names[id(p)] or "downsample.1" in names[id(p)] or "bias" in names[id(p)]
               for p in others["params"])  # fmt: skip
    assert decayed["weight_decay"] == load("fast").weight_decay
    assert others["weight_decay"] == 0
    assert sum(len(g["params"]) for g in (decayed, others)) == len(list(model.parameters()))
    both = make_optimizer(model, load("fast").with_settings({"decay_norms": True})).param_groups
    assert both[1]["weight_decay"] == both[0]["weight_decay"]


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd"])
def test_optimisers_are_pytorchs(name):
    kind = {"adamw": "AdamW", "adam": "Adam", "sgd": "SGD"}[name]
    optimizer = make_optimizer(resnet18(), load("fast").with_settings({"optimizer": name}))
    assert type(optimizer).__name__ == kind


def test_steps_divide_by_ten_at_each_milestone():
    changes = {"schedule": "steps", "lr": 1.0, "milestones": [0.5, 0.75], "warmup": 0.1}
    recipe = load("fast").with_settings(changes)
    rates = [learning_rate(recipe, step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.04)
    assert rates[10] == rates[49] == 1.0
    assert rates[50] == rates[74] == pytest.approx(0.1)
    assert rates[75] == rates[99] == pytest.approx(0.01)


def test_class_weights_are_those_of_scikit_learn():
    from sklearn.utils.class_weight import compute_class_weight

    labels = [0] * 10 + [1] * 2 + [2] * 5
    expected = compute_class_weight("balanced", classes=np.array([0, 1, 2]), y=labels)
    recipe = load("fast")
    assert class_weights(recipe, [10, 2, 5], torch.device("cpu")) is None
    balanced = recipe.with_settings({"class_weights": "balanced"})
    found = class_weights(balanced, [10, 2, 5], torch.device("cpu"))
    assert found.tolist() == pytest.approx(expected.tolist())
