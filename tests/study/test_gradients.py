"""Measured signals agree with float64 and finite differences."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from resnetkit.models import get_model
from resnetkit.study import gradients
from resnetkit.study.gradients import Layer, Signal, Stack, measure, measure_training, responses


@pytest.fixture
def batch():
    torch.manual_seed(0)
    return torch.randn(16, 3, 8, 8), torch.arange(16) % 10


def test_gradients_are_those_of_finite_differences(batch):
    """Compare with a gradient without autograd: central differences of the loss in float64."""
    images, labels = batch[0].double(), batch[1]
    torch.manual_seed(1)
    network = Stack(192, 3, 4, nn.Tanh, 1.0, residual=True).double()
    found = {layer.name: layer for layer in measure(network, images, labels)}

    def loss():
        with torch.no_grad():
            return F.cross_entropy(network(images), labels).item()

    weight, squares = network.hidden[1].weight, 0.0
    for i in range(weight.numel()):
        with torch.no_grad():
            weight.view(-1)[i] += 1e-5
            above = loss()
            weight.view(-1)[i] -= 2e-5
            below = loss()
            weight.view(-1)[i] += 1e-5
        squares += ((above - below) / 2e-5) ** 2
    assert found["hidden.1"].gradient == pytest.approx(math.sqrt(squares), rel=1e-6)
    out = network.first(images.flatten(1))
    assert found["first"].activation == pytest.approx(out.std().item())


def test_the_gradient_of_an_output_that_is_overwritten_later(batch):
    """Without a norm, an in-place ReLU follows; the value before the ReLU is recorded."""
    images, labels = batch
    torch.manual_seed(0)
    network = get_model("cifar_resnet20", width=4, norm_layer=nn.Identity)
    found = {layer.name: layer for layer in measure(network, images, labels)}
    convolution = network.layer1[0].conv1
    with torch.no_grad():
        inputs = F.relu(network.conv1(images))
        assert found["layer1.0.conv1"].activation == pytest.approx(
            convolution(inputs).std().item(), rel=1e-5
        )
    # The gradient of a zero bias after the convolution is the sum of the output's gradient.
    convolution.bias = nn.Parameter(torch.zeros(4))
    F.cross_entropy(network(images), labels).backward()
    caught = []
    handle = convolution.register_forward_hook(
        lambda m, i, out: out.register_hook(lambda g: caught.append(g.clone())) and None
    )
    network.zero_grad()
    F.cross_entropy(network(images), labels).backward()
    handle.remove()
    assert torch.allclose(caught[0].sum((0, 2, 3)), convolution.bias.grad, rtol=1e-4, atol=1e-6)
    assert found["layer1.0.conv1"].backward == pytest.approx(caught[0].norm().item(), rel=1e-4)


def test_measuring_changes_no_parameter(batch):
    network = get_model("cifar_resnet20", width=4)
    before = [p.clone() for p in network.parameters()]
    measure(network, *batch)
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))
    assert all(p.grad is None for p in network.parameters())


def test_vanishing_exploding_and_stable(batch):
    """Factors per layer agree with theory: the gain if linear, gain/sqrt(2) for ReLU."""
    images, labels = batch

    def layers(activation, gain, residual=False):
        torch.manual_seed(0)
        return measure(Stack(192, 40, 256, activation, gain, residual), images, labels)

    vanishing = layers(nn.Tanh, 0.5)
    assert vanishing[-2].activation / vanishing[10].activation < 0.6**29
    assert vanishing[1].backward / vanishing[-2].backward < 0.6**38
    held = layers(nn.ReLU, math.sqrt(2))
    assert 0.1 < held[-2].activation / held[1].activation < 10
    assert 0.1 < held[1].backward / held[-2].backward < 10
    exploding = layers(nn.ReLU, 16.0)
    assert math.isfinite(exploding[1].activation)
    assert not math.isfinite(exploding[-2].activation)
    assert layers(nn.Tanh, 0.5, residual=True)[1].backward > 1e6 * vanishing[1].backward


def test_overflows_are_kept_and_written_as_text(batch):
    torch.manual_seed(0)
    network = Stack(192, 60, 16, nn.ReLU, 16.0)
    signal = measure_training("n", network, *batch, steps=2, lr=0.1, seed=0)
    assert math.isnan(signal.losses[0])
    content = json.loads(json.dumps(signal.to_dict(), allow_nan=False))
    assert content["losses"] == ["nan", "nan"]
    assert "nan" in gradients.signal_table([signal])


def test_the_table_shows_the_requested_gradient():
    first, last = (Layer("", 1.0, back, weights) for back, weights in ((3e-7, 4.0), (5.0, 6.0)))
    signal = Signal("net", (first, last, first), (), (2.0, 1.0))
    of_output = gradients.signal_table([signal], "backward")
    assert "gradient of the output" in of_output
    assert of_output.split()[-6:] == ["1", "1", "3e-07", "5", "2", "1"]
    assert gradients.signal_table([signal]).split()[-4:-2] == ["4", "6"]


def test_training_lowers_the_loss_and_is_repeatable(batch):
    def losses():
        torch.manual_seed(0)
        network = get_model("cifar_resnet20", width=4)
        return gradients.fit(
            network, *(t.repeat(5, *[1] * (t.ndim - 1)) for t in batch), 20, 0.05, 0
        )

    first = losses()
    assert first[-1] < 0.5 * first[0]
    assert first == losses()


def test_responses_are_taken_after_the_norm():
    """At the start, every scale is one, and so is the deviation of every normalized map."""
    torch.manual_seed(0)
    images = torch.randn(32, 3, 16, 16)
    network = get_model("cifar_resnet20", width=4)
    found = responses("net", network, images)
    assert len(found.values) == 19
    assert found.values == pytest.approx([1.0] * 19, abs=0.01)
    with torch.no_grad():
        network.layer2[0].bn1.weight.mul_(3)
    assert responses("net", network, images).values[7] == pytest.approx(3.0, abs=0.03)
    network.eval()
    responses("net", network, images)
    assert not network.training


@pytest.mark.slow
def test_the_four_nets_do_what_the_documents_say(tmp_path):
    """Batch norm alone: an exploding gradient. Shortcuts alone: NaN. Both: the net trains."""
    from resnetkit.data.digits import write_digits
    from resnetkit.data.preprocessing import Preprocessing
    from resnetkit.study.images import training_tensors

    images, labels = training_tensors(write_digits(tmp_path / "digits", 16), Preprocessing(16, 16))
    plain, residual, bare, unheld = gradients.nets(images, labels, steps=40, seed=0)
    assert plain.before[0].gradient > 50 * plain.before[-2].gradient
    assert residual.before[0].gradient < 10 * residual.before[-2].gradient
    assert residual.losses[-1] < 1 < plain.losses[-1]
    assert bare.losses[-1] == pytest.approx(math.log(10), abs=0.05)
    assert unheld.before[-2].activation > 1000 * unheld.before[0].activation
    assert math.isnan(unheld.losses[-1])


def test_every_class_has_an_output():
    images, labels = torch.randn(24, 3, 16, 16), torch.arange(24) % 12
    for found in (gradients.stacks, gradients.nets):
        for signal in found(images, labels, steps=1, seed=0):
            assert len(signal.losses) == 1
    assert len(gradients.trained_responses(images, labels, steps=1, seed=0)) == 4
