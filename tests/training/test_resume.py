from __future__ import annotations

import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

from resnetkit import evaluate, load, storage, train
from resnetkit.data.folder import read_dataset
from resnetkit.data.split import split_dataset
from resnetkit.errors import OutputError, TrainingError
from resnetkit.training import checkpoint, defaults, loop, measure, preparation
from resnetkit.training.recipe import load_recipe
from resnetkit.training.run import RunFolder

FILES = ("model.safetensors", "last.safetensors", "history.csv", "metrics.json", "split.csv")


def same(first, second):
    for name in FILES:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


class Stop(Exception):
    pass


def stop_after(monkeypatch, steps):
    """Let the training step fail once it has been called ``steps`` times."""
    real, calls = loop.training_step, 0

    def counted(*args):
        nonlocal calls
        calls += 1
        if calls > steps:
            raise Stop
        return real(*args)

    monkeypatch.setattr(loop, "training_step", counted)


@pytest.mark.parametrize(
    "more",
    [
        {"optimizer": "adamw", "precision": "bf16"},
        {"optimizer": "adamw", "precision": "fp32"},
        {"optimizer": "sgd", "precision": "bf16"},
        {"ema": 0.9, "mixup": 0.2, "cutmix": 1.0, "accumulate": 2, "clip_norm": 1.0},
        {"shallow_share": 0.6, "precision": "fp32"},
    ],
    ids=["adamw-bf16", "adamw-fp32", "sgd-bf16", "everything", "growing"],
)
def test_a_broken_run_ends_in_the_same_bits(flat_folder, small, tmp_path, monkeypatch, more):
    settings = {**small, "epochs": 3, "checkpoint_seconds": 0, "lr": 0.01, **more}
    whole = train(flat_folder, out=tmp_path / "whole", **settings)
    out = tmp_path / "broken"
    for steps in (1, 2, 4):  # stops in the first, the second and the third epoch
        with monkeypatch.context() as patch:
            stop_after(patch, steps)
            with pytest.raises(Stop):
                train(flat_folder, out=out, resume=True, workers=steps, **settings)
        saved = checkpoint.read_newest(out / "state").values
        assert saved["batch"] == {1: 1, 2: 3, 4: 2}[steps]  # an epoch has five batches
    run = train(flat_folder, out=out, resume=True, **settings)
    same(whole.folder, run.folder)
    assert run.metrics == whole.metrics


def test_a_run_keeps_batch_size_and_epochs_of_the_device_it_began_on(
    flat_folder, small, tmp_path, monkeypatch
):
    open_ = {**small, "batch_size": None, "epochs": None, "checkpoint_seconds": 0}
    monkeypatch.setattr(defaults, "EPOCHS", (1, 2))
    here = defaults.DeviceDefaults(batch_sizes=(12, 12), images_shown=10**6, largest_size=128)
    there = defaults.DeviceDefaults(batch_sizes=(7, 7), images_shown=1, largest_size=128)
    monkeypatch.setitem(defaults.DEVICE_DEFAULTS, "cpu", here)
    whole = train(flat_folder, out=tmp_path / "whole", **open_)
    assert (whole.recipe.batch_size, whole.recipe.epochs) == (12, 2)
    with monkeypatch.context() as patch:
        stop_after(patch, 4)
        with pytest.raises(Stop):
            train(flat_folder, out=tmp_path / "run", **open_)
    monkeypatch.setitem(defaults.DEVICE_DEFAULTS, "cpu", there)
    train(flat_folder, out=tmp_path / "run", resume=True, **open_)
    same(whole.folder, tmp_path / "run")


def test_resume_by_the_folder_alone(flat_folder, small, tmp_path, monkeypatch, capsys):
    settings = {**small, "checkpoint_seconds": 0}
    whole = train(flat_folder, out=tmp_path / "whole", **settings)
    with monkeypatch.context() as patch:
        stop_after(patch, 7)
        with pytest.raises(Stop):
            train(flat_folder, out=tmp_path / "run", **settings)
    capsys.readouterr()
    train(tmp_path / "run", resume=True)
    assert "Resuming" in capsys.readouterr().err
    same(whole.folder, tmp_path / "run")

    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    again = train(tmp_path / "run", resume=True)
    assert "already finished; nothing was changed" in capsys.readouterr().err
    assert {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()} == before
    assert again.metrics == whole.metrics


def test_without_anything_to_resume_a_run_starts(flat_folder, small, tmp_path, capsys, monkeypatch):
    settings = {**small, "epochs": 1}
    train(flat_folder, out=tmp_path / "new", resume=True, **settings)
    assert "Nothing to resume" in capsys.readouterr().err
    monkeypatch.chdir(tmp_path)
    first = train(flat_folder, resume=True, **settings)
    assert first.folder.name == "squares-cifar_resnet20"
    assert train(flat_folder, resume=True, **settings).folder == first.folder
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("")
    with pytest.raises(OutputError, match="mine is in use"):
        train(flat_folder, out=tmp_path / "mine", resume=True, **settings)


def test_another_recipe_or_other_data_are_listed(flat_folder, small, tmp_path):
    train(flat_folder, out=tmp_path / "run", **{**small, "epochs": 1})
    with pytest.raises(TrainingError, match=r"(?s)not the run.*recipe: epochs was 1 and is 2"):
        train(flat_folder, out=tmp_path / "run", resume=True, **small)
    shutil.copy(flat_folder / "red" / "001.png", flat_folder / "red" / "copy.png")
    with pytest.raises(TrainingError, match="data: val images was 6 and is 7"):
        train(flat_folder, out=tmp_path / "run", resume=True, **{**small, "epochs": 1})


def test_another_label_of_the_same_image_is_other_data(flat_folder, small, tmp_path):
    train(flat_folder, out=tmp_path / "run", **{**small, "epochs": 1})
    split = (tmp_path / "run" / "split.csv").read_text().splitlines()
    taken = next(row.split(",")[0] for row in split if row.endswith("blue,train"))
    rows = [
        f"{flat_folder / row.split(',')[0]},{','.join(row.split(',')[1:])}" for row in split[1:]
    ]
    manifest = tmp_path / "labels.csv"
    manifest.write_text("\n".join(["path,label,split", *rows]) + "\n")
    settings = {**small, "epochs": 1, "checkpoint_seconds": 0}
    train(manifest, out=tmp_path / "second", **settings)
    changed = [row.replace("blue,train", "green,train") if taken in row else row for row in rows]
    manifest.write_text("\n".join(["path,label,split", *changed]) + "\n")
    with pytest.raises(TrainingError, match=r"data: train labels was .* and is "):
        train(tmp_path / "second", resume=True)


def test_a_run_that_is_named_brings_its_own_recipe_and_folder(flat_folder, small, tmp_path):
    train(flat_folder, out=tmp_path / "run", **{**small, "epochs": 1})
    with pytest.raises(
        TrainingError, match=r"(?s)not the run.*recipe: name was 'fast' and is 'demo'"
    ):
        train(tmp_path / "run", recipe="demo", resume=True)
    with pytest.raises(OutputError, match=r"is resumed in place, not in .*other"):
        train(tmp_path / "run", out=tmp_path / "other", resume=True)
    own = tmp_path / "run" / "recipe.yaml"
    train(tmp_path / "run", recipe=own, out=tmp_path / "run", resume=True)


def test_changed_data_are_an_error_if_the_length_is_given_in_steps(flat_folder, small, tmp_path):
    settings = {**small, "epochs": None, "steps": 7}
    train(flat_folder, out=tmp_path / "run", **settings)
    for number in range(12):
        shutil.copy(flat_folder / "red" / "001.png", flat_folder / "red" / f"copy{number}.png")
    with pytest.raises(TrainingError, match=r"(?s)not the run that was saved.*train images was"):
        train(tmp_path / "run", resume=True)


def test_a_finished_run_without_its_state_is_not_trained_again(flat_folder, small, tmp_path):
    run = train(flat_folder, out=tmp_path / "run", **{**small, "epochs": 1})
    before = run.model.stat().st_mtime_ns
    shutil.rmtree(tmp_path / "run" / "state")
    with pytest.raises(OutputError, match="is a finished run without its state folder"):
        train(tmp_path / "run", resume=True)
    assert run.model.stat().st_mtime_ns == before


def test_a_trained_run_that_lost_its_state_is_not_trained_over(flat_folder, small, tmp_path):
    small = {**small, "epochs": 3}
    run = train(flat_folder, out=tmp_path / "run", **small)
    before = run.model.stat().st_mtime_ns
    (tmp_path / "run" / "metrics.json").unlink()  # as if it were not finished
    shutil.rmtree(tmp_path / "run" / "state")
    with pytest.raises(OutputError, match="has a trained model but no saved state"):
        train(flat_folder, out=tmp_path / "run", resume=True, **small)
    assert run.model.stat().st_mtime_ns == before
    rows = (tmp_path / "run" / "timings.csv").read_text().splitlines(keepends=True)
    (tmp_path / "run" / "timings.csv").write_text("".join(rows[:3]))  # killed during the first save
    train(flat_folder, out=tmp_path / "run", resume=True, **small)


def test_a_second_run_leaves_the_files_of_a_running_one_alone(flat_folder, small, tmp_path):
    out = tmp_path / "run"
    train(flat_folder, out=out, **{**small, "epochs": 1})
    for name in ("metrics.json", "history.csv", "model.safetensors", "last.safetensors"):
        (out / name).unlink()
    shutil.rmtree(out / "state")  # as before the first save
    before = (out / "recipe.yaml").read_text()
    with (
        storage.locked(out / "state" / ".lock"),
        pytest.raises(OutputError, match="Another run is writing to"),
    ):
        train(flat_folder, out=out, resume=True, **{**small, "seed": 7})
    assert (out / "recipe.yaml").read_text() == before


def test_a_state_folder_of_something_else_is_not_taken_over(flat_folder, small, tmp_path):
    out = tmp_path / "mine"
    (out / "state").mkdir(parents=True)
    (out / "state" / "texas.csv").write_text("")
    with pytest.raises(OutputError, match="mine is in use"):
        train(flat_folder, out=out, resume=True, **small)


@pytest.mark.parametrize("left", [["state"], ["state", "environment.json"]])
def test_a_run_that_was_killed_in_its_first_files_starts_over(flat_folder, small, tmp_path, left):
    out = tmp_path / "run"
    (out / "state").mkdir(parents=True)
    (out / "state" / ".lock").touch()
    for name in left[1:]:
        (out / name).write_text("{}")
    assert train(flat_folder, out=out, resume=True, **{**small, "epochs": 1}).model.exists()


def test_what_a_killed_run_left_is_removed(flat_folder, small, tmp_path):
    out = tmp_path / "run"
    train(flat_folder, out=out, **{**small, "epochs": 1})
    left = [
        out / "state" / ".tmpAb3_x9",
        out / ".tmpAb3_x9",
        out / f".model.safetensors.{16 * 'a'}",
    ]
    others = [out / ".tmp", out / ".tmpAb3_x9.txt", out / ".notes"]
    for path in (*left, *others):
        path.write_text("")
    (out / "metrics.json").unlink()
    train(out, resume=True)
    assert not any(path.exists() for path in left)
    assert all(path.exists() for path in others)


def test_a_folder_that_became_a_run_meanwhile_is_not_claimed(trained, tmp_path):
    begun, _ = RunFolder.open(tmp_path / "run", "name", resume=False)
    shutil.copytree(trained, tmp_path / "run")  # another run claimed it first
    with pytest.raises(OutputError, match="run is in use"):
        begun.claim()


def test_the_number_of_compute_threads_comes_back(flat_folder, small, tmp_path, monkeypatch):
    before = torch.get_num_threads()
    settings = {**small, "threads": None, "checkpoint_seconds": 0}
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(measure, "cores", lambda: 4)
    monkeypatch.setattr(measure, "fewest_fast_threads", lambda step, most: 3)
    try:
        torch.set_num_threads(4)
        with monkeypatch.context() as patch:
            stop_after(patch, 3)
            with pytest.raises(Stop):
                train(flat_folder, out=tmp_path / "run", **settings)
        assert "threads: 3" in (tmp_path / "run" / "recipe.yaml").read_text()
        monkeypatch.setattr(measure, "fewest_fast_threads", lambda step, most: 1)
        train(flat_folder, out=tmp_path / "run", resume=True, **settings)
        assert torch.get_num_threads() == 4  # the caller's number is restored
    finally:
        torch.set_num_threads(before)
    environment = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert environment["compute_threads"] == 3


def test_two_runs_never_write_to_one_folder(flat_folder, small, tmp_path):
    train(flat_folder, out=tmp_path / "run", **{**small, "epochs": 1})
    (tmp_path / "run" / "metrics.json").unlink()  # as if it were not finished
    with (
        storage.locked(tmp_path / "run" / "state" / ".lock"),
        pytest.raises(OutputError, match="Another run is writing to"),
    ):
        train(tmp_path / "run", resume=True)
    train(tmp_path / "run", resume=True)


TWICE = """
import os, signal, time
from resnetkit.errors import Interrupted
from resnetkit.training.interrupts import Interrupts, raise_interrupted

signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in background jobs
with Interrupts() as interrupts:
    os.kill(os.getpid(), signal.SIGINT)
    assert interrupts.received == signal.SIGINT
    try:
        raise_interrupted(interrupts.received, "resnet train --resume x")
    except Interrupted as error:
        assert error.exit_code == 130
    else:
        raise AssertionError("the run continues")
    try:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)
    except KeyboardInterrupt:
        print("stopped")
assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
"""


def test_a_signal_is_noted_first_and_stops_the_second_time():
    command = [sys.executable, "-c", TWICE]  # a signal in this process could end the tests
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout) == (0, "stopped\n"), done.stderr


def command(data, out):
    return [sys.executable, "-m", "resnetkit", "train", str(data), "--out", str(out), "--resume",
            "--model", "cifar_resnet20", "--set", "model_options={width: 8}", "--epochs", "12",
            "--batch-size", "8", "--image-size", "32", "--set", "checkpoint_seconds=0",
            "--set", "precision=bf16"]  # fmt: skip


def go_on(data, out):
    """Do what `command` does, in this process, where PyTorch is already loaded."""
    settings = {"model_options": {"width": 8}, "checkpoint_seconds": 0, "precision": "bf16"}
    settings |= {"model": "cifar_resnet20", "epochs": 12, "batch_size": 8, "image_size": 32}
    train(data, out=out, resume=True, **settings)


def test_sigterm_finishes_the_step_saves_and_says_how_to_go_on(flat_folder, tmp_path):
    process = subprocess.Popen(command(flat_folder, tmp_path / "run"), stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not checkpoint.list_generations(tmp_path / "run" / "state"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 143
    assert f"resnet train --resume {tmp_path / 'run'}" in error.decode()


@pytest.mark.slow
def test_killed_six_times_at_any_moment(flat_folder, tmp_path):
    """Kill at random moments: the saved step never decreases, and the result has the same bits."""
    rng = random.Random(0)
    go_on(flat_folder, tmp_path / "whole")
    out = tmp_path / "killed"
    steps, mid_epoch, kills = [], 0, 0
    while kills < 6:
        process = subprocess.Popen(command(flat_folder, out), stderr=subprocess.DEVNULL)
        start = steps[-1] if steps else -1
        deadline = time.monotonic() + 120
        while process.poll() is None:  # wait until this process has saved something new
            saved = checkpoint.read_newest(out / "state")
            if saved is not None and saved.values["step"] > start:
                break
            assert time.monotonic() < deadline
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.15))
        process.kill()
        process.wait()
        kills += 1
        saved = checkpoint.read_newest(out / "state").values
        assert saved["step"] >= start
        steps.append(saved["step"])
        mid_epoch += saved["batch"] > 0
    go_on(flat_folder, out)
    assert mid_epoch > 0
    same(tmp_path / "whole", out)


def test_a_state_from_before_a_recipe_had_a_field(flat_folder, small, tmp_path, monkeypatch):
    """A missing field is taken to have its default, so setting it to another value is an error."""
    settings = {**small, "checkpoint_seconds": 0}
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(Stop):
            train(flat_folder, out=tmp_path / "run", **settings)
    state = tmp_path / "run" / "state"
    saved = checkpoint.read_newest(state)
    del saved.values["identity"]["recipe"]["shallow_share"]
    checkpoint.write_generation(state, saved)
    with pytest.raises(TrainingError, match=r"shallow_share was 0\.0 and is 0\.5"):
        train(flat_folder, out=tmp_path / "run", resume=True, **settings, shallow_share=0.5)
    assert train(flat_folder, out=tmp_path / "run", resume=True, **settings).model.exists()


def test_the_split_of_a_run_names_the_same_classes(small, save, tmp_path):
    photos = tmp_path / "photos"
    save(photos, 6)
    names = {"red": "1", "green": "01", "blue": " 1"}
    for old, new in names.items():
        (photos / old).rename(photos / new)
    train(photos, out=tmp_path / "run", **{**small, "epochs": 1})
    found = read_dataset(tmp_path / "run" / "split.csv")
    assert set(found.classes) == set(names.values())
    for split in found.splits.values():
        folders = [path.split("/")[0] for path in split.paths]
        assert folders == [found.classes[label] for label in split.labels]


def test_another_network_is_not_resumed(flat_folder, small, tmp_path):
    out = tmp_path / "run"
    train(flat_folder, out=out, **{**small, "epochs": 1})
    (out / "metrics.json").unlink()
    with pytest.raises(TrainingError, match="resnet18"):
        train(flat_folder, out=out, resume=True, **{**small, "epochs": 1, "model": "resnet18"})


def test_training_on_keeps_corrections_and_drops_what_the_first_weights_needed(
    flat_folder, small, tmp_path
):
    image = sorted(flat_folder.rglob("*.png"))[0].relative_to(flat_folder)
    table = tmp_path / "verdicts.csv"
    table.write_text(f"path,verdict,new_label\n{image},drop,\n")
    out = tmp_path / "run"
    first = {**small, "epochs": 1, "shallow_share": 0.5}
    train(flat_folder, out=out, corrections=table, **first)
    recipe = (out / "recipe.yaml").read_text()
    (out / "recipe.yaml").write_text(recipe.replace("prefix: null", "prefix: student"))
    longer = load_recipe(out / "recipe.yaml").with_settings({"epochs": 3})
    saved = checkpoint.read_newest(out / "state")
    hint = RunFolder(out).extend_hint(flat_folder, longer, saved)
    words = shlex.split(hint.splitlines()[-1])
    assert words[words.index("--corrections") + 1] == str(out / "corrections.csv")
    sets = [words[i + 1] for i, word in enumerate(words) if word == "--set"]
    assert sets == ["weights_prefix=null", "shallow_share=0"]


def test_a_finished_run_is_trained_on_with_the_command_it_names(flat_folder, small, tmp_path):
    train(flat_folder, out=tmp_path / "run", **{**small, "epochs": 1})
    with pytest.raises(TrainingError, match="To continue from its last weights") as caught:
        train(flat_folder, out=tmp_path / "run", resume=True, **{**small, "epochs": 3})
    words = shlex.split(str(caught.value).splitlines()[-1])
    assert words[:3] == ["resnet", "train", str(flat_folder)]
    assert words[3::2] == ["--recipe", "--weights", "--epochs"]
    recipe, weights, epochs = words[4::2]
    more = train(words[2], recipe, weights=weights, epochs=int(epochs), out=tmp_path / "more")
    assert (len(more.history), more.recipe.weights) == (2, str(tmp_path / "run/last.safetensors"))


def refusal(out, data, **settings):
    with pytest.raises(TrainingError, match="This is not the run that was saved") as caught:
        train(data, out=out, resume=True, **settings)
    return str(caught.value)


def test_the_command_that_trains_on_asks_for_the_missing_length(flat_folder, small, tmp_path):
    run = train(flat_folder, out=tmp_path / "run", **small)
    steps = checkpoint.read_newest(run.folder / "state").values["step"]
    hint = refusal(run.folder, flat_folder, **{**small, "epochs": None, "steps": steps + 3})
    assert hint.endswith(" --set steps=3")

    early = {**small, "epochs": 8, "patience": 1, "lr": 1e-9, "schedule": "constant"}
    run = train(flat_folder, out=tmp_path / "early", **early)
    trained = len(run.history)
    assert trained < 8
    hint = refusal(run.folder, flat_folder, **{**early, "epochs": 10})
    assert f"That run stopped improving after {trained} of 8 epochs. To continue" in hint
    assert hint.endswith(f" --epochs {10 - trained}")


def test_a_fold_is_not_trained_on_alone(flat_folder, small, tmp_path):
    settings = {**small, "epochs": 1, "fold": (1, 3)}
    run = train(flat_folder, out=tmp_path / "run", **settings)
    assert "To continue" not in refusal(run.folder, flat_folder, **{**settings, "epochs": 3})


def test_photos_of_one_name_in_two_places(flat_folder, small, tmp_path, capsys, monkeypatch):
    settings = {**small, "epochs": 1}
    other = tmp_path / "elsewhere" / flat_folder.name
    shutil.copytree(flat_folder, other)
    monkeypatch.chdir(tmp_path)
    first = train(flat_folder, **settings)
    capsys.readouterr()
    second = train(other, resume=True, **settings)
    assert "Nothing to resume for these photos" in capsys.readouterr().err
    assert second.folder.name == first.folder.name + "-2"
    third = train(other, **settings)
    assert third.folder.name == first.folder.name + "-3"
    assert f"{first.folder} belongs to other photos: {flat_folder}" in capsys.readouterr().err
    assert train(flat_folder, resume=True, **settings).folder == first.folder
    assert train(other, resume=True, **settings).folder == third.folder
    shutil.move(other, tmp_path / "moved" / other.name)
    assert train(tmp_path / "moved" / other.name, resume=True, **settings).folder == third.folder


def test_names_that_are_no_text_go_through_a_run(flat_folder, small, tmp_path):
    """The split.csv in the run folder can also be trained on."""
    name = os.fsdecode(b"caf\xe9")
    try:
        (flat_folder / "red").rename(flat_folder / name)
    except OSError:
        pytest.skip("this file system accepts only text for names")
    photos = flat_folder.rename(flat_folder.with_name(os.fsdecode(b"fotos\xff")))
    run = train(photos, out=tmp_path / "run", **{**small, "epochs": 1})
    assert load(run.model).classes == ("blue", name, "green")
    assert train(run.folder, resume=True).metrics == run.metrics
    assert evaluate(run.model, photos, "val").metrics["accuracy"] == run.metrics["accuracy"]
    again = train(run.folder / "split.csv", out=tmp_path / "again", **{**small, "epochs": 1})
    for file in ("history.csv", "metrics.json", "classes.json"):
        assert (run.folder / file).read_bytes() == (again.folder / file).read_bytes()


def test_the_split_of_an_older_version_can_be_kept(flat_folder, small, tmp_path, monkeypatch):
    settings = {**small, "epochs": 2, "seed": 3}
    whole = train(flat_folder, out=tmp_path / "whole", **settings)
    train(flat_folder, out=tmp_path / "run", **settings)
    (tmp_path / "run" / "metrics.json").unlink()  # as if it had been stopped at the very end
    with monkeypatch.context() as newer:
        newer.setattr(preparation, "split_dataset", lambda *given: split_dataset(*given[:-1], 99))
        with pytest.raises(
            TrainingError, match=r"(?s)not the split .* in the other split"
        ) as caught:
            train(tmp_path / "run", resume=True)
        text = str(caught.value)
        split = tmp_path / "run" / "split.csv"
        recipe = tmp_path / "run" / "recipe.yaml"
        assert re.search(r"such as \w+/\d+.png \(was (train|val), is (train|val)\)", text)
        command = f"resnet train {split} --recipe {recipe} --out {tmp_path / 'run'} --resume"
        assert command in text
        run = train(split, recipe, out=tmp_path / "run", resume=True)
    assert run.metrics["accuracy"] == whole.metrics["accuracy"]
