from __future__ import annotations

import pytest
import torch
from torch import nn

from resnetkit.data.dataset import Images
from resnetkit.data.folder import read_dataset
from resnetkit.data.preprocessing import Preprocessing
from resnetkit.evaluation.evaluate import predict_logits
from resnetkit.evaluation.explain import grad_cam
from resnetkit.models import get_model
from resnetkit.models.modes import in_mode
from resnetkit.study.gradients import responses


@pytest.fixture
def half_frozen():
    """A network in training mode whose first stage has its batch norms in eval mode."""
    net = get_model("cifar_resnet20", num_classes=3, width=8).train()
    net.layer1.eval()
    return net


def modes(net):
    return {name: module.training for name, module in net.named_modules()}


def test_each_modules_mode_is_restored_even_after_an_error(half_frozen):
    before = modes(half_frozen)
    assert set(before.values()) == {True, False}
    with pytest.raises(KeyError), in_mode(half_frozen, training=False):
        assert not any(modes(half_frozen).values())
        raise KeyError
    assert modes(half_frozen) == before


def test_callers_leave_frozen_norms_frozen(half_frozen, flat_folder):
    before = modes(half_frozen)
    grad_cam(half_frozen, torch.zeros(1, 3, 32, 32))
    assert modes(half_frozen) == before
    images = Images(read_dataset(flat_folder).splits["all"], Preprocessing(32, 32))
    predict_logits(half_frozen, images, torch.device("cpu"), workers=0)
    assert modes(half_frozen) == before
    responses("net", half_frozen, torch.zeros(2, 3, 32, 32))
    assert modes(half_frozen) == before


def test_an_error_while_predicting_restores_the_modes(half_frozen, flat_folder):
    before = modes(half_frozen)
    half_frozen.fc = nn.Linear(1, 1)  # refuses its input
    images = Images(read_dataset(flat_folder).splits["all"], Preprocessing(32, 32))
    with pytest.raises(RuntimeError):
        predict_logits(half_frozen, images, torch.device("cpu"), workers=0)
    assert modes(half_frozen) == {**before, "fc": True}
