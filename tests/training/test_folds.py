"""Cross-validation: folds, out-of-fold predictions, the final network, resuming."""

from __future__ import annotations

import csv
import json
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import accuracy_score, confusion_matrix, log_loss
from typer.testing import CliRunner

from resnetkit import evaluate, load, train, train_folds
from resnetkit.cli.commands import app
from resnetkit.data import cache, disk_cache, tree
from resnetkit.data.folder import read_dataset
from resnetkit.errors import DataError, ImageError, ModelFileError, OutputError, RecipeError
from resnetkit.evaluation.intervals import grouped_interval
from resnetkit.models.weights import modelfile
from resnetkit.report.sources import write_report
from resnetkit.training.folds import pool_folds
from resnetkit.training.preparation import prepare
from resnetkit.training.recipe import Recipe
from resnetkit.training.run import RunFolder
from resnetkit.training.seeds import train_seeds

RESULTS = ("predictions.csv", "folds.json", "confusion_matrix.png", "report.html")
SETTINGS = {
    "threads": 1,
    "model": "cifar_resnet20",
    "model_options": {"width": 8},
    "image_size": 32,
    "epochs": 3,
    "batch_size": 8,
    "precision": "fp32",
}
RECIPE = Recipe.model_validate({"image_size": 32, "resize_size": 32, "fold": [1, 3]})


def read_rows(file):
    with file.open(newline="") as lines:
        return list(csv.DictReader(lines))


def add_copies(red):
    """Add an exact copy of one image, and two near copies of another: brighter, and resaved."""
    shutil.copy(red / "000.png", red / "zz_exact.png")
    with Image.open(red / "001.png") as image:
        image.point(lambda value: min(255, int(value * 1.03))).save(red / "zz_near.png")
        image.save(red / "zz_near.jpg", quality=97)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, save):
    """A folder of 51 images, and its cross-validation in three folds."""
    base = tmp_path_factory.mktemp("folds")
    data = save(base / "squares", 16)
    add_copies(data / "red")
    return data, train_folds(data, folds=3, out=base / "out", **SETTINGS)


def test_every_image_is_predicted_by_the_one_fold_that_did_not_train_on_it(finished):
    data, found = finished
    rows = read_rows(found.folder / "predictions.csv")
    images = sorted(path.relative_to(data).as_posix() for path in data.rglob("*.*"))
    assert [row["path"] for row in rows] == images
    assert [int(row["fold"]) for row in rows] == list(found.folds)
    for number, run in enumerate(found.runs, 1):
        split = {row["path"]: row for row in RunFolder(run.folder).read_split()}
        assert sorted(split) == images
        held_out = sorted(path for path, row in split.items() if row["split"] == "val")
        assert held_out == [row["path"] for row in rows if row["fold"] == str(number)]
        # Training recorded the same images by their contents.
        parts = modelfile.read_header(run.model).data["parts"]
        assert (parts["train"]["count"], parts["val"]["count"]) == (
            len(images) - len(held_out),
            len(held_out),
        )
        # The answers are those of this fold's last epoch.
        predictor = load(run.folder / "last.safetensors", device="cpu")
        for row in rows:
            if row["fold"] == str(number):
                answer = predictor(data / row["path"])
                assert answer.class_name == row["prediction"]
                assert answer.probability == pytest.approx(float(row["probability"]), abs=1e-4)


def test_the_folds_are_judged_by_their_last_epoch(finished, tmp_path):
    """The best epoch was selected on the very images that are counted here."""
    data, found = finished
    runs = []
    for run in found.runs:
        folder = tmp_path / run.folder.name
        folder.mkdir()
        for name in ("last.safetensors", "split.csv"):
            shutil.copy(run.folder / name, folder)
        runs.append(replace(run, folder=folder))
    pooled, folds, _ = pool_folds(read_dataset(data), runs, device="cpu")
    assert torch.equal(pooled.logits, found.evaluation.logits)
    assert folds == found.folds


def test_copies_stay_in_one_fold(finished):
    _, found = finished
    fold = {row["path"]: row["fold"] for row in read_rows(found.folder / "predictions.csv")}
    assert fold["red/000.png"] == fold["red/zz_exact.png"]
    assert fold["red/001.png"] == fold["red/zz_near.png"] == fold["red/zz_near.jpg"]
    rows = RunFolder(found.runs[0].folder).read_split()
    assert len({row["group"] for row in rows}) == found.summary["groups"] == len(fold) - 3
    assert found.summary["independent_images"] == pytest.approx(51**2 / (46 + 4 + 9))


def test_the_summary_is_computed_from_the_predictions(finished):
    _, found = finished
    summary = json.loads((found.folder / "folds.json").read_text())
    assert summary == found.summary
    rows = read_rows(found.folder / "predictions.csv")
    truth = [row["truth"] for row in rows]
    predicted = [row["prediction"] for row in rows]
    assert summary["accuracy"] == accuracy_score(truth, predicted)
    assert summary["confusion_matrix"] == confusion_matrix(truth, predicted).tolist()
    assert summary["pictures"] == len(rows) == 51
    group = {row["path"]: row["group"] for row in RunFolder(found.runs[0].folder).read_split()}
    correct = sum(row["truth"] == row["prediction"] for row in rows)
    interval = grouped_interval(correct, [group[row["path"]] for row in rows])
    assert summary["accuracy_interval"] == list(interval)
    for fold in summary["per_fold"]:
        own = [row for row in rows if row["fold"] == str(fold["fold"])]
        share = accuracy_score([r["truth"] for r in own], [r["prediction"] for r in own])
        assert (fold["pictures"], fold["accuracy"]) == (len(own), share)
        assert fold["best_epoch_accuracy"] == found.runs[fold["fold"] - 1].metrics["accuracy"]
    each = [fold["accuracy"] for fold in summary["per_fold"]]
    assert summary["mean_accuracy"] == pytest.approx(statistics.mean(each))
    probabilities = torch.softmax(found.evaluation.logits.double(), 1).numpy()
    loss = log_loss(found.evaluation.labels, probabilities)
    assert found.evaluation.metrics["loss"] == pytest.approx(loss)


def test_the_final_network_is_trained_on_all_images_and_says_how_it_was_estimated(
    finished, tmp_path
):
    data, found = finished
    final = found.final
    header = modelfile.read_header(final.model)
    assert {name: part["count"] for name, part in header.data["parts"].items()} == {"train": 51}
    assert len(final.history) == len(found.runs[0].history) == 3
    assert "val_accuracy" not in final.history[0]
    assert final.model.read_bytes() == (final.folder / "last.safetensors").read_bytes()
    estimate = header.metrics["cross_validation"]
    assert estimate["accuracy"] == found.summary["accuracy"]
    assert estimate["accuracy_interval"] == found.summary["accuracy_interval"]
    assert json.loads((final.folder / "metrics.json").read_text())["cross_validation"] == estimate
    same = {"fold": None, "val_split": 0.15}
    assert final.recipe.with_settings(same) == found.runs[0].recipe.with_settings(same)

    text = (
        f"trained on all 51 images, so none are left .* 3-fold cross-validation: "
        f"{found.summary['accuracy']:.2%}"
    )
    with pytest.raises(DataError, match=text):
        evaluate(final.model, data, "val")
    with pytest.raises(DataError, match=text):
        write_report([final.folder])
    notes = evaluate(final.model, data).notes
    assert any("trained on 51 of these 51" in note for note in notes)
    # Training on the folder with the same recipe gives the same network.
    again = train(data, final.folder / "recipe.yaml", out=tmp_path / "again")
    tensors = modelfile.read(again.model)[0].state_dict()
    for name, tensor in modelfile.read(final.model)[0].state_dict().items():
        assert torch.equal(tensor, tensors[name])


def test_a_fold_is_evaluated_and_reported_like_any_run(finished, tmp_path):
    data, found = finished
    run = found.runs[1]
    assert evaluate(run.model, data, "val").metrics == run.metrics
    again = train(data, run.folder / "recipe.yaml", out=tmp_path / "again")
    assert again.model.read_bytes() == run.model.read_bytes()


def test_the_page_shows_all_predictions_and_the_folds(finished):
    _, found = finished
    page = (found.folder / "report.html").read_text()
    assert "Cross-validation report" in page
    assert "images are classified correctly in 3-fold cross-validation" in page
    assert page.count('<td class="n">17</td>') >= 1  # images in a fold
    assert "--folds 3" in page
    assert "--split out-of-fold" not in page


def test_a_cross_validation_is_not_resumed_as_a_run(finished):
    data, found = finished
    with pytest.raises(OutputError, match=rf"resnet train --resume {found.folder}$"):
        train(data, out=found.folder, resume=True)


def test_resuming_a_finished_cross_validation_changes_nothing(finished, capsys):
    data, found = finished
    before = {p: p.read_bytes() for p in found.folder.rglob("*") if p.is_file()}
    # Even among photos, the folder is not taken for a class.
    assert tree.output(str(found.folder)) == tree.OUTPUTS
    again = train_folds(found.folder, resume=True)
    assert capsys.readouterr().err.count("already finished") == 4
    assert {p: p.read_bytes() for p in found.folder.rglob("*") if p.is_file()} == before
    assert again.summary == found.summary
    with pytest.raises(OutputError, match="in use"):
        train_folds(data, folds=3, out=found.folder, **SETTINGS)
    with pytest.raises(OutputError, match="resumed in place"):
        train_folds(found.folder, out=found.folder / "other", resume=True)


STOPPED = """
import json, os, signal, sys
from resnetkit import train_folds
from resnetkit.errors import Interrupted
from resnetkit.training import loop

write_epoch = loop.write_epoch

def stop_in_fold_2(run, session, row, is_best):
    write_epoch(run, session, row, is_best)
    if run.path.name == "fold-2" and row["epoch"] == 2:
        os.kill(os.getpid(), signal.SIGTERM)

loop.write_epoch = stop_in_fold_2
try:
    train_folds(sys.argv[1], folds=3, out=sys.argv[2], **json.loads(sys.argv[3]))
except Interrupted as error:
    print(error)
    sys.exit(error.exit_code)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGTERM")
def test_a_stopped_run_goes_on_in_its_fold_and_ends_in_the_same_bytes(finished, tmp_path, capsys):
    data, found = finished
    out = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", STOPPED, data, out, json.dumps(SETTINGS)],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
    assert done.stdout.endswith(f"train --resume {shlex.quote(str(out))}\n"), done.stderr
    assert not (out / "folds.json").exists()
    train_folds(out, resume=True)
    messages = capsys.readouterr().err
    assert f"{out / 'fold-1'} is already finished" in messages
    assert f"Resuming {out / 'fold-2'} at epoch 3" in messages
    for name in ("predictions.csv", "folds.json", "confusion_matrix.png"):
        assert (out / name).read_bytes() == (found.folder / name).read_bytes(), name
    final = "final/model.safetensors"
    assert (out / final).read_bytes() == (found.folder / final).read_bytes()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_killed_again_and_again_it_ends_in_the_same_bytes(finished, tmp_path):
    data, found = finished
    out = tmp_path / "out"
    program = (
        "import sys\nfrom resnetkit import train_folds\n"
        f"train_folds(sys.argv[1], folds=3, out=sys.argv[2], resume=True, **{SETTINGS!r}, "
        "checkpoint_seconds=0)"
    )
    for seconds in (0.3, 0.7, 1.5, 3.0):
        process = subprocess.Popen(
            [sys.executable, "-c", program, str(data), str(out)], stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 120
        while not (out / "fold-1" / "history.csv").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(seconds)
        process.kill()
        process.wait()
    subprocess.run([sys.executable, "-c", program, str(data), str(out)], check=True)
    name = "predictions.csv"
    assert (out / name).read_bytes() == (found.folder / name).read_bytes()


def test_train_and_val_are_pooled_and_test_is_left_for_the_final_network(
    split_folder, save, tmp_path, capsys
):
    save(split_folder / "test", 4, start=200)
    out = tmp_path / "out"
    found = train_folds(split_folder, folds=2, out=out, **{**SETTINGS, "epochs": 1})
    assert (
        "54 images in 2 folds (36 from train and 18 from val, pooled); the 12 images in test are "
        "kept for the final network"
    ) in capsys.readouterr().err
    paths = list(found.evaluation.samples.paths)
    assert sum(path.startswith("train/") for path in paths) == 36
    assert sum(path.startswith("validation/") for path in paths) == 18
    assert not any(path.startswith("test/") for path in paths)
    tested = evaluate(found.final.model, split_folder, "test")
    assert not tested.notes  # none of the test images were trained on
    assert found.summary["test"]["accuracy"] == tested.metrics["accuracy"]
    assert found.summary["test"]["pictures"] == 12
    # The images of the fold are found, although the folder has other images in "val".
    run = found.runs[0]
    assert evaluate(run.model, split_folder, "val").metrics == run.metrics
    parts = modelfile.read_header(found.final.model).data["parts"]
    assert parts["train"]["count"] == 54


def test_an_unreadable_test_image_is_named_and_the_folds_are_kept(
    split_folder, save, tmp_path, capsys
):
    save(split_folder / "test", 4, start=200)
    broken = min((split_folder / "test").rglob("*.png"))
    broken.write_bytes(broken.read_bytes()[:60])
    out = tmp_path / "out"
    settings = {**SETTINGS, "epochs": 1}
    with pytest.raises(ImageError, match=broken.name):
        train_folds(split_folder, folds=2, out=out, **settings)
    assert not (out / "folds.json").exists()
    found = train_folds(split_folder, folds=2, out=tmp_path / "b", **settings, on_error="skip")
    assert "test" not in found.summary
    message = capsys.readouterr().err
    assert "Warning: the test split was not evaluated" in message
    assert broken.name in message


def test_the_folds_do_not_depend_on_the_order_of_a_list(flat_folder, tmp_path):
    add_copies(flat_folder / "red")
    rows = [(path.relative_to(tmp_path), path.parent.name) for path in flat_folder.rglob("*.*")]
    order = np.random.default_rng(0).permutation(len(rows))
    for name, indices in (("sorted.csv", np.argsort([str(r[0]) for r in rows])), ("b.csv", order)):
        lines = [f"{rows[i][0].as_posix()},{rows[i][1]}" for i in indices]
        (tmp_path / name).write_text("\n".join(["path,label", *lines]))
    parts = [
        prepare(read_dataset(tmp_path / name), RECIPE, workers=1)
        for name in ("sorted.csv", "b.csv")
    ]
    first, second = ({*part.dataset.splits["val"].paths} for part in parts)
    assert first == second
    assert list(parts[0].val.split.paths) != list(parts[1].val.split.paths)  # in another order
    assert parts[0].groups == parts[1].groups


def test_near_copies_stay_together_even_if_they_are_most_of_their_class(flat_folder):
    """A split in two must separate them; folds refuse a class with too few different images."""
    red = flat_folder / "red"
    for path in sorted(red.iterdir())[4:]:
        path.unlink()
    with Image.open(red / "000.png") as image:
        for number in range(20):
            image.point(lambda value, n=number: min(255, value + n % 5)).save(
                red / f"near{number:02}.png", compress_level=number % 10
            )
    dataset = read_dataset(flat_folder)
    found = prepare(dataset, RECIPE, workers=1)
    groups = {found.groups[path] for path in found.groups if path.startswith("red/")}
    assert len(groups) == 4
    with pytest.raises(DataError, match=r"'red' has only 4 different images \(24 with.*--folds 4"):
        prepare(dataset, RECIPE.with_settings({"fold": [1, 5]}), workers=1)


def test_all_runs_share_one_file_of_pixels(flat_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RESNETKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "available_memory", lambda: 0)
    train_folds(flat_folder, folds=2, out=tmp_path / "out", **{**SETTINGS, "epochs": 1})
    assert len(list(disk_cache.cache_folder().glob("*.pixels"))) == 1
    assert capsys.readouterr().err.count("Using the cached pixels") == 2


def test_all_runs_have_the_settings_of_the_first(flat_folder, tmp_path):
    """A length in steps is kept too. It determines the epochs, so the final run has a different
    number of epochs than the folds."""
    settings = {**SETTINGS, "epochs": None, "steps": 9, "threads": None}
    found = train_folds(flat_folder, folds=2, out=tmp_path / "out", **settings)
    assert [len(run.history) for run in (*found.runs, found.final)] == [3, 3, 2]
    for run in (*found.runs, found.final):
        assert run.recipe.steps == 9
        assert run.recipe.threads == found.runs[0].recipe.threads


def test_settings_that_folds_do_not_allow(flat_folder, small, tmp_path):
    for settings, message in (
        ({"val_split": 0.2}, "Remove val_split"),
        ({"fold": [1, 2]}, "Remove fold"),
        ({"patience": 2}, "cannot be combined with patience"),
        ({"folds": 1}, "must be at least 2; got 1"),
    ):
        with pytest.raises(RecipeError, match=message):
            train_folds(flat_folder, out=tmp_path / "out", **settings)
    with pytest.raises(DataError, match="'blue' has only 16 different images, too few for 17"):
        train_folds(flat_folder, folds=17, out=tmp_path / "out", **small)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("fold", [[0, 5], [6, 5], [1, 1], [1]])
def test_a_fold_is_one_of_two_or_more(fold):
    with pytest.raises(RecipeError, match="fold"):
        Recipe().with_settings({"fold": fold})


def test_without_validation_the_last_epoch_is_kept(flat_folder, small, tmp_path, capsys):
    run = train(flat_folder, out=tmp_path / "run", val_split=0, **small)
    assert run.best_epoch == 2
    assert run.metrics["split"] is None
    assert run.model.read_bytes() == (run.folder / "last.safetensors").read_bytes()
    files = {path.name for path in run.folder.iterdir()}
    assert not files & {"val_batch.png", "confusion_matrix.png", "report.html", "split.csv"}
    with pytest.raises(ModelFileError, match="it was trained on all images"):
        load(run.model)(run.folder / "train_batch.png", coverage=0.9)
    messages = capsys.readouterr().err
    assert "48 training + 0 validation" in messages
    assert "All images are used for training" in messages
    assert "val accuracy" not in messages
    assert "val_loss" not in (run.folder / "history.csv").read_text()
    with pytest.raises(DataError, match=r"all 48 images, so none are left for validation\. Ev"):
        evaluate(run.model, flat_folder, "val")
    for setting in ({"patience": 1}, {"fold": [1, 2]}):
        with pytest.raises(RecipeError, match="val_split 0"):
            train(flat_folder, out=tmp_path / "other", val_split=0, **setting)
    with pytest.raises(RecipeError, match="val_split above 0"):
        train_seeds(flat_folder, seeds=[0, 1], out=tmp_path / "other", val_split=0)


def test_the_command_prints_the_accuracy_and_what_to_type_next(flat_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runner = CliRunner()
    small = [
        "--epochs",
        "1",
        "--model",
        "cifar_resnet20",
        "--image-size",
        "32",
        "--batch-size",
        "8",
    ]
    small += ["--set", "threads=1", "--set", "model_options={width: 8}"]
    first = runner.invoke(app, ["train", "squares", "--folds", "2", *small])
    assert first.exit_code == 0, first.output
    assert "out-of-fold accuracy" in first.stdout
    assert "final network: trained on all 48 images for 1 epoch" in first.stdout
    folder = "runs/squares-cifar_resnet20-folds"
    file = f"{folder}/final/model.safetensors"
    next_lines = f"  resnet evaluate {file} OTHER_PHOTOS\n  resnet predict {file} IMAGE...\n"
    assert first.stdout.endswith(next_lines)

    again = runner.invoke(app, ["train", "--resume", folder])
    assert (again.exit_code, again.stdout) == (0, first.stdout)
    for other in (["--seeds", "0-1"], ["--find-lr"]):
        refused = runner.invoke(app, ["train", "squares", "--folds", "2", *other])
        assert refused.exit_code == 2
        assert "cannot be combined with" in refused.output
