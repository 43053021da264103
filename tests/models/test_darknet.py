import torch
from torch import nn
from torch.nn import functional as F

from resnetkit.models import DarkNet, darknet53, summarize


def test_it_has_the_published_size():
    with torch.device("meta"):
        summary = summarize(darknet53(), 256)
    assert summary.parameters == 41_609_928
    assert summary.layers == 53
    assert [stage.output[1:] for stage in summary.stages] == [
        (32, 256, 256), (64, 128, 128), (128, 64, 64), (256, 32, 32), (512, 16, 16), (1024, 8, 8),
        (1000,),
    ]  # fmt: skip


def test_its_logits_are_those_of_the_papers_table():
    torch.manual_seed(0)
    net = DarkNet([1, 2], num_classes=3)
    x = torch.randn(2, 3, 16, 16)
    net(x)
    net.eval()

    def unit(x, conv, bn):
        x = F.conv2d(x, conv.weight, stride=conv.stride, padding=conv.kernel_size[0] // 2)
        x = F.batch_norm(x, bn.running_mean, bn.running_var, bn.weight, bn.bias)
        return F.leaky_relu(x, 0.1)

    out = unit(x, net.conv1, net.bn1)
    for stage in (net.layer1, net.layer2):
        out = unit(out, stage[0].conv, stage[0].bn)
        assert stage[0].conv.stride == (2, 2)
        for block in stage[1:]:
            assert block.squeeze.conv.out_channels * 2 == block.squeeze.conv.in_channels
            inner = unit(out, block.squeeze.conv, block.squeeze.bn)
            out = out + unit(inner, block.expand.conv, block.expand.bn)
    logits = F.linear(out.mean((2, 3)), net.fc.weight, net.fc.bias)
    with torch.no_grad():
        assert torch.allclose(net(x), logits, atol=1e-5)


def test_its_norm_is_an_option():
    net = DarkNet([1], norm_layer=lambda c: nn.GroupNorm(2, c), num_classes=0)
    assert net(torch.randn(1, 3, 8, 8)).shape == (1, 64)
    assert not [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
