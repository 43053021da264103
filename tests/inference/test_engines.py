from __future__ import annotations

import copy

import pytest
import torch
import torchvision
from torch import nn

from resnetkit import runtime
from resnetkit.errors import RecipeError
from resnetkit.inference import engines
from resnetkit.inference.engines import EngineChoice
from resnetkit.models import get_model

CPU = torch.device("cpu")
SIZE, BATCH = 64, 4


def set_statistics(model: nn.Module) -> nn.Module:
    """Give the batch norms non-trivial running statistics, as training does."""
    torch.manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.normal_(module.bias, std=0.1)
    model.train()
    with torch.no_grad():
        for _ in range(30):
            model(torch.randn(8, 3, SIZE, SIZE))
    return model.eval()


@pytest.fixture(scope="module")
def pair():
    """Return torchvision's ResNet-18, and ours with the same weights."""
    theirs = set_statistics(torchvision.models.resnet18(weights=None, num_classes=10))
    ours = get_model("resnet18", num_classes=10)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours.eval().to(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet18", {}),
        ("resnet50", {"width": 16, "stride_on": "1x1"}),
        ("resnext50_32x4d", {}),
        ("cifar_resnet20", {}),
        ("cifar_resnet20", {"shortcut": "C"}),
        ("darknet53", {}),
    ],
)
def test_folding_changes_no_answer(name, options):
    model = set_statistics(get_model(name, num_classes=7, **options))
    before = copy.deepcopy(model.state_dict())
    folded = engines.fold_batch_norms(model)
    assert not [m for m in folded.modules() if isinstance(m, nn.BatchNorm2d)]
    x = torch.randn(2, 3, SIZE, SIZE)
    with torch.no_grad():
        torch.testing.assert_close(folded(x), model(x), rtol=1e-3, atol=1e-3)
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[key]), key


def test_batch_norms_without_statistics_stay():
    model = get_model("resnet18", norm_layer=lambda c: nn.BatchNorm2d(c, track_running_stats=False))
    norms = [m for m in engines.fold_batch_norms(model).modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 20


@pytest.mark.parametrize(
    "choice",
    [
        EngineChoice("eager", "fp32"),
        EngineChoice("eager", "bf16"),
        pytest.param(EngineChoice("openvino", "fp32"), marks=pytest.mark.slow),
        pytest.param(EngineChoice("openvino", "bf16"), marks=pytest.mark.slow),
        pytest.param(EngineChoice("onnx", "fp32"), marks=pytest.mark.slow),
        pytest.param(EngineChoice("compile", "fp32"), marks=pytest.mark.slow),
        pytest.param(EngineChoice("compile", "bf16"), marks=pytest.mark.slow),
    ],
)
def test_every_engine_agrees_with_torchvision_for_any_batch_size(pair, choice):
    theirs, ours = pair
    if choice.engine in ("openvino", "onnx"):
        pytest.importorskip({"onnx": "onnxruntime"}.get(choice.engine, choice.engine))
    engine = engines.start_engine(choice, ours, SIZE, CPU, BATCH)
    assert choice.engine in str(engine)
    assert f"torch {torch.__version__.split('+')[0]}" in str(engine)
    exact = choice.precision == "fp32"
    torch._dynamo.reset()  # drop what other tests compiled
    for again in (False, True):  # the second time nothing is compiled
        for count in (BATCH, 1, 2, 3, 9):
            torch.manual_seed(count)
            x = torch.randn(count, 3, SIZE, SIZE)
            with torch.no_grad():
                expected = theirs(x)
            with torch._dynamo.config.patch(error_on_recompile=again):
                features, logits = engine(x)
            assert features.shape == (count, 512)
            assert features.dtype == logits.dtype == torch.float32
            torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4 if exact else 0.05)
            found, wanted = logits.softmax(1), expected.softmax(1)
            assert (found - wanted).abs().max() < (1e-4 if exact else 0.02)
            assert torch.equal(found.argmax(1), wanted.argmax(1))
            with torch.inference_mode():
                torch.testing.assert_close(ours.fc(features), logits)


def test_few_sizes_are_prepared_and_one_image_runs_alone(monkeypatch):
    """Use a compiler that only counts; each size runs once with zeros when it is prepared."""
    prepared, computed = [], []

    def compiled(module, **options):
        def run(images):
            (computed if images.any() else prepared).append(len(images))
            return module(images)

        return run

    monkeypatch.setattr(torch, "compile", compiled)
    model = set_statistics(get_model("cifar_resnet20", num_classes=10, width=4))
    run = engines.start_engine(EngineChoice("compile", "fp32"), model, 16, CPU, 32)
    seen = {}
    for count in (1, 2, 3, 31, 32, 33, 70, 33, 1):
        computed.clear()
        x = torch.randn(count, 3, 16, 16)
        with torch.no_grad():
            torch.testing.assert_close(run(x)[1], model(x), rtol=1e-3, atol=1e-4)
        seen[count] = list(computed)
    assert seen[1] == [1]
    assert seen == {1: [1], 2: [2], 3: [4], 31: [32], 32: [32], 33: [32, 1], 70: [32, 32, 8]}
    assert prepared == [1, 2, 4, 32, 8]


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["openvino", "onnx", "compile"])
def test_one_image_runs_alone_and_gives_the_same_in_every_batch(engine, monkeypatch):
    shapes = []
    if engine == "openvino":
        openvino = pytest.importorskip("openvino")
        infer = openvino.InferRequest.infer
        monkeypatch.setattr(
            openvino.InferRequest,
            "infer",
            lambda self, x, **kw: (shapes.append(len(x[0])), infer(self, x, **kw))[1],
        )
    elif engine == "onnx":
        session = pytest.importorskip("onnxruntime").InferenceSession
        run = session.run
        monkeypatch.setattr(
            session,
            "run",
            lambda self, out, x: (shapes.append(len(*x.values())), run(self, out, x))[1],
        )
    model = set_statistics(get_model("cifar_resnet20", num_classes=10, width=8))
    x = torch.randn(33, 3, 32, 32)
    with torch.no_grad():
        expected = model(x)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    ready = engines.start_engine(EngineChoice(engine, "fp32"), model, 32, CPU, 32)
    for _ in range(2):
        for count in (1, 2, 3, 31, 32, 33):
            shapes.clear()
            logits = ready(x[:count])[1]
            torch.testing.assert_close(logits, expected[:count], rtol=0, atol=1e-5)
            if engine != "compile":
                assert count <= sum(shapes) < 2 * count
                assert count > 1 or shapes == [1]
    if engine == "compile":  # one graph for each of 1, 2, 4 and 32 images
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 4


def test_the_eager_engine_is_the_model_itself(pair):
    _, ours = pair
    engine = engines.start_engine(EngineChoice("eager", "fp32"), ours, SIZE, CPU, BATCH)
    x = torch.randn(3, 3, SIZE, SIZE)
    with torch.no_grad():
        assert torch.equal(engine(x)[1], ours(x))
    shared = {p.data_ptr() for p in ours.parameters()}
    assert {p.data_ptr() for p in engine.reference.parameters()} <= shared  # nothing is copied


def test_the_reference_decides_near_ties(pair):
    _, ours = pair
    model = copy.deepcopy(ours)
    with torch.no_grad():  # two nearly identical classes
        model.fc.weight[1] = model.fc.weight[0]
        model.fc.bias[:2] = 30.0
        model.fc.bias[1] += 1e-5
    torch.manual_seed(0)  # with these images, the unchanged model has no near tie
    x = torch.randn(6, 3, SIZE, SIZE)
    with torch.no_grad():
        expected = model(x)
    features, logits = engines.start_engine(EngineChoice("eager", "bf16"), model, SIZE, CPU, BATCH)(
        x
    )
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)
    with torch.inference_mode():
        torch.testing.assert_close(model.fc(features), logits)
    # Without a near tie, the answers are those of bf16.
    far = engines.start_engine(EngineChoice("eager", "bf16"), ours, SIZE, CPU, BATCH)
    torch.testing.assert_close(far(x)[0], far.features(x))


def test_auto_resolves_to_the_fastest_engine(monkeypatch):
    def resolve(installed, precision="auto", fast="bf16", engine="auto", many=True, device=CPU):
        monkeypatch.setattr(
            engines, "find_spec", lambda name: name if name.startswith(installed) else None
        )
        here = runtime.Runtime(device, fast)
        monkeypatch.setattr(runtime, "pick", lambda device="auto", precision="auto": here)
        return tuple(engines.resolve_engine(EngineChoice(engine, precision), device, many))

    both = ("openvino", "onnx")
    assert resolve(both) == ("openvino", "bf16")
    assert resolve(both, fast="fp32") == ("openvino", "fp32")
    assert resolve(("onnx",)) == ("eager", "bf16")
    assert resolve(("onnx",), fast="fp32") == ("onnx", "fp32")
    assert resolve((), fast="fp32") == ("eager", "fp32")
    assert resolve(both, precision="fp32") == ("openvino", "fp32")
    assert resolve(both, many=False) == ("eager", "fp32")
    assert resolve(both, many=False, engine="openvino") == ("openvino", "bf16")
    assert resolve(both, engine="eager") == ("eager", "fp32")
    assert resolve(both, engine="onnx") == ("onnx", "fp32")


def test_unavailable_engines_are_refused(monkeypatch):
    monkeypatch.setattr(engines, "find_spec", lambda name: None)
    for engine in ("openvino", "onnx"):
        with pytest.raises(RecipeError, match=rf'pip install "resnetkit\[{engine}\]"'):
            engines.check_engine(engine, "auto", CPU)
    monkeypatch.setattr(engines.shutil, "which", lambda name: None)
    with pytest.raises(RecipeError, match="needs a C\\+\\+ compiler"):
        engines.check_engine("compile", "auto", CPU)
    monkeypatch.undo()
    with pytest.raises(RecipeError, match="engine must be auto, eager, compile, openvino or onnx"):
        engines.check_engine("tensorrt", "auto", CPU)
    with pytest.raises(RecipeError, match="precision must be auto, fp32 or bf16"):
        engines.check_engine("auto", "int8", CPU)
    with pytest.raises(RecipeError, match="supports only fp32"):
        engines.check_engine("onnx", "bf16", CPU)
    with pytest.raises(RecipeError, match="--device cpu"):
        engines.check_engine("openvino", "auto", torch.device("cuda"))
