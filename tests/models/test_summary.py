import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from resnetkit import models
from resnetkit.models import get_model, summarize

UNLISTED = [
    ("resnet18", {"num_classes": 13, "in_channels": 4, "shortcut": "C"}, (97, 65)),
    ("resnet50", {"stride_on": "1x1", "replace_stride_with_dilation": [False, True, True]}, 96),
    ("resnet50", {"stem": "small", "width": 24, "num_classes": 0}, 33),
    ("resnext50_32x4d", {"include_top": False}, 71),
    ("cifar_resnet44", {"shortcut": "B", "width": 24}, 32),
    ("cifar_plain56", {}, 40),
    ("darknet53", {"in_channels": 1}, (64, 96)),
    ("wide_resnet50_2", {"norm_layer": lambda c: nn.GroupNorm(4, c)}, 64),
]


@pytest.mark.parametrize(("name", "options", "size"), UNLISTED)
def test_it_agrees_with_pytorchs_own_counter(name, options, size):
    height, width = (size, size) if isinstance(size, int) else size
    with torch.device("meta"):
        model = get_model(name, **options).eval()
        x = torch.empty(1, options.get("in_channels", 3), height, width)
    with FlopCounterMode(display=False) as counter:
        model(x)
    summary = summarize(model, size)
    assert 2 * summary.macs == counter.get_total_flops()
    assert summary.parameters == sum(p.numel() for p in model.parameters())
    assert sum(stage.macs for stage in summary.stages) == summary.macs
    assert sum(stage.parameters for stage in summary.stages) == summary.parameters


def test_layers_are_counted_as_in_the_paper():
    summary = summarize(models.resnet101())
    assert [stage.layers for stage in summary.stages] == [1, 9, 12, 69, 9, 1]
    names = [stage.name for stage in summary.stages]
    assert names == ["stem", "layer1", "layer2", "layer3", "layer4", "head"]
    assert summary.stages[3].output == (1, 1024, 14, 14)
    assert summary.layers == 101


@pytest.mark.parametrize(
    "name", [n for n in models.list_models() if n[-1].isdigit() and n != "cifar_resnet1202"]
)
def test_the_number_in_a_name_is_its_number_of_layers(name):
    with torch.device("meta"):
        model = get_model(name)
    depth = name.removeprefix("cifar_").removesuffix("_2").lstrip("abcdefghijklmnopqrstuvwxyz_")
    assert summarize(model, 32).layers == int(depth)


def test_the_table_can_be_read():
    lines = str(summarize(models.cifar_resnet20(), 32)).splitlines()
    assert lines[1].split() == ["stem", "16", "x", "32", "x", "32", "1", "464", "0.000"]
    assert lines[-1].split() == ["total", "20", "269,722", "0.041"]


def test_a_network_without_stages_is_grouped_by_its_modules():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 2))
    summary = summarize(net, 8)
    assert [stage.name for stage in summary.stages] == ["0", "1", "2", "3"]
    assert summary.macs == 4 * 36 * 27 + 4 * 36 * 2


def test_the_model_itself_is_left_as_it_was():
    net = models.resnet18().train()
    summarize(net)
    assert net.training
    assert net.conv1.weight.device.type == "cpu"
    assert not net.conv1._forward_hooks


class _Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.again = nn.Conv2d(4, 4, 3, padding=1)
        self.tied = nn.Conv2d(4, 4, 3, padding=1)
        self.tied.weight = self.again.weight
        self.up = nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2)

    def forward(self, x):
        return self.up(self.tied(self.again(self.again(self.first(x)))))


def test_shared_parameters_count_once_and_transposed_convolutions_are_counted():
    net = _Shared()
    with FlopCounterMode(display=False) as counter:
        net(torch.zeros(1, 3, 10, 7))
    summary = summarize(net, (10, 7))
    assert 2 * summary.macs == counter.get_total_flops()
    assert sum(stage.parameters for stage in summary.stages) == summary.parameters
    assert [row.name for row in summary.rows] == ["first", "again", "again", "tied", "up"]


def test_a_network_without_convolution_raises():
    with pytest.raises(ValueError, match="begins with a Conv2d; got a Linear without one"):
        summarize(nn.Linear(3, 2))
