from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
import torchvision

import resnetkit
from resnetkit.data import folder
from resnetkit.models import summarize
from resnetkit.models.weights import modelfile
from resnetkit.training.recipe import load_recipe

from .command import resnet


def lines(done):
    return done.stdout.decode().splitlines()


def test_help_lists_the_commands_that_exist():
    done = resnet("--help")
    text = done.stdout.decode()
    for command in (
        "demo",
        "train",
        "evaluate",
        "predict",
        "check",
        "shard",
        "models",
        "summary",
        "convert",
        "export",
        "verify",
        "report",
        "explain",
        "similar",
    ):
        assert command in text
    assert "serve" in text


def test_train_evaluate_predict(flat_folder, tmp_path):
    done = resnet(
        "train", flat_folder, "--model", "cifar_resnet20", "--set", "model_options={width: 8}",
        "--epochs", 3, "--batch-size", 8, "--image-size", 32, "--workers", 1, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    plan = done.stderr.decode()
    for text in (
        "42 training + 6 validation images, 3 classes",
        "There is no validation split",
        "from a few measured steps",
        "epoch 3/3",
        "runs/squares-cifar_resnet20",
    ):
        assert text in plan
    output = done.stdout.decode()
    accuracy = output.split("validation accuracy ")[1].split()[0]

    # The last lines are the commands to type next. Run them.
    evaluate, predict = (line.split() for line in lines(done)[-2:])
    assert (evaluate[:2], predict[:2]) == (["resnet", "evaluate"], ["resnet", "predict"])
    done = resnet(*evaluate[1:], "--out", "measured", cwd=tmp_path)
    assert lines(done)[0].startswith(f"val: accuracy {accuracy} ")
    metrics = json.loads((tmp_path / "measured" / "metrics.json").read_text())
    assert metrics["pictures"] == 6
    done = resnet(*predict[1:-1], flat_folder / "red", cwd=tmp_path)
    assert done.returncode == 0
    assert len(lines(done)) == 16
    assert json.loads(lines(done)[0])["class"] in ("blue", "green", "red")


@pytest.mark.slow
def test_predict_takes_files_folders_globs_lists_and_bytes(model, images, tmp_path):
    red = sorted((images / "red").glob("*.png"))
    (tmp_path / "list.txt").write_text("\n".join(map(str, red[:3])) + "\n")
    dataset = (tmp_path / "list.txt").read_bytes()
    ways = {
        "files": resnet("predict", model, *red[:3]),
        "glob": resnet("predict", model, images / "red" / "00[0-2].png"),
        "list": resnet("predict", model, f"@{tmp_path / 'list.txt'}"),
        "stdin": resnet("predict", model, "@-", input=dataset),
    }
    for way, done in ways.items():
        assert done.returncode == 0, (way, done.stderr)
        assert [json.loads(line)["source"] for line in lines(done)] == list(map(str, red[:3])), way
        assert lines(done) == lines(ways["files"])
    (line,) = lines(resnet("predict", model, "-", input=red[0].read_bytes()))
    alone, together = json.loads(line), json.loads(lines(ways["files"])[0])
    assert alone["class"] == together["class"]
    assert alone["probability"] == pytest.approx(together["probability"], abs=1e-5)
    assert len(lines(resnet("predict", model, images))) == 60


@pytest.mark.slow
def test_predict_formats(model, images):
    files = sorted((images / "red").glob("*.png"))[:2]
    done = resnet("predict", model, *files, "--format", "csv")
    rows = list(csv.DictReader(lines(done)))
    assert [row["source"] for row in rows] == list(map(str, files))
    assert 0 < float(rows[0]["probability"]) <= 1
    done = resnet("predict", model, *files, "--format", "table", "--top-k", 1)
    assert lines(done)[0].startswith(f"{files[0]}  ")
    assert lines(done)[0].endswith("%")


def test_an_unreadable_image_is_a_row_and_exit_code_3(model, images, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"not a picture")
    good = images / "red" / "000.png"
    done = resnet("predict", model, tmp_path / "broken.jpg", good)
    assert done.returncode == 3
    broken, fine = map(json.loads, lines(done))
    assert "broken.jpg: holds text" in broken["error"]
    assert broken["class"] is None
    assert fine["error"] is None


@pytest.mark.slow
def test_a_closed_pipe_ends_quietly(model, images):
    command = f"{sys.executable} -m resnetkit predict {model} {images} | head -n 1"
    done = subprocess.run(command, shell=True, capture_output=True, timeout=300)
    assert done.stdout.count(b"\n") == 1
    assert [line.split()[0] for line in done.stderr.splitlines()] == [b"engine"]
    status = subprocess.run(["bash", "-c", f"{command}; exit ${{PIPESTATUS[0]}}"], timeout=300)
    assert status.returncode == 141  # as if SIGPIPE had killed it


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("train", "gone"), 1, "gone does not exist"),
        (("train", "empty"), 1, "No images in empty"),
        (("train", "full", "--recipe", "clasic"), 2, "Did you mean 'classic'"),
        (("train", "full", "--set", "epoch=3"), 2, "Did you mean 'epochs'"),
        (("train", "full", "--set", "recipe=fast"), 2, "Unknown recipe key 'recipe'"),
        (("train", "full", "--model", "resnet19"), 2, "Did you mean 'resnet18"),
        (("train", "full", "--device", "tpu"), 2, "device must be auto, cpu, cuda"),
        (
            ("train", "full", "--device", "cpu:x"),
            2,
            "device must be auto, cpu, cuda, cuda:N or mps; got 'cpu:x'",
        ),
        (("train", "full", "--device", "cuda:7"), 2, "This machine has only: cpu"),
        (
            ("train", "full", "--find-lr", "--seeds", "0-1"),
            2,
            "--find-lr cannot be combined with --folds, --seeds, --resume",
        ),
        (("train", "full", "--out", "full"), 1, "full is in use"),
        (("train", "full", "--epochs", "many"), 2, "epochs"),
        (("evaluate", "text.safetensors", "full"), 1, "is not a resnetkit model file"),
        (("predict", "gone.safetensors", "x.png"), 1, "gone.safetensors does not exist"),
        (("predict", "x.jpg"), 2, "Type:\n  resnet predict model.safetensors x.jpg"),
        (("predict", "a b.jpg", "c.jpg"), 2, "resnet predict model.safetensors 'a b.jpg' c.jpg"),
        (("predict", "full"), 2, "resnet predict model.safetensors full"),
        (("predict", "m.safetensors"), 2, "resnet predict m.safetensors IMAGE..."),
        (("predict", "m", "x.png", "--resume"), 1, "m does not exist"),
        (("models", "vgg*"), 2, "No model matches 'vgg*'"),
        (("train", "full", "--out", "text.safetensors/x"), 1, "text.safetensors is a file"),
        (("train", "full", "--set", "crop_scale=[1"), 2, "not valid YAML"),
        (("summary", "resnet18", "--set", "width=0"), 2, "width must be 1 or more; got 0"),
        (("summary", "resnet18", "--set", "in_channels=0"), 2, "in_channels must be 1 or more"),
        (("summary", "resnet50", "--set", "width_per_group=0"), 2, "channels of a 3x3 must be 1"),
        (("summary", "darknet53", "--set", "in_channels=0"), 2, "in_channels must be 1 or more"),
        (
            ("evaluate", "text.safetensors", "full", "--calibrate", "--save-model", "new.onnx"),
            1,
            "To export a model file: resnet export",
        ),
        (("convert", "gone.pth", "new.onnx"), 1, "To export a model file: resnet export"),
    ],
)
def test_error_messages(tmp_path, save, arguments, code, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.safetensors").write_text("this is not a model, but some text")
    save(tmp_path / "full", 2)
    done = resnet(*arguments, cwd=tmp_path)
    error = done.stderr.decode()
    assert done.returncode == code, error
    assert message in error
    assert "Traceback" not in error


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals(flat_folder, tmp_path, sent, code):
    process = subprocess.Popen(
        [sys.executable, "-m", "resnetkit", "train", str(flat_folder), "--model", "cifar_resnet20",
         "--epochs", "1000", "--out", str(tmp_path / "run")],
        stderr=subprocess.PIPE, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not (tmp_path / "run" / "history.csv").exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(sent)
    _, error = process.communicate(timeout=60)
    assert process.returncode == code, error
    assert b"Traceback" not in error


def test_sources_without_images_are_error_rows(model, images, tmp_path):
    (tmp_path / "list.txt").write_text("\n")
    (tmp_path / "empty").mkdir()
    good = images / "red" / "000.png"
    empty = [f"@{tmp_path / 'list.txt'}", "@-", tmp_path / "empty", tmp_path / "*.png"]
    empty += [f"@{tmp_path / 'gone.txt'}", tmp_path / "gone.png", "nul\\0.png"]
    done = resnet("predict", model, good, *empty, good, input=b"")
    assert done.returncode == 3, done.stderr
    found = [json.loads(line) for line in lines(done)]
    assert [row["source"] for row in found] == [str(a) for a in [good, *empty, good]]
    assert [row["error"] is None for row in found] == [True, *[False] * len(empty), True]
    assert b"Traceback" not in done.stderr


@pytest.mark.slow
def test_names_that_a_terminal_cannot_show(model, images, tmp_path):
    for name in ("bl\u00fcte\n.png", "r\udcff.png"):
        shutil.copy(images / "red" / "000.png", tmp_path / name)
    for form in ("jsonl", "csv", "table"):
        done = resnet("predict", model, tmp_path, "--format", form, PYTHONIOENCODING="ascii:strict")
        assert done.returncode == 0, done.stderr
    assert len(lines(done)) == 2


def test_version():
    assert lines(resnet("--version")) == [f"resnetkit {resnetkit.__version__}"]


def test_models_lists_parameters_and_multiply_adds():
    done = resnet("models", "resnet*[0-9]")
    table = {line.split()[0]: line.split() for line in lines(done)[1:]}
    assert table["resnet50"][1:3] == ["25,557,032", "4.089"]
    assert set(table) == {"resnet18", "resnet34", "resnet50", "resnet101", "resnet152"}


def test_published_weights_are_listed_with_their_accuracies():
    done = resnet("models", "resnext*", "--weights")
    rows = [line.split() for line in lines(done)[1:]]
    assert ["resnext50_32x4d", "IMAGENET1K_V2", "81.20", "95.34", "95.8", "(default)"] in rows
    assert len(rows) == 5
    rows = lines(resnet("models", "--weights"))[1:]
    assert len(rows) == 17 + 1
    (starter,) = (" ".join(row.split()) for row in rows if "starter" in row)
    assert starter == "resnet18_starter TINY_IMAGENET 50.84 75.30 5.5 (default) (on Tiny-ImageNet)"


@pytest.mark.slow
def test_summary_counts_layers_as_the_paper_does():
    done = resnet("summary", "resnet101")
    assert "1 + 9 + 12 + 69 + 9 + 1 = 101 layers" in lines(done)[0]
    done = resnet("summary", "resnet50", "--set", "stride_on=1x1")
    assert lines(done)[-1].split()[-1] == "3.858"
    done = resnet("summary", "resnet50", "--set", "strid=1x1")
    assert (done.returncode, b"Did you mean 'stride_on" in done.stderr) == (2, True)


@pytest.mark.slow
def test_convert_makes_a_model_file_of_a_bare_state_dict(tmp_path, images):
    torch.manual_seed(0)
    theirs = torchvision.models.resnet18(num_classes=3).eval()
    torch.save({"state_dict": theirs.state_dict()}, tmp_path / "best.pth")
    indices = {"0": "blue", "1": "green", "2": "red"}
    (tmp_path / "class_indices.json").write_text(json.dumps(indices))
    arguments = ("convert", "best.pth", "m.safetensors", "--classes", "class_indices.json")
    done = resnet(*arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "m.safetensors: resnet18 (num_classes=3" in done.stdout.decode()
    done = resnet("evaluate", "m.safetensors", images, cwd=tmp_path)
    assert lines(done)[0].startswith("all: accuracy")
    ours, header = modelfile.read(tmp_path / "m.safetensors")
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(ours(x), theirs(x))
    assert header.classes == ("blue", "green", "red")
    done = resnet(*arguments, cwd=tmp_path)
    assert (done.returncode, b"m.safetensors exists" in done.stderr) == (1, True)


def test_evaluate_writes_the_evidence(model, images, tmp_path):
    done = resnet(
        "evaluate", model, images, "--split", "all", "--calibrate", "--flip", "--image-size", 40,
        "--out", tmp_path / "out",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "95% interval" in lines(done)[1]
    assert lines(done)[2].startswith("temperature ")
    assert b"trained on 51 of these 60 images" in done.stderr
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        ".resnetkit", "confusion_matrix.png", "metrics.json", "per_class.csv", "predictions.csv",
        "reliability.png", "report.html",
    ]  # fmt: skip
    done = resnet("evaluate", model, images, "--crops", 5)
    assert (done.returncode, b"crops must be 1 (center) or 10" in done.stderr) == (2, True)


def test_evidence_among_the_photos_is_no_class(model, images, tmp_path):
    data = tmp_path / "data"
    (data / "red").mkdir(parents=True)
    (data / "odd").mkdir()
    red = (images / "red" / "000.png").read_bytes()
    (data / "red" / "0.png").write_bytes(red)
    (data / "odd" / "1.png").write_bytes(red)
    done = resnet("evaluate", model, data, "--out", data / "evidence")
    assert (done.returncode, b"has classes that" in done.stderr) == (1, True)
    assert sorted(path.name for path in data.iterdir()) == ["odd", "red"]  # nothing was created
    shutil.rmtree(data / "odd")
    for out in ("evidence", "again"):
        done = resnet("evaluate", model, data, "--split", "all", "--out", data / out)
        assert done.returncode == 0, done.stderr
    assert b"left out: 1 folder that resnet wrote, such as evidence" in done.stderr
    done = resnet("explain", model, data / "red", "--out", data / "explained")
    assert done.returncode == 0, done.stderr
    done = resnet("predict", model, data, "--save-images", data / "drawn", "--format", "jsonl")
    assert len(done.stdout.splitlines()) == 1
    assert b"4 folders that resnet wrote" in done.stderr
    found = folder.read_dataset(data, classes=["blue", "green", "red"])
    assert list(found.splits["all"].paths) == ["red/0.png"]
    assert found.left_out == {"folders that resnet wrote": 4}


@pytest.mark.skipif(os.name == "nt", reason="a POSIX shell closes the stream")
def test_a_closed_standard_output(model, images, tmp_path):
    command = f'{sys.executable} -m resnetkit predict "{model}" "{images}/red" --out rows.csv >&-'
    done = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, check=False)
    assert (done.returncode, b"Traceback" in done.stderr) == (0, False), done.stderr
    assert (tmp_path / "rows.csv").read_text().startswith("source,class,")
    command = f'{sys.executable} -m resnetkit predict "{model}" "{images}/red" <&- >&- 2>&-'
    assert subprocess.run(command, shell=True, cwd=tmp_path, check=False).returncode == 0


@pytest.mark.slow
def test_report_of_a_run_and_of_two(trained, tmp_path):
    done = resnet("report", trained, "--out", "one.html", cwd=tmp_path)
    assert lines(done) == ["one.html"]
    done = resnet("report", trained, trained / "last.safetensors", cwd=tmp_path)
    assert lines(done) == ["comparison.html"], done.stderr
    assert b"<!doctype html>" in (tmp_path / "comparison.html").read_bytes()


@pytest.mark.slow
def test_explain_writes_overlays(model, images, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"nothing")
    files = [images / "red" / "000.png", images / "blue" / "000.png", "broken.png"]
    done = resnet("explain", model, *files, "--class", "red", "--layer", "layer2", cwd=tmp_path)
    assert done.returncode == 3, done.stderr
    assert "ERROR" in lines(done)[2]
    assert sorted(p.name for p in (tmp_path / "explained").iterdir()) == [
        ".resnetkit", "000-2.png", "000.png",
    ]  # fmt: skip
    done = resnet("explain", model, files[0], "--layer", "layer7", "--out", "x", cwd=tmp_path)
    assert (done.returncode, b"no layer 'layer7'; it has conv1" in done.stderr) == (2, True)


def test_a_full_terminal_shows_a_live_bar(model, images):
    if shutil.which("script") is None:
        pytest.skip("needs the command `script` to make a terminal")
    command = f"{sys.executable} -m resnetkit evaluate {model} {images} --split all"
    done = subprocess.run(
        ["script", "-qec", command, "/dev/null"],
        capture_output=True, env={**os.environ, "TERM": "xterm"}, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0
    assert b"evaluating" in done.stdout
    assert b"accuracy" in done.stdout


@pytest.mark.slow
def test_demo(tmp_path):
    """Count multiply-adds rather than time (under 90 s on two idle cores), which varies."""
    done = resnet("demo", cwd=tmp_path)
    assert done.returncode == 0, done.stderr.decode()
    last = done.stdout.decode().rsplit("test accuracy ", 1)[1]
    assert float(last.split("%")[0]) >= 98.0
    recipe = load_recipe(tmp_path / "demo" / "run" / "recipe.yaml")
    network, _ = modelfile.read(tmp_path / "demo" / "run" / "model.safetensors")
    pictures = len(folder.read_dataset(tmp_path / "demo" / "digits").splits["train"])
    sizes = [recipe.train_size(epoch) for epoch in range(recipe.epochs)]
    forward = pictures * sum(summarize(network, size).macs for size in sizes)
    assert 3 * forward < 3e12  # a backward pass costs twice a forward pass
    assert (tmp_path / "demo" / "run" / "predictions.png").exists()

    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "demo" / "run").rglob("*")}
    with subprocess.Popen([sys.executable, "-m", "resnetkit", "demo"], cwd=tmp_path) as second:
        while not (tmp_path / "demo" / "run-2" / "recipe.yaml").exists():
            assert second.poll() is None
            time.sleep(0.1)
        second.terminate()
    assert {path: path.stat().st_mtime_ns for path in before} == before  # nothing is overwritten


def test_columns_stay_in_line_whatever_the_script(trained):
    from rich.cells import cell_len

    from resnetkit.cli.tables import evaluation_table

    found = resnetkit.evaluate(trained / "model.safetensors", trained.parent / "data", "val")
    names = ("苹果", "กุหลาบ", "new\nline")
    rows = [{**row, "class": name} for row, name in zip(found.metrics["per_class"], names)]  # noqa: B905
    found = replace(found, classes=names, metrics={**found.metrics, "per_class": rows})
    table = evaluation_table(found).split("class ", 1)[1].splitlines()
    assert len({cell_len(line) for line in table[1:5]}) == 1
    assert any(line.startswith("new\\nline") for line in table)


@pytest.mark.slow
def test_train_passes_its_flags_on(flat_folder, tmp_path):
    pytest.importorskip("tensorboard")
    (flat_folder / "red" / "000.png").write_bytes(b"no picture")
    small = ("--model", "cifar_resnet20", "--epochs", "1", "--image-size", "32")
    done = resnet("train", flat_folder, *small, "--out", "one", cwd=tmp_path)
    assert done.returncode == 1
    assert "train without them: --on-error skip" in done.stderr.decode()
    more = ("--on-error", "skip", "--patience", "3", "--seeds", "0-1", "--tensorboard")
    done = resnet("train", flat_folder, *small, *more, "--out", "two", cwd=tmp_path)
    assert done.returncode == 0, done.stderr.decode()
    for seed in "01":
        run = tmp_path / "two" / f"seed-{seed}"
        assert list((run / "tensorboard").iterdir())
        recipe = (run / "recipe.yaml").read_text()
        assert "patience: 3" in recipe
        assert "on_error: skip" in recipe
