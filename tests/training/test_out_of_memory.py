from __future__ import annotations

import pytest
import torch

from resnetkit import train
from resnetkit.errors import TrainingError
from resnetkit.evaluation import evaluate
from resnetkit.models import get_model
from resnetkit.runtime import Runtime
from resnetkit.training import loop, measure
from resnetkit.training.out_of_memory import explain_out_of_memory
from resnetkit.training.recipe import load_recipe

CPU = Runtime(torch.device("cpu"), "fp32")
CUDA = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nAnd much more.")
MPS = RuntimeError("MPS backend out of memory (MPS allocated: 8.80 GB, max allowed: 9.07 GB).")
MESSAGE = (
    r"(?s)not have enough memory for \d+ images.*--set accumulate=2.*--batch-size 4.*out of memory"
)


def raising(error):
    def fail(*args, **settings):
        raise error

    return fail


@pytest.mark.parametrize("error", [CUDA, MPS])
@pytest.mark.parametrize("place", ["plan", "step", "validation"])
def test_the_error_says_what_to_change(error, place, flat_folder, small, tmp_path, monkeypatch):
    module, name = {
        "plan": (measure.F, "cross_entropy"),
        "step": (loop, "training_step"),
        "validation": (evaluate, "normalize"),
    }[place]
    monkeypatch.setattr(module, name, raising(error))
    with pytest.raises(TrainingError, match=MESSAGE) as caught:
        train(flat_folder, out=tmp_path / "run", show_plan=place == "plan", **small)
    assert "And much more" not in str(caught.value)


def test_the_error_names_numbers_that_fit():
    recipe = load_recipe("fast").with_settings({"batch_size": 96, "accumulate": 4})
    runtime = Runtime(torch.device("cuda", 1), "bf16", 0, 8)
    with (
        pytest.raises(TrainingError, match=r"cuda:1 .* 3 images .*accumulate=8.*--batch-size 48"),
        explain_out_of_memory(recipe, runtime),
    ):
        raise CUDA


def test_other_errors_are_not_changed():
    with (
        pytest.raises(RuntimeError, match=r"^shapes$"),
        explain_out_of_memory(load_recipe("fast"), CPU),
    ):
        raise RuntimeError("shapes")


def test_measuring_exchanges_nothing_where_batch_norm_is_synchronized(monkeypatch):
    """Ranks measure different numbers of steps, so an exchange in a step could wait forever."""
    recipe = load_recipe("demo").with_settings({"resize_size": 32, "epochs": 2, "batch_size": 8})
    model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(get_model("cifar_resnet20", width=4))
    norms = [type(module) for module in model.modules()]
    names = list(model.state_dict())
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda *group: 2)
    assert measure.estimate_seconds(model, recipe, CPU, 16, 8) > 0
    assert [type(module) for module in model.modules()] == norms
    assert list(model.state_dict()) == names
