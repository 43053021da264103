from __future__ import annotations

import csv
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

import resnetkit
from resnetkit.models.weights import modelfile

from .command import resnet


def test_rows_are_in_the_order_of_the_sources(model, images, tmp_path):
    files = [str(p) for p in sorted((images / "red").glob("*.png"))][::-1]
    for folder in ("b", "a/z", "a/b"):
        (tmp_path / "tree" / folder).mkdir(parents=True)
        for name in ("2.png", "10.png", "x.txt", ".hidden.png"):
            shutil.copy(files[0], tmp_path / "tree" / folder / name)
    done = resnet("predict", model, *files, "tree", files[0], cwd=tmp_path)
    found = [json.loads(line)["source"] for line in done.stdout.splitlines()]
    inside = [f"tree/{f}/{n}.png" for f in ("a/b", "a/z", "b") for n in ("10", "2")]
    assert found == [*files, *inside, files[0]]


def test_linked_folders_are_walked_once_each_way(model, images, tmp_path):
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "red").symlink_to(images / "red")
    (tmp_path / "tree" / "red2").symlink_to(tmp_path / "tree")  # a loop
    (tmp_path / "tree" / ".hidden").symlink_to(images / "blue")
    done = resnet("predict", model, tmp_path / "tree")
    found = [json.loads(line)["source"] for line in done.stdout.splitlines()]
    assert found == [
        str(tmp_path / "tree" / "red" / p.name) for p in sorted((images / "red").glob("*.png"))
    ]


def test_a_list_that_can_be_read_only_once(model, images):
    command = f"{sys.executable} -m resnetkit predict {model} @<(find {images}/red -name '00*')"
    done = subprocess.run(["bash", "-c", command], capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 10


def test_threshold_and_top_k(model, images):
    done = resnet("predict", model, images / "red" / "000.png", "--threshold", 1, "--top-k", 2)
    row = json.loads(done.stdout)
    assert row["class"] == "unknown"
    assert len(row["top"]) == 2
    assert row["probability"] == row["top"][0]["probability"]


def test_embeddings(model, images, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"")
    done = resnet(
        "predict", model, tmp_path / "bad.png", images, "--embeddings", tmp_path / "e.npz"
    )
    assert done.returncode == 3
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    with np.load(tmp_path / "e.npz") as found:
        assert found["sources"].tolist() == [r["source"] for r in rows if not r["error"]]
        features = found["features"]
    predictor = resnetkit.load(model, "cpu")
    assert features.shape == (60, predictor.model.fc.in_features)
    weight, bias = (p.detach().numpy() for p in predictor.model.fc.parameters())
    named = (features @ weight.T + bias).argmax(1)
    assert [predictor.classes[i] for i in named] == [r["class"] for r in rows[1:]]


@pytest.mark.slow
def test_save_images(model, images, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"")
    red = images / "red" / "000.png"
    done = resnet(
        "predict", model, red, tmp_path / "bad.png", red, "-", "--save-images", tmp_path / "drawn",
        input=red.read_bytes(),
    )  # fmt: skip
    assert done.returncode == 3
    assert len(done.stdout.splitlines()) == 4
    names = sorted(path.name for path in (tmp_path / "drawn").glob("*.jpg"))
    assert names == ["000000-000.jpg", "000002-000.jpg", "000003-_bytes_.jpg"]
    with Image.open(tmp_path / "drawn" / names[0]) as image:
        assert min(image.size) >= 224
    done = resnet("predict", model, red, "--save-images", tmp_path / "drawn")
    assert done.returncode == 1
    assert b"is in use" in done.stderr


@pytest.mark.slow
def test_a_file_of_rows_can_be_resumed(model, images, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"")
    sources = [tmp_path / "bad.png", images, images, tmp_path / "gone"]
    cuts = {"rows.csv": (0, 1 / 3, 1), "rows.jsonl": (0.001, 0.999)}  # more in test_rows.py
    for name, shares in cuts.items():
        file = tmp_path / name
        done = resnet("predict", model, *sources, "--out", file, "--engine", "eager")
        assert (done.returncode, done.stdout) == (3, b""), done.stderr
        whole = file.read_bytes()
        for cut in (round(share * len(whole)) for share in shares):
            file.write_bytes(whole[:cut])
            done = resnet(
                "predict", model, *sources, "--out", file, "--resume", "--engine", "eager"
            )
            assert done.returncode == 3, done.stderr
            assert file.read_bytes() == whole, (name, cut)
        done = resnet("predict", model, *sources, "--out", file)
        assert done.returncode == 1
        assert b"Add --resume" in done.stderr
    with (tmp_path / "rows.csv").open() as file:
        assert len(list(csv.reader(file))) == 1 + 122


@pytest.mark.slow
def test_rows_can_be_resumed_after_kills(model, images, tmp_path):
    sources = [images] * 20
    command = [sys.executable, "-m", "resnetkit", "predict", model, *sources, "--engine", "eager"]
    whole = tmp_path / "whole.jsonl"
    subprocess.run([*map(str, command), "--out", whole], check=True, capture_output=True)
    file = tmp_path / "cut.jsonl"
    for number in range(4):
        process = subprocess.Popen(
            [*map(str, command), "--out", file, "--resume"], stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 100
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
            lines = file.read_bytes().count(b"\n") if file.exists() else 0
            if lines > 250 * (number + 1):
                process.send_signal(signal.SIGKILL)
                break
        process.wait()
    assert file.read_bytes() != b""
    done = subprocess.run([*map(str, command), "--out", file, "--resume"], capture_output=True)
    assert done.returncode == 0, done.stderr
    assert file.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--resume",), 2, "Name it with --out FILE"),
        (
            ("--out", "r", "--resume", "--embeddings", "e.npz"),
            2,
            "cannot be combined with --resume",
        ),
        (("--out", "r", "--format", "table"), 2, "--format jsonl or csv"),
        (("--embeddings", "e.npy"), 1, "must end in .npz"),
        (("--engine", "tensorrt"), 2, "engine must be auto, eager"),
        (("--engine", "onnx", "--precision", "bf16"), 2, "Engine onnx supports only fp32"),
        (("--threshold", "2"), 2, "threshold"),
        (("--out", "/proc/no/rows.csv"), 1, "cannot be written"),
    ],
)
def test_error_messages(model, images, tmp_path, arguments, code, message):
    done = resnet("predict", model, images / "red" / "000.png", *arguments, cwd=tmp_path)
    error = done.stderr.decode()
    assert done.returncode == code, error
    assert message in error
    assert "Traceback" not in error
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_bench(model):
    done = resnet("bench", model, "--engine", "eager", "--batch-size", 2, "--seconds", 0.05)
    assert done.returncode == 0, done.stderr
    assert "images/s" in done.stdout.decode()
    done = resnet(
        "bench", model, "--engine", "eager", "--batch-size", 2, "--seconds", 0.05,
        "--format", "json",
    )  # fmt: skip
    assert json.loads(done.stdout)["throughput"][0]["batch_size"] == 2
    assert done.returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_the_number_of_images(model, images, tmp_path):
    """Ten times as many images take no more memory, apart from the list of their names."""
    source = next((images / "red").glob("*.png"))

    def peak(count):
        folder = tmp_path / str(count)
        folder.mkdir()
        for number in range(count):
            os.link(source, folder / f"{number}.png")
        process = subprocess.Popen(
            [sys.executable, "-m", "resnetkit", "predict", str(model), str(folder), "--engine",
             "eager"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = status
        assert status == 0
        return usage.ru_maxrss / 1024

    assert peak(6000) < peak(600) + 25  # MB


def test_sets_and_strange_photos(model, images, tmp_path):
    options = ("--coverage", "0.8", "--false-alarms", "0.2")
    done = resnet("predict", model, images / "red", *options, "--out", tmp_path / "rows.csv")
    assert done.returncode == 0, done.stderr
    with (tmp_path / "rows.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    done = resnet("predict", model, images / "red", *options)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    for row, line in zip(rows, lines, strict=True):
        assert json.loads(row["set"]) == line["set"]
        assert float(row["strangeness"]) == line["strangeness"]
        strange = line["strangeness"] >= 0.8 - 1e-9
        assert line["class"] == row["class"] == ("unknown" if strange else line["top"][0]["class"])


def test_a_promise_that_cannot_be_kept_opens_no_output(model, images, tmp_path):
    out = tmp_path / "rows.jsonl"
    done = resnet("predict", model, images / "red", "--coverage", "0.999", "--out", out)
    assert done.returncode == 2
    assert b"--coverage 0.999 needs at least 999 validation images" in done.stderr
    last = model.with_name("last.safetensors")
    done = resnet("predict", last, images / "red", "--false-alarms", "0.1", "--out", out)
    assert done.returncode == 1
    assert b"--calibrate --save-model" in done.stderr
    assert not out.exists()


def test_a_network_without_a_head_opens_no_output(model, images, tmp_path):
    network, header = modelfile.read(model)
    header = dataclasses.replace(
        header, options={**header.options, "num_classes": 0}, classes=(), calibration=None
    )
    tensors = {k: v for k, v in network.state_dict().items() if not k.startswith("fc.")}
    headless = tmp_path / "headless.safetensors"
    modelfile.write(headless, tensors, header)
    outputs = ("--out", tmp_path / "rows.jsonl", "--save-images", tmp_path / "drawn")
    embeddings = ("--embeddings", tmp_path / "features.npz")
    for options in (outputs, (*outputs, *embeddings)):
        done = resnet("predict", headless, images / "red", *options)
        assert done.returncode == 1
        assert b"is a network without a head" in done.stderr
        assert [path.name for path in tmp_path.iterdir()] == [headless.name]
    photo = images / "red" / "000.png"
    done = resnet("predict", headless, photo, *embeddings, "--format", "table", text=True)
    assert (done.returncode, done.stdout) == (0, f"{photo}  no class\n")


def test_rows_on_standard_output_are_json_in_every_encoding(model, images, tmp_path):
    name = tmp_path / "photos" / "red" / "é😀.png"
    shutil.copytree(images, tmp_path / "photos")
    shutil.copy(name.with_name("000.png"), name)
    for encoding in ("ascii", "cp1252", "utf-8"):
        done = resnet("predict", model, name, PYTHONIOENCODING=encoding)
        assert json.loads(done.stdout)["source"] == str(name)
        found = resnet("check", tmp_path / "photos", "--format", "json", PYTHONIOENCODING=encoding)
        assert name.name in json.dumps(json.loads(found.stdout), ensure_ascii=False)


def test_a_file_named_as_standard_input_leaves_it_alone(model, images, tmp_path):
    (tmp_path / "-").write_text("x")
    listed = f"{images / 'red' / '000.png'}\n".encode()
    done = resnet("predict", model, "@-", cwd=tmp_path, input=listed)
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == 1
