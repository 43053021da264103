from __future__ import annotations

import csv
import itertools
import json
import shutil

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import nn
from torch.nn import functional as F

from resnetkit import load, train
from resnetkit.data import folder
from resnetkit.data.dataset import Images
from resnetkit.data.loader import Loader
from resnetkit.errors import DataError, OutputError, RecipeError, TrainingError
from resnetkit.models import get_model
from resnetkit.models.weights import modelfile
from resnetkit.runtime import Runtime
from resnetkit.training import checkpoint, loop
from resnetkit.training.lr_finder import find_lr
from resnetkit.training.outcomes import loss_and_correct
from resnetkit.training.param_groups import make_optimizer
from resnetkit.training.recipe import load_recipe
from resnetkit.training.state import State


def test_a_run_leaves_what_it_promises(trained):
    names = {path.name for path in trained.iterdir()}
    assert names >= {
        "model.safetensors", "last.safetensors", "recipe.yaml", "classes.json", "split.csv",
        "history.csv", "timings.csv", "metrics.json", "environment.json", "train_batch.png",
        "val_batch.png", "curves.png", "confusion_matrix.png", "report.html",
        "suspects.csv",
    }  # fmt: skip
    assert json.loads((trained / "classes.json").read_text()) == ["blue", "green", "red"]
    with (trained / "history.csv").open() as lines:
        history = list(csv.DictReader(lines))
    assert [row["epoch"] for row in history] == list("123456")
    kept = [float(row["val_accuracy"]) for row in history if row["kept"] == "1"][-1]
    assert json.loads((trained / "metrics.json").read_text())["accuracy"] == kept
    recipe = load_recipe(trained / "recipe.yaml")
    assert recipe.image_size == 32
    for name in ("train_batch.png", "val_batch.png", "curves.png", "confusion_matrix.png"):
        with Image.open(trained / name) as image:
            assert min(image.size) > 150
    environment = json.loads((trained / "environment.json").read_text())
    assert environment["versions"]["torch"].startswith(torch.__version__.split("+")[0])


def test_it_learns(trained):
    assert json.loads((trained / "metrics.json").read_text())["accuracy"] >= 0.8


def test_the_last_model_within_two_standard_errors_of_the_best_is_kept_and_the_last(trained):
    with (trained / "history.csv").open() as lines:
        accuracies = [float(row["val_accuracy"]) for row in csv.DictReader(lines)]
    images = json.loads((trained / "metrics.json").read_text())["pictures"]
    share = (max(accuracies) * images + 2) / (images + 4)
    deviation = 2 * np.sqrt(share * (1 - share) / (images + 4))
    kept = np.flatnonzero(np.array(accuracies) >= max(accuracies) - deviation)[-1] + 1
    assert modelfile.read_header(trained / "model.safetensors").metrics["epoch"] == kept
    assert modelfile.read_header(trained / "last.safetensors").metrics["epoch"] == 6


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_same_bits_with_any_number_of_workers(flat_folder, small, tmp_path, precision):
    settings = {**small, "precision": precision}
    runs = [
        train(flat_folder, out=tmp_path / str(workers), workers=workers, **settings)
        for workers in (0, 1, 4)
    ]
    first = runs[0].folder
    for run in runs[1:]:
        for name in ("model.safetensors", "last.safetensors", "history.csv", "split.csv"):
            assert (run.folder / name).read_bytes() == (first / name).read_bytes(), name
    other = train(flat_folder, out=tmp_path / "other", **{**settings, "seed": 1})
    assert other.model.read_bytes() != runs[0].model.read_bytes()


@pytest.mark.parametrize("steps", [1, 4])
def test_the_first_steps_equal_a_plain_loop(split_folder, small, tmp_path, steps):
    """Compare the loop with a few lines of plain PyTorch, with the same images and random numbers.

    Each step amplifies the rounding errors of the previous one. So after one step, both are equal
    except for the last digits; after four, the loop must be about as close to float64 as plain
    PyTorch is.
    """
    settings = {
        **small, "epochs": 1, "steps": steps, "optimizer": "sgd", "momentum": 0.0, "lr": 0.1,
        "schedule": "constant", "weight_decay": 0.0, "channels_last": False,
        "zero_init_residual": False,
        "label_smoothing": 0.0, "crop_scale": [1.0, 1.0], "flip": False, "train_sizes": [1.0, 1.0],
    }  # fmt: skip
    run = train(split_folder, out=tmp_path / "run", **settings)
    recipe = run.recipe
    split = folder.read_dataset(split_folder).splits["train"]

    def train_plainly(dtype):
        torch.manual_seed(recipe.seed)
        model = get_model("cifar_resnet20", width=8, num_classes=3).to(dtype)
        loader = Loader(Images(split, recipe.preprocessing()), 8, 0)
        batches = loader.training(recipe.augmentation(), 32, recipe.seed, 0)
        losses = []
        for batch in itertools.islice(batches, steps):
            x = batch.images.to(dtype) / 255 - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
            x = (x / torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)).contiguous()
            loss = F.cross_entropy(model(x), batch.labels)
            model.zero_grad()
            loss.backward()
            with torch.no_grad():
                for p in model.parameters():
                    p -= 0.1 * p.grad
            losses.append(loss.item())
        return {"loss": torch.tensor(sum(losses) / steps), **model.state_dict()}

    trained_model, _ = modelfile.read(run.folder / "last.safetensors")
    ours = {"loss": torch.tensor(run.history[0]["train_loss"]), **trained_model.state_dict()}
    plain = train_plainly(torch.float32)
    if steps == 1:
        assert float(ours["loss"]) == pytest.approx(float(plain["loss"]), rel=1e-5)
        for name, value in plain.items():
            torch.testing.assert_close(ours[name], value, rtol=1e-4, atol=1e-5)
        return
    for name, exact in train_plainly(torch.float64).items():
        error, expected = ((found[name] - exact).abs().max() for found in (ours, plain))
        assert error <= 1.5 * expected + 1e-5, name


def test_parts_of_a_batch_add_up_to_the_whole():
    """Without batch norm, a batch in parts gives the same update, even with class weights."""
    recipe = load_recipe("fast").with_settings(
        {"image_size": 16, "resize_size": 16, "optimizer": "sgd", "precision": "fp32"}
    )
    images = torch.randint(0, 256, (7, 3, 16, 16), dtype=torch.uint8)
    batch = loop.Batch(images, torch.tensor([0, 1, 2, 0, 1, 2, 0]), np.arange(7))
    updated = []
    for splits in (1, 3):
        torch.manual_seed(0)
        model = get_model(
            "cifar_resnet20", width=4, num_classes=3, norm_layer=lambda n: nn.GroupNorm(2, n)
        )
        settings = recipe.with_settings({"accumulate": splits})
        identity = {"data": {"classes": ["a", "b", "c"]}}
        state = State(model, make_optimizer(model, settings), identity)
        runtime = Runtime(torch.device("cpu"), "fp32")
        weights = torch.tensor([1.0, 2.0, 0.5])
        loss, _ = loss_and_correct(
            loop.training_step(state, batch, settings, runtime, 0.1, weights).totals
        )
        updated.append((loss, [p.detach().clone() for p in model.parameters()]))
    assert updated[0][0] == pytest.approx(updated[1][0], rel=1e-6)
    for first, second in zip(updated[0][1], updated[1][1], strict=True):
        torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-6)


def test_patience_stops_early(flat_folder, small, tmp_path, capsys):
    settings = {**small, "epochs": 30, "patience": 2, "lr": 1e-9}
    run = train(flat_folder, out=tmp_path / "run", **settings)
    assert len(run.history) < 30
    assert "No improvement in the last 2 epochs; stopped early" in capsys.readouterr().err
    train(flat_folder, out=tmp_path / "one", **{**settings, "patience": 1})
    assert "No improvement in the last 1 epoch; stopped early" in capsys.readouterr().err
    again = train(flat_folder, out=tmp_path / "run", resume=True, **settings)
    assert again.history == run.history


def test_averaged_weights_are_evaluated_and_kept(flat_folder, small, tmp_path):
    run = train(flat_folder, out=tmp_path / "run", **{**small, "ema": 0.9})
    plain = train(flat_folder, out=tmp_path / "plain", **small)
    assert run.metrics["loss"] == run.history[-1]["val_loss"] or len(run.history) == 2
    assert run.model.read_bytes() != plain.model.read_bytes()
    losses = [[row["train_loss"] for row in r.history] for r in (run, plain)]
    assert losses[0] == losses[1]  # the EMA follows training and does not affect it


def test_a_note_names_images_in_two_classes(flat_folder, small, tmp_path, capsys):
    shutil.copy(flat_folder / "red" / "003.png", flat_folder / "blue" / "copy.png")
    train(flat_folder, out=tmp_path / "run", **{**small, "epochs": 1})
    text = capsys.readouterr().err
    assert "2 images are in more than one class: " in text
    assert "red/003.png" in text
    assert "training images per class" in text


def test_a_given_validation_part_is_used(split_folder, small, tmp_path):
    run = train(split_folder, out=tmp_path / "run", **{**small, "epochs": 1})
    assert run.metrics["pictures"] == 18
    assert not (run.folder / "split.csv").exists()


def test_the_split_that_was_made_is_a_manifest(trained, small, tmp_path):
    data = trained.parent / "data"
    (data / "split.csv").write_bytes((trained / "split.csv").read_bytes())
    again = folder.read_dataset(data / "split.csv")
    assert {name: len(split) for name, split in again.splits.items()} == {"train": 51, "val": 9}
    (data / "split.csv").unlink()


def test_unreadable_images_stop_the_run_before_it_starts(flat_folder, small, tmp_path):
    for name in ("blue/001.png", "red/002.png"):
        (flat_folder / name).write_bytes(b"not an image")
    with pytest.raises(
        DataError, match=r"(?s)2 images.*blue/001\.png.*red/002\.png.*--on-error skip"
    ):
        train(flat_folder, out=tmp_path / "run", **small)
    assert not (tmp_path / "run").exists()
    run = train(flat_folder, out=tmp_path / "run", **{**small, "on_error": "skip", "epochs": 1})
    assert len((run.folder / "split.csv").read_text().splitlines()) == 1 + 46


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ("train/red", r"No image of class 'red' can be read.*The first error.*red/000\.png"),
        ("train", r"No image in train can be read\. The first error: .*blue/000\.png"),
        ("validation", r"No image in val can be read\. The first error: .*blue/100\.png"),
    ],
)
def test_too_few_readable_images_are_an_error(split_folder, small, tmp_path, broken, message):
    for path in (split_folder / broken).rglob("*.png"):
        path.write_bytes(b"not an image")
    with pytest.raises(DataError, match=message):
        train(split_folder, out=tmp_path / "run", **{**small, "on_error": "skip"})
    assert not (tmp_path / "run").exists()


def test_micro_batches_too_small_for_batch_norm_are_an_error_before_the_run(
    flat_folder, small, tmp_path
):
    settings = {**small, "model": "resnet18", "model_options": {"width": 4}, "image_size": 64}
    settings["train_sizes"] = [0.5, 0.5]
    with pytest.raises(RecipeError, match=r"1 image of 32 px to a single value\. .* --batch-size"):
        train(flat_folder, out=tmp_path / "run", **{**settings, "accumulate": 8})
    # The second of two micro-batches has a single image.
    uneven = {**settings, "batch_size": 3, "accumulate": 2}
    for options in ({}, {"show_plan": False}):
        with pytest.raises(RecipeError, match=r"1 image of 32 px to a single value"):
            train(flat_folder, out=tmp_path / "run", **options, **uneven)
    assert not (tmp_path / "run").exists()
    with pytest.raises(RecipeError, match=r"1 image of 32 px to a single value"):
        find_lr(flat_folder, **{**settings, "batch_size": 1})


def test_nothing_is_overwritten(flat_folder, small, tmp_path, monkeypatch):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(OutputError, match="full is in use"):
        train(flat_folder, out=tmp_path / "full", **small)
    monkeypatch.chdir(tmp_path)
    names = [train(flat_folder, **{**small, "epochs": 1}).folder.name for _ in range(2)]
    assert names == ["squares-cifar_resnet20", "squares-cifar_resnet20-2"]


def test_a_loss_that_is_not_finite_stops_and_names_the_images(flat_folder, small, tmp_path):
    settings = {**small, "optimizer": "sgd", "lr": 1e30, "schedule": "constant"}
    with pytest.raises(TrainingError, match=r"loss is (nan|inf) at step \d+.*--lr.*\.png"):
        train(flat_folder, out=tmp_path / "run", **settings)


def test_weights_that_are_not_finite_are_never_saved(flat_folder, small, tmp_path, monkeypatch):
    """The loss can still be finite when the update has already broken the weights."""
    real, calls = loop.training_step, 0

    def breaking(state, *args):
        nonlocal calls
        calls += 1
        result = real(state, *args)
        if calls == 3:
            with torch.no_grad():
                state.model.fc.weight[0, 0] = float("nan")
        return result

    monkeypatch.setattr(loop, "training_step", breaking)
    with pytest.raises(TrainingError, match=r"fc\.weight is no longer finite after step 3"):
        train(flat_folder, out=tmp_path / "run", **small, checkpoint_seconds=0)
    assert checkpoint.read_newest(tmp_path / "run" / "state").values["step"] == 2


def test_unknown_settings_and_models(flat_folder):
    with pytest.raises(RecipeError, match="Did you mean 'epochs'"):
        train(flat_folder, epochz=3)
    with pytest.raises(RecipeError, match=r"Unknown model 'resnet19'.*resnet18"):
        train(flat_folder, model="resnet19")


def test_defaults_are_found_from_the_data(flat_folder, tmp_path):
    run = train(flat_folder, out=tmp_path / "run", model="cifar_resnet20", epochs=1)
    assert run.recipe.image_size == 32
    saved = yaml.safe_load((run.folder / "recipe.yaml").read_text())
    assert saved["precision"] in ("bf16", "fp32")
    assert [saved[key] for key in ("resize_size", "epochs", "batch_size")] == [32, 1, 16]
    assert load(run.model).preprocessing.crop_size == 32


def test_classic_runs_shortened(flat_folder, tmp_path):
    shorter = {"epochs": 1, "batch_size": 8, "image_size": 32, "resize_size": 36}
    run = train(flat_folder, "classic", out=tmp_path / "run", model="cifar_resnet20", **shorter)
    assert run.recipe.optimizer == "adam"
    assert run.recipe.seed == 3


@pytest.mark.parametrize("channels", [1, 4])
def test_gray_and_transparent_images_train_and_are_used(tmp_path, small, channels):
    """The two classes differ only in gray level or in alpha; every command accepts the model."""
    from resnetkit.evaluation.explain import explain

    for i in range(32):
        level = np.random.default_rng(i).integers(150, 256, (40, 40), np.uint8)
        level[8:32, 8:32] = 20 if i % 2 else level[8:32, 8:32]
        image = Image.fromarray(level)
        if channels == 4:
            image = Image.merge("RGBA", [Image.new("L", (40, 40), 120)] * 3 + [image])
        (tmp_path / "d" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        image.save(tmp_path / "d" / "ab"[i % 2] / f"{i}.png")
    more = {"trivial_augment": True, "erasing": 0.5, "mixup": 0.2, "cutmix": 0.2, "epochs": 1}
    train(tmp_path / "d", out=tmp_path / "augmented", **{**small, "channels": channels, **more})
    settings = {**small, "channels": channels, "epochs": 12}
    run = train(tmp_path / "d", out=tmp_path / "run", **settings)
    header = modelfile.read_header(run.model)
    assert header.options["in_channels"] == channels == header.preprocessing.channels
    assert run.metrics["accuracy"] == 1
    answers = load(run.model)([tmp_path / "d/a/0.png", tmp_path / "d/b/1.png"])
    assert [answer.class_name for answer in answers] == ["a", "b"]
    (explained,) = explain(run.model, [tmp_path / "d/a/0.png"])
    assert explained.image.shape == (256, 256, 3)
    again = train(tmp_path / "d", out=tmp_path / "on", weights=str(run.model), epochs=1)
    assert modelfile.read_header(again.model).options["in_channels"] == channels


def test_channels_that_do_not_fit_the_network_are_an_error(flat_folder, small):
    small = {**small, "model_options": {"in_channels": 1}}
    with pytest.raises(RecipeError, match="channels is 3, but the network's in_channels is 1"):
        train(flat_folder, **small, channels=3)
    small["model_options"] = {"in_channels": 2}
    with pytest.raises(RecipeError, match="in_channels is 2; images have 1, 3 or 4 channels"):
        train(flat_folder, **small)
