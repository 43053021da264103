"""Two real processes on this machine, started by torchrun, compared with one.

Each test that starts them runs a short script or the command itself under `torchrun`.
"""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from resnetkit import randomness, train
from resnetkit.data import folder
from resnetkit.data.dataset import Images
from resnetkit.data.loader import Loader, shares
from resnetkit.data.preprocessing import Preprocessing
from resnetkit.errors import DataError, RecipeError
from resnetkit.models import get_model
from resnetkit.models.weights import modelfile
from resnetkit.runtime import Runtime
from resnetkit.training import checkpoint, distributed
from resnetkit.training.recipe import load_recipe

CPU = torch.device("cpu")
FILES = ("model.safetensors", "last.safetensors", "history.csv", "metrics.json", "split.csv")
FLAGS = [
    "--model", "cifar_resnet20", "--set", "model_options={width: 8}", "--epochs", "3",
    "--batch-size", "8", "--image-size", "32", "--set", "checkpoint_seconds=0",
    "--set", "precision=fp32", "--workers", "1",
]  # fmt: skip

STEPS = """
import sys
import torch
from torch import nn
from resnetkit import runtime
from resnetkit.data import folder
from resnetkit.data.dataset import Images
from resnetkit.data.loader import Loader
from resnetkit.models import get_model
from resnetkit.training import distributed, loop
from resnetkit.training.loss import class_weights
from resnetkit.training.param_groups import make_optimizer
from resnetkit.training.outcomes import loss_and_correct
from resnetkit.training.recipe import load_recipe
from resnetkit.training.state import State

data, out, mixed = sys.argv[1], sys.argv[2], sys.argv[3] == "mixed"
recipe = load_recipe("fast").with_settings({
    "image_size": 32, "resize_size": 32, "epochs": 1, "batch_size": 8, "optimizer": "sgd",
    "momentum": 0.0,
    "class_weights": "balanced", "accumulate": 2, "precision": "fp32",
    "mixup": 0.4 * mixed, "cutmix": 1.0 * mixed,
})
with runtime.connected():
    this = runtime.pick("cpu", "fp32")
    split = folder.read_dataset(data).splits["all"]
    torch.manual_seed(0)
    # Batch norm would see only its rank's share. Group norm gives the same result as one process.
    norm = lambda maps: nn.GroupNorm(2, maps)
    model = get_model("cifar_resnet20", width=4, num_classes=3, norm_layer=norm)
    network = distributed.wrap_model(model, recipe, this)
    state = State(
        model, make_optimizer(model, recipe), {"data": {"classes": [1, 2, 3]}}, network=network
    )
    weights = class_weights(recipe, split.counts(3), this.device)
    seen = []
    model.register_forward_pre_hook(lambda _, given: seen.append(given[0].clone()))
    images = Images(split, recipe.preprocessing())
    loader = Loader(images, 8, 1, this.rank, this.world_size, mixed=mixed)
    steps = []
    for batch in loader.training(recipe.augmentation(), 24, recipe.seed, 0):
        outcome = loop.training_step(state, batch, recipe, this, 0.05, weights)
        loss, correct = loss_and_correct(outcome.totals)
        steps.append({
            "indices": batch.indices[batch.local_indices][batch.lead:].tolist(),
            "images": torch.cat(seen),
            "loss": sum(row[0] for row in this.gather([loss])),
            "correct": sum(row[0] for row in this.gather([correct])),
            "rng": torch.initial_seed(),
            "weights": torch.cat([p.detach().flatten() for p in model.parameters()]),
        })
        seen.clear()
        state.step += 1
    torch.save(steps, f"{out}.{this.rank}")
"""

COMMAND = """
import os, signal, sys
from pathlib import Path
from torch.nn import functional as F
from resnetkit.cli import main
from resnetkit.training import loop

rank, what, at, codes = int(os.environ["RANK"]), sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
sys.argv = ["resnet", *sys.argv[4:]]
real, calls = loop.training_step, 0

def step(*args):
    global calls
    calls += 1
    if calls == at and rank == 1:
        if what == "die":
            os.kill(os.getpid(), 9)
        plain = F.cross_entropy  # what == "nan"
        F.cross_entropy = lambda *a, **b: plain(*a, **b) * float("nan")
    return real(*args)

if what != "wait":
    loop.training_step = step
try:
    main()
except SystemExit as end:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # from torchrun; the code must be written
    (codes / str(rank)).write_text(str(end.code))
    raise
"""

AFTER = """
import sys
from pathlib import Path
from resnetkit import runtime
from resnetkit.training.seeds import train_seeds

where = runtime.pick("cpu", "fp32")
for number in range(100):
    with runtime.connected():
        assert where.gather([number]) == [[number], [number]]
settings = {"model": "cifar_resnet20", "epochs": 1, "image_size": 32}
train_seeds(sys.argv[1], out=sys.argv[2], seeds=[0, 1], **settings)
names = [task.read_text() for task in Path("/proc/self/task").glob("*/comm")]
Path(f"{sys.argv[2]}.{where.rank}").write_text(str(sum("gloo" in name for name in names)))
"""


def torchrun(*arguments, ranks=2):
    """Return the command line that starts ``ranks`` processes on a free port."""
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--no-python"]
    return [*start, "--nproc-per-node", str(ranks), sys.executable, *map(str, arguments)]


def run(command, **more):
    return subprocess.run(command, capture_output=True, text=True, timeout=300, **more)


@pytest.fixture
def script(tmp_path):
    def write(text):
        path = tmp_path / "script.py"
        path.write_text(text)
        return path

    return write


@pytest.mark.slow
@pytest.mark.parametrize("mixing", ["mixed", "plain"])
def test_two_processes_compute_what_one_does(flat_folder, tmp_path, script, mixing):
    """Images, order, augmentation and mixing are bit-identical. Loss and update, with class weights
    and accumulation, differ only by the order of summation."""
    for number in range(9):  # so that class weights differ
        (flat_folder / "red" / f"{number:03d}.png").unlink()
    path = script(STEPS)
    for command, name in (
        ([sys.executable, str(path)], "one"),
        (torchrun(path), "two"),
    ):
        done = run([*command, str(flat_folder), str(tmp_path / name), mixing])
        assert done.returncode == 0, done.stderr
    alone, first, second = (torch.load(tmp_path / name) for name in ("one.0", "two.0", "two.1"))
    assert len(alone) == len(first) == len(second) == 4
    for one, left, right in zip(alone, first, second, strict=True):
        assert left["indices"] + right["indices"] == one["indices"]
        assert torch.equal(torch.cat([left["images"], right["images"]]), one["images"])
        assert left["loss"] == right["loss"] == pytest.approx(one["loss"], rel=1e-5)
        assert left["correct"] == right["correct"] == one["correct"]
        assert torch.equal(left["weights"], right["weights"])
        torch.testing.assert_close(left["weights"], one["weights"], rtol=1e-4, atol=1e-6)
        assert left["rng"] == one["rng"] != right["rng"]
    moved = (alone[-1]["weights"] - alone[0]["weights"]).abs().max()
    assert moved > 1e-3  # the weights changed, so there was something to compare


@pytest.mark.slow
def test_a_run_of_two_processes_is_like_any_other(flat_folder, tmp_path):
    out = tmp_path / "run"
    gray = ["--channels", "1"]  # the image that prepares DDP must also have one channel
    done = run(torchrun("-m", "resnetkit", "train", flat_folder, "--out", out, *FLAGS, *gray))
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("epoch 3/3") == 1  # only the main rank prints
    assert done.stdout.count("resnet evaluate") == 1
    assert "2 processes of" in done.stderr
    with (out / "history.csv").open() as lines:
        assert len(list(csv.DictReader(lines))) == 3
    network, _ = modelfile.read(out / "model.safetensors")
    plain = get_model("cifar_resnet20", width=8, num_classes=3, in_channels=1).state_dict()
    assert list(network.state_dict()) == list(plain)
    assert json.loads((out / "environment.json").read_text())["processes"] == 2

    # One process evaluates the file and gets the metrics that the run wrote.
    measured = tmp_path / "measured"
    arguments = [out / "model.safetensors", flat_folder, "--split", "val", "--out", measured]
    done = run([sys.executable, "-m", "resnetkit", "evaluate", *map(str, arguments)])
    assert done.returncode == 0, done.stderr
    assert (measured / "metrics.json").read_bytes() == (out / "metrics.json").read_bytes()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks for threads in /proc")
def test_processes_connect_again_and_nothing_outlives_a_connection(flat_folder, tmp_path, script):
    """Regression: about one process in thirty aborted because it ended while a thread of its
    connection was running. Processes that connected again read the previous addresses."""
    done = run(torchrun(script(AFTER), flat_folder, tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    assert [(tmp_path / f"run.{rank}").read_text() for rank in "01"] == ["0", "0"]
    assert len(json.loads((tmp_path / "run" / "seeds.json").read_text())["accuracies"]) == 2


@pytest.mark.slow
def test_a_process_that_dies_stops_the_other_and_the_run_ends_in_the_same_bits(
    flat_folder, tmp_path, script
):
    begin = ["train", flat_folder, *FLAGS, "--resume", "--set", "ema=0.9", "--set", "mixup=0.2"]
    whole = run(torchrun("-m", "resnetkit", *begin, "--out", tmp_path / "whole"))
    assert whole.returncode == 0, whole.stderr
    path, out = script(COMMAND), tmp_path / "run"
    for at in (3, 5):  # in the first and in the second epoch, which have five batches each
        done = run(torchrun(path, "die", at, tmp_path, *begin, "--out", out))
        assert done.returncode == 1
        assert "Another process of this run has ended" in done.stderr
        assert (tmp_path / "0").read_text() == "1"
    assert checkpoint.read_newest(out / "state").values["step"] == 2 + 4
    done = run(torchrun("-m", "resnetkit", "train", "--resume", out))
    assert done.returncode == 0, done.stderr
    for name in FILES:
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


@pytest.mark.slow
def test_a_loss_that_is_not_finite_on_one_rank_stops_both(flat_folder, tmp_path, script):
    out = tmp_path / "run"
    begin = ["train", flat_folder, *FLAGS, "--out", out]
    done = run(torchrun(script(COMMAND), "nan", 3, tmp_path, *begin))
    assert done.returncode == 1
    assert [(tmp_path / rank).read_text() for rank in "01"] == ["1", "1"]
    lines = [text for text in done.stderr.splitlines() if text.startswith("resnet: The loss")]
    assert len(lines) == 1, done.stderr
    line = lines[0]
    assert "The loss is nan at step 3" in line
    with (out / "split.csv").open() as lines:
        rows = [row["path"] for row in csv.DictReader(lines) if row["split"] == "train"]
    batch = randomness.permutation(0, 0, len(rows))[16:24]
    named = line.split("on rank 1: ")[1].split(", ")
    assert named == [rows[i] for i in shares(batch, 2)[1]]
    assert checkpoint.read_newest(out / "state").values["step"] == 2  # no bad weights were saved


@pytest.mark.slow
@pytest.mark.parametrize("to", ["torchrun", "one process"])
def test_a_signal_saves_and_stops_all(flat_folder, tmp_path, script, to):
    out = tmp_path / "run"
    begin = ["train", flat_folder, *FLAGS, "--out", out, "--set", "epochs=60"]
    command = torchrun(script(COMMAND), "wait", 0, tmp_path, *begin)
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not checkpoint.list_generations(out / "state"):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    number = process.pid if to == "torchrun" else second_of(process.pid)
    os.kill(number, signal.SIGTERM)
    _, error = process.communicate(timeout=60)
    assert (
        error.count("To resume: torchrun --standalone --nproc-per-node 2 -m resnetkit train") == 1
    )
    codes = [int((tmp_path / rank).read_text()) for rank in "01"]
    assert codes == [143, 143], error
    saved = checkpoint.read_newest(out / "state").values
    assert saved["world_size"] == 2
    assert 0 < saved["step"] < 60 * 5


def second_of(parent):
    """Return the id of torchrun's child process with rank 1."""
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    for child in children:
        if b"\0RANK=1\0" in b"\0" + Path(f"/proc/{child}/environ").read_bytes():
            return int(child)
    raise AssertionError(children)


def test_resuming_with_another_number_of_processes_prints_a_message(
    flat_folder, small, tmp_path, monkeypatch, capsys
):
    out = tmp_path / "run"
    train(flat_folder, out=out, **small)
    saved = checkpoint.read_newest(out / "state")
    saved.values["world_size"] = 2  # as if two processes had saved the state
    checkpoint.write_generation(out / "state", saved)
    capsys.readouterr()
    train(out, resume=True)
    text = " ".join(capsys.readouterr().err.split())
    assert "Resuming with 1 rank a run saved with 2" in text
    assert "results will not be bit-identical" in text


def test_the_shares_of_a_batch_are_the_batch(flat_folder):
    split = folder.read_dataset(flat_folder).splits["all"]
    images = Images(split, Preprocessing(32, 32))
    augmentation = load_recipe("fast").augmentation()
    whole = list(Loader(images, 12, 0).training(augmentation, 24, 0, 1))
    for ranks in (2, 3):
        for mixed in (False, True):
            loaders = [Loader(images, 12, 0, rank, ranks, mixed) for rank in range(ranks)]
            batches = [list(loader.training(augmentation, 24, 0, 1)) for loader in loaders]
            for one, *by_rank in zip(whole, *batches, strict=True):
                for batch in by_rank:
                    assert np.array_equal(batch.indices, one.indices)
                    assert torch.equal(batch.images, one.images[batch.local_indices])
                    assert batch.lead == mixed
                positions = [batch.local_indices[batch.lead :] for batch in by_rank]
                assert np.concatenate(positions).tolist() == list(range(12))
                if mixed:
                    assert [batch.local_indices[0] for batch in by_rank] == [
                        (own[0] - 1) % 12 for own in positions
                    ]


@pytest.mark.parametrize(
    ("size", "ranks", "fitting"), [(9, 2, "8 or 10"), (2, 4, "4"), (100, 8, "96 or 104")]
)
def test_the_error_for_an_uneven_batch_names_sizes_that_fit(size, ranks, fitting):
    recipe = load_recipe("fast").with_settings({"batch_size": size})
    with pytest.raises(RecipeError, match=rf"cannot be split evenly. Use --batch-size {fitting}$"):
        distributed.check_recipe(recipe, Runtime(CPU, "fp32", 0, ranks))
    for good in fitting.split(" or "):
        distributed.check_recipe(
            recipe.with_settings({"batch_size": int(good)}), Runtime(CPU, "fp32", 0, ranks)
        )


def test_fewer_images_than_processes():
    with pytest.raises(DataError, match="--nproc-per-node 3 or less"):
        distributed.check_image_count(3, Runtime(CPU, "fp32", 0, 4))


def test_sync_bn_is_for_gpus_and_keeps_the_names(flat_folder, small, tmp_path):
    with pytest.raises(RecipeError, match="only on CUDA GPUs, and this run is on cpu"):
        train(flat_folder, out=tmp_path / "run", device="cpu", **small, sync_bn=True)
    assert not (tmp_path / "run").exists()
    model = get_model("cifar_resnet20", num_classes=3)
    names, first = list(model.state_dict()), model.conv1.weight
    recipe = load_recipe("fast").with_settings({"sync_bn": True})
    changed = distributed.convert_sync_bn(model, recipe)
    assert list(changed.state_dict()) == names
    assert changed.conv1.weight is first
    assert isinstance(changed.bn1, nn.SyncBatchNorm)


def test_compile_without_a_compiler_says_so(flat_folder, small, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(RecipeError, match="no-such-compiler is not on the PATH"):
        train(flat_folder, out=tmp_path / "run", **small, compile=True)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_compiled_run_has_plain_names_and_is_resumed(flat_folder, tmp_path, script, ranks):
    out = tmp_path / "run"
    begin = ["train", flat_folder, *FLAGS, "--set", "compile=true", "--resume", "--out", out]
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    if ranks == 2:  # interrupted
        done = run(torchrun(script(COMMAND), "die", 7, tmp_path, *begin), env=environment)
        assert done.returncode == 1
        assert checkpoint.read_newest(out / "state").values["step"] == 6
    done = run(torchrun("-m", "resnetkit", *begin, ranks=ranks), env=environment)
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "cache").rglob("*.cpp"))  # some code was compiled
    saved = checkpoint.read_newest(out / "state").tensors
    plain = get_model("cifar_resnet20", width=8, num_classes=3).state_dict()
    assert {name for name in saved if name.startswith("model.")} == {f"model.{k}" for k in plain}
    network, _ = modelfile.read(out / "model.safetensors")
    assert list(network.state_dict()) == list(plain)
