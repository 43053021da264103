"""The paper's variants, and the options that torchvision does not have."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from resnetkit import models
from resnetkit.models import BasicBlock, Bottleneck, PadShortcut, ResNet, get_model, summarize

FACTS = json.loads(Path(__file__).with_name("published.json").read_text())


def count(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", FACTS["cifar_parameters"])
def test_cifar_nets_have_the_papers_parameters(name):
    with torch.device("meta"):
        model = get_model(name)
    assert count(model) == FACTS["cifar_parameters"][name]


@pytest.mark.parametrize("name", FACTS["gmacs_v1"])
def test_v1_costs_what_the_paper_says(name):
    with torch.device("meta"):
        v1, v15 = (get_model(name, stride_on=s) for s in ("1x1", "3x3"))
    assert round(summarize(v1).macs / 1e9, 3) == FACTS["gmacs_v1"][name]
    assert summarize(v15).macs > summarize(v1).macs
    assert list(v1.state_dict()) == list(v15.state_dict())


def test_v1_strides_on_the_first_convolution():
    block = get_model("resnet50", stride_on="1x1").layer2[0]
    assert (block.conv1.stride, block.conv2.stride) == ((2, 2), (1, 1))


@pytest.mark.parametrize("depth", [18, 34])
def test_plain_nets_are_the_residual_ones_without_shortcuts(depth):
    plain, residual = get_model(f"plain{depth}"), get_model(f"resnet{depth}", shortcut="A")
    assert count(plain) == count(residual)
    residual.load_state_dict(plain.state_dict())
    for block in (b for b in residual.modules() if isinstance(b, BasicBlock)):
        block.residual = False
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(plain.eval()(x), residual.eval()(x))
    assert not [n for n, _ in plain.named_modules() if "downsample" in n]


@pytest.mark.parametrize(("option", "projections"), [("A", 0), ("B", 3), ("C", 16), ("none", 0)])
def test_shortcuts_project_where_the_paper_says(option, projections):
    with torch.device("meta"):
        net = models.resnet34(shortcut=option)
    blocks = [m for m in net.modules() if isinstance(m, BasicBlock)]
    assert sum(isinstance(b.downsample, nn.Sequential) for b in blocks) == projections
    assert sum(isinstance(b.downsample, PadShortcut) for b in blocks) == (3 if option == "A" else 0)
    assert all(b.residual == (option != "none") for b in blocks)


def test_option_a_pads_half_of_the_zeros_on_each_side():
    x = torch.randn(2, 6, 5, 5)
    out = PadShortcut(6, 11, 2)(x)
    assert out.shape == (2, 11, 3, 3)
    assert torch.equal(out[:, 2:8], x[:, :, ::2, ::2])
    assert out[:, :2].abs().sum() == out[:, 8:].abs().sum() == 0


def by_hand(net, x):
    """Return the logits of a CIFAR net in eval mode, computed with functions as in section 4.2."""

    def norm(x, bn):
        return F.batch_norm(x, bn.running_mean, bn.running_var, bn.weight, bn.bias)

    x = F.relu(norm(F.conv2d(x, net.conv1.weight, padding=1), net.bn1))
    for stage, planes in ((net.layer1, 16), (net.layer2, 32), (net.layer3, 64)):
        for block in stage:
            stride = 1 if x.shape[1] == planes else 2
            out = F.relu(norm(F.conv2d(x, block.conv1.weight, stride=stride, padding=1), block.bn1))
            out = norm(F.conv2d(out, block.conv2.weight, padding=1), block.bn2)
            if stride == 2:
                zeros = torch.zeros(len(x), planes // 4, *out.shape[2:])
                x = torch.cat([zeros, x[:, :, ::2, ::2], zeros], 1)
            x = F.relu(out + x)
    return F.linear(x.mean((2, 3)), net.fc.weight, net.fc.bias)


@pytest.mark.parametrize("name", ["cifar_resnet20", "cifar_resnet32"])
def test_cifar_logits_are_those_of_an_independent_implementation(name):
    torch.manual_seed(0)
    net = get_model(name)
    x = torch.randn(3, 3, 32, 32)
    net(x)  # moves the statistics away from their initial values
    with torch.no_grad():
        assert torch.allclose(net.eval()(x), by_hand(net, x), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "stride_on"),
    [("resnet18", "3x3"), ("resnet50", "3x3"), ("resnet50", "1x1"), ("resnext50_32x4d", "3x3")],
)
@pytest.mark.parametrize("last", [[False, False, True], [False, True, True]])
def test_a_dilated_map_subsampled_is_the_strided_map(name, stride_on, last):
    torch.manual_seed(0)
    options = {"include_top": False, "stride_on": stride_on}
    strided = get_model(name, **options).eval().double()
    dilated = get_model(name, **options, replace_stride_with_dilation=last).eval().double()
    dilated.load_state_dict(strided.state_dict())
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        small, large = strided(x), dilated(x)
    step = 2 ** sum(last)
    assert large.shape[-1] == step * small.shape[-1]
    assert torch.allclose(large[:, :, ::step, ::step], small, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "cifar_resnet20", "darknet53"])
def test_features_pooled_vector_and_last_map_agree_with_the_logits(name):
    torch.manual_seed(0)
    net = get_model(name, num_classes=5).eval()
    vector, top = get_model(name, num_classes=0), get_model(name, include_top=False)
    for other in (vector, top):
        other.load_state_dict(net.state_dict(), strict=False)
        other.eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        maps = net.features(x)
        assert torch.equal(top(x), maps[-1])
        assert torch.equal(vector(x), net.avgpool(maps[-1]).flatten(1))
        assert torch.equal(net.fc(vector(x)), net(x))
    first = {"cifar_resnet20": 1, "darknet53": 2}.get(name, 4)
    assert [64 // m.shape[-1] for m in maps] == [first * 2**i for i in range(len(maps))]


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (33, 65), (224, 32)])
def test_any_image_size_works(size):
    assert models.resnet18(num_classes=3).eval()(torch.randn(1, 3, *size)).shape == (1, 3)


def test_other_channels_and_norms():
    net = models.resnet18(in_channels=5, num_classes=2, norm_layer=lambda c: nn.GroupNorm(4, c))
    assert net(torch.randn(1, 5, 32, 32)).shape == (1, 2)
    plain = models.resnet18(norm_layer=nn.InstanceNorm2d, zero_init_residual=True)
    assert plain.layer1[0].bn2.weight is None  # a norm without parameters has nothing to zero


def test_zero_initialised_blocks_are_identities():
    net = models.resnet50(zero_init_residual=True).eval()
    x = torch.randn(1, 256, 8, 8).relu()
    assert torch.equal(net.layer1[1](x), x)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"shortcut": "D"}, r"shortcut must be one of 'A', 'B', 'C', 'none'; got 'D'"),
        ({"stride_on": "1x1"}, r"stride_on must be one of '3x3'; got '1x1'"),
        ({"stem": "large"}, r"stem must be one of 'imagenet', 'small'; got 'large'"),
        ({"replace_stride_with_dilation": [True]}, r"must have 3 values.*got \[True\]"),
        ({"groups": 2}, "groups of a BasicBlock must be one of 1; got 2"),
        ({"width_per_group": 4}, "base_width of a BasicBlock must be one of 64; got 4"),
    ],
)
def test_invalid_values_raise(options, words):
    with pytest.raises(ValueError, match=words):
        models.resnet18(**options)


def test_custom_blocks_work():
    class Mine(Bottleneck):
        expansion = 2

    class Old(nn.Module):  # torchvision's signature, without our options
        expansion = 1

        def __init__(self, inplanes, planes, stride=1, downsample=None, groups=1, base_width=64,
                     dilation=1, norm_layer=None):  # fmt: skip
            super().__init__()
            self.conv = models.conv3x3(inplanes, planes, stride)

        def forward(self, x):
            return self.conv(x)

    for block in (Mine, Old):
        net = ResNet(block, [1, 1, 1, 1], num_classes=3)
        assert net(torch.randn(2, 3, 32, 32)).shape == (2, 3)


def test_the_blocks_of_torchvision_fit_in_dilated_stages_and_start_at_zero():
    from torchvision.models import resnet as theirs

    options = {"replace_stride_with_dilation": [False, True, True], "zero_init_residual": True}
    for block in (theirs.Bottleneck, Bottleneck):
        torch.manual_seed(3)
        expected = theirs.ResNet(theirs.Bottleneck, [1, 2, 1, 2], **options)
        torch.manual_seed(3)
        net = ResNet(block, [1, 2, 1, 2], **options)
        assert net.layer2[1].bn3.weight.abs().sum() == 0
        same = zip(net.state_dict().items(), expected.state_dict().items(), strict=True)
        assert all(a == b and torch.equal(x, y) for (a, x), (b, y) in same)
        x = torch.randn(2, 3, 32, 32)
        assert torch.equal(net(x), expected(x))


def test_a_subclass_of_basic_block_is_basic():
    class Mine(BasicBlock):
        pass

    with pytest.raises(ValueError, match="stride_on must be one of '3x3'; got '1x1'"):
        ResNet(Mine, [1, 1], stride_on="1x1")
    with pytest.raises(NotImplementedError, match="Mine must be a DilatedBasicBlock"):
        ResNet(Mine, [1, 1], replace_stride_with_dilation=[True])


def test_dilations_may_be_a_tensor_and_need_one_value_per_stage():
    net = models.resnet18(replace_stride_with_dilation=torch.tensor([False, False, True]))
    assert net.layer4[0].conv1.stride == (1, 1)
    with pytest.raises(ValueError, match=r"must have 3 values.*got \[\]"):
        models.resnet18(replace_stride_with_dilation=[])
    with pytest.raises(TypeError):
        models.resnet18(num_classes=None)


def test_both_convolutions_are_found_where_other_code_looks_for_them():
    from resnetkit.models.resnet import conv1x1, conv3x3

    assert (conv1x1, conv3x3) == (models.conv1x1, models.conv3x3)


def test_forward_calls_the_method_that_subclasses_override():
    class Doubled(ResNet):
        def _forward_impl(self, x):
            return 2 * super()._forward_impl(x)

    x = torch.randn(1, 3, 64, 64)
    net = Doubled(BasicBlock, [1, 1, 1, 1], num_classes=3, width=8).eval()
    plain = ResNet(BasicBlock, [1, 1, 1, 1], num_classes=3, width=8).eval()
    plain.load_state_dict(net.state_dict())
    assert torch.equal(net(x), 2 * plain(x))


@pytest.mark.filterwarnings(
    "ignore:.torch.jit:FutureWarning", "ignore:.torch.jit:DeprecationWarning"
)
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet18", {}),
        ("resnet50", {"stride_on": "1x1"}),
        ("resnet18", {"replace_stride_with_dilation": [False, True, True]}),
        ("resnet18", {"include_top": False}),
        ("resnet18", {"num_classes": 0}),
        ("cifar_resnet20", {}),
        ("plain18", {}),
    ],
)
def test_it_can_be_scripted(name, options):
    net = get_model(name, **options).eval()
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(torch.jit.script(net)(x), net(x))
