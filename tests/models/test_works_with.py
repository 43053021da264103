"""Tools that people use with torchvision's ResNets work with these."""

import io
import shutil

import pytest
import torch
from torch import nn
from torch.torch_version import TorchVersion
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.feature_extraction import create_feature_extractor
from torchvision.ops import FrozenBatchNorm2d

from resnetkit import models
from resnetkit.models import BasicBlock, get_model

SMALL = ["resnet18", "resnet50", "cifar_resnet20", "plain18", "darknet53"]


@pytest.fixture
def x():
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ["resnet18", "resnext50_32x4d", "cifar_resnet20"])
def test_features_can_be_extracted(name, x):
    net = get_model(name).eval()
    nodes = {name: name for name in net.stages} | {"flatten": "vector"}
    found = create_feature_extractor(net, nodes)(x)
    for ours, stage in zip(net.features(x), net.stages, strict=True):
        assert torch.equal(found[stage], ours)
    assert found["vector"].ndim == 2
    last = "layer2.0.relu_1" if isinstance(net.layer2[0], BasicBlock) else "layer2.0.relu_2"
    inner = create_feature_extractor(net, [last])(x)
    assert torch.equal(inner[last], net.layer2[0](found["layer1"]))


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_it_is_a_backbone_for_detectors(name, x):
    net = get_model(name, norm_layer=FrozenBatchNorm2d)
    channels = [net.inplanes // 8 * 2**i for i in range(4)]
    layers = {f"layer{i + 1}": str(i) for i in range(4)}
    maps = BackboneWithFPN(net, layers, channels, 32)(x)
    assert [tuple(m.shape) for m in maps.values()] == [(2, 32, s, s) for s in (16, 8, 4, 2, 1)]


def test_layers_can_be_taken_out_by_name(x):
    net = get_model("resnet18").eval()
    found = IntermediateLayerGetter(net, {"layer2": "a", "layer4": "b"})(x)
    assert torch.equal(found["b"], net.features(x)[-1])


@pytest.mark.parametrize("name", ["resnet18", "cifar_resnet20"])
def test_it_exports_with_dynamic_batch_and_size(name, x):
    net = get_model(name).eval()
    auto = torch.export.Dim.AUTO
    program = torch.export.export(net, (x,), dynamic_shapes=({0: auto, 2: auto, 3: auto},))
    # Before PyTorch 2.14, an exported program needs maps of the same parity as the example's.
    # The same is true of torchvision's networks.
    side = 70 if torch.__version__ >= TorchVersion("2.14") else 80
    for shape in ((1, 3, 64, 64), (5, 3, 96, side)):
        other = torch.randn(shape)
        with torch.no_grad():
            assert torch.allclose(program.module()(other), net(other), atol=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
@pytest.mark.parametrize("name", ["resnet18", "cifar_resnet20"])
def test_it_compiles_in_one_graph(name, x):
    torch._dynamo.reset()
    net = get_model(name).eval()
    compiled = torch.compile(net, fullgraph=True)
    with torch.no_grad():
        assert torch.allclose(compiled(x), net(x), atol=1e-4)


@pytest.mark.parametrize("name", SMALL)
def test_its_graph_has_no_breaks(name, x):
    torch._dynamo.reset()  # what other tests compiled from the same forward counts toward a limit
    net = get_model(name)
    traced = torch.compile(net, fullgraph=True, backend="eager")
    assert torch.equal(traced.eval()(x), net.eval()(x))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "resnet50", "cifar_resnet20"])
@pytest.mark.filterwarnings("ignore")
def test_it_exports_to_onnx(name, x):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    net = get_model(name).eval()
    file = io.BytesIO()
    batch = torch.export.Dim("batch", min=1, max=64)
    torch.onnx.export(net, (x,), dynamo=True, dynamic_shapes=({0: batch},)).save(file)
    session = onnxruntime.InferenceSession(file.getvalue())
    for images in (x, x[:1]):
        (logits,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
        with torch.no_grad():
            assert torch.allclose(torch.from_numpy(logits), net(images), atol=1e-4)


def test_norms_can_be_synchronized(x):
    net = nn.SyncBatchNorm.convert_sync_batchnorm(get_model("resnet18"))
    assert isinstance(net.bn1, nn.SyncBatchNorm)


def test_it_runs_in_channels_last_and_in_bfloat16(x):
    net = get_model("resnet18").eval()
    with torch.no_grad():
        plain = net(x)
        last = net.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
        assert torch.allclose(last, plain, atol=1e-4)
        assert net.bfloat16()(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["resnet18", "resnext50_32x4d"])
def test_timms_parameters_have_our_names(name):
    timm = pytest.importorskip("timm")
    theirs = timm.create_model(name, pretrained=False).eval()
    ours = get_model(name).eval()
    ours.load_state_dict(theirs.state_dict())
    assert models.recognise(theirs.state_dict()).architecture == name
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(ours(x), theirs(x), atol=1e-5)
