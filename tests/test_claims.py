"""Claims of docs/resnet.md that no recorded run shows, checked on small networks."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from resnetkit.models import get_model, resnet50
from resnetkit.models.blocks import BasicBlock


def pass_through(inplace: bool) -> tuple[int, list[torch.Tensor]]:
    """Return the bytes that a ResNet-18 saves for backward, without weights; scores, gradients."""
    torch.manual_seed(0)
    network = get_model("resnet18", num_classes=10).train()
    for module in network.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = inplace
    weights = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        scores = network(torch.randn(4, 3, 32, 32))
    scores.sum().backward()
    gradients = [parameter.grad for parameter in network.parameters()]
    return sum(storage.nbytes() for storage in kept.values()), [scores, *gradients]


def test_inplace_changes_neither_the_result_nor_what_training_keeps():
    (bytes_inplace, inplace), (bytes_copied, copied) = pass_through(True), pass_through(False)
    assert all(torch.equal(a, b) for a, b in zip(inplace, copied, strict=True))
    assert bytes_inplace == bytes_copied > 1_000_000


def test_inplace_on_the_input_of_a_convolution_is_an_error():
    """`x += out` instead of `out += x`."""

    class Wrong(BasicBlock):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
            x += out
            return self.relu(x)

    x = torch.randn(2, 4, 8, 8, requires_grad=True) * 1.0
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        Wrong(4, 4)(x).sum().backward()


def test_a_bias_before_a_batch_norm_changes_nothing():
    torch.manual_seed(0)
    convolution, norm = nn.Conv2d(3, 8, 3).double(), nn.BatchNorm2d(8).double().train()
    x = torch.randn(4, 3, 9, 9, dtype=torch.float64)
    with_bias = norm(convolution(x))
    with torch.no_grad():
        convolution.bias += 5
    torch.testing.assert_close(norm(convolution(x)), with_bias)
    norm(convolution(x)).square().sum().backward()
    assert convolution.bias.grad.abs().max() < 1e-9 * convolution.weight.grad.abs().max() + 1e-9


def test_weights_of_v1_load_into_v15_and_give_other_scores():
    torch.manual_seed(0)
    ours, paper = (resnet50(stride_on=on, num_classes=10).eval() for on in ("3x3", "1x1"))
    paper.load_state_dict(ours.state_dict())
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert not torch.allclose(ours(x), paper(x), rtol=0.01)


def test_zero_init_makes_a_block_the_identity():
    network = get_model("resnet18", zero_init_residual=True).eval()
    x = torch.rand(1, 64, 8, 8)  # no negative values, as after a ReLU
    with torch.no_grad():
        assert torch.equal(network.layer1[1](x), x)
        assert not torch.equal(get_model("resnet18").eval().layer1[1](x), x)
