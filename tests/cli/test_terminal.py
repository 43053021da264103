"""File and class names with escape sequences never reach the terminal unescaped."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

import resnetkit
from resnetkit.cli import tables
from resnetkit.errors import DataError

from .command import resnet

RED, BELL, TITLE = "\x1b[31m", "\x07", "\x9b2J"


@pytest.fixture
def evil(flat_folder):
    """Photos, classes and other files with escape sequences in their names."""
    (flat_folder / "red").rename(flat_folder / f"r{RED}ed")
    photos = sorted((flat_folder / "blue").iterdir())
    photos[0].rename(flat_folder / "blue" / f"lo{BELL}ud\n{TITLE}.png")
    for number, name in enumerate([f"no{RED}\ntes.txt", f".h{BELL}.png", f"bro\nken{RED}.png"]):
        (flat_folder / "blue" / name).write_text(f"no picture {number}")
    (flat_folder / "green" / f"same{RED}\n.png").write_bytes(photos[1].read_bytes())
    return flat_folder.rename(flat_folder.with_name(f"da{RED}{BELL}ta"))


def dangerous(text):
    return sorted({c for c in text if not (c.isprintable() or c == "\n")})


def test_plan_and_messages_of_training_are_filtered(evil, small, tmp_path, capsys):
    settings = {**small, "epochs": 1, "weights": "none"}
    with pytest.raises(DataError) as raised:
        resnetkit.train(evil, out=tmp_path / "a", **settings)
    assert "bro\\nken\\x1b[31m.png" in str(raised.value)
    settings |= {"on_error": "skip", "show_plan": True}
    run = resnetkit.train(evil, out=tmp_path / f"b{RED}", **settings)
    output = capsys.readouterr().err + tables.closing_lines(run)
    skipped = [line for line in output.splitlines() if "bro" in line]
    assert skipped
    assert all("bro\\nken\\x1b[31m.png" in line for line in skipped)
    assert "same\\x1b[31m\\n.png" in output  # the same image in two classes
    assert "r\\x1b[31med" in output


@pytest.mark.slow
def test_no_command_prints_a_name_unescaped(evil, model, tmp_path):
    def run(*arguments):
        done = resnet(*arguments, text=True)
        output = done.stdout + done.stderr
        assert not dangerous(output), output
        return done

    few = ("--model", "cifar_resnet20", "--epochs", 1, "--image-size", 32, "--weights", "none")
    out = tmp_path / f"run{RED}"
    assert run("train", evil, *few, "--on-error", "skip", "--out", out).returncode == 0
    assert run("train", evil, *few, "--out", tmp_path / "other").returncode == 1
    assert run("train", evil / f"mi{BELL}ssing", *few).returncode == 1
    own = out / "model.safetensors"
    run("evaluate", own, evil)
    run("check", evil)
    found = run("check", evil, "--format", "json")
    assert RED in found.stdout.encode().decode("unicode_escape")
    json.loads(found.stdout)
    explained = run("explain", own, evil, "--out", tmp_path / f"ex{RED}plained")
    assert explained.returncode == 3
    run("convert", evil / "blue" / f"bro\nken{RED}.png", tmp_path / "x.safetensors")
    run("predict", tmp_path / f"no{RED}.safetensors", evil)
    run("predict", model, evil, "--format", "table")
    assert run("similar", own, evil, evil, "--format", "table").returncode == 3
    run("similar", model, evil / f"no{RED}", evil)
    run("report", evil / f"bro{BELL}")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_under_standard_output_is_named():
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "resnetkit", "models"], stdout=full, stderr=subprocess.PIPE
        )
    assert done.returncode == 1
    assert done.stderr.decode().strip() == "resnet: standard output: No space left on device"


def test_a_typed_path_stays_on_one_line(tmp_path):
    """Every message escapes line breaks in names, but keeps those of its own text."""
    name = "no\nphotos\x1b[31m"
    photos = tmp_path / "is\nthere"
    (photos / "cat").mkdir(parents=True)
    (photos / "cat/loose\nnote.txt").touch()
    commands = [
        (["check", f"{tmp_path}/{name}/"], 1, "no\\nphotos\\x1b[31m does not exist"),
        (["convert", name, "out"], 1, "no\\nphotos\\x1b[31m is not a file"),
        (["train", str(photos), f"--out={name}"], 1, "is\\nthere (left out: 1 file of another "
         "kind, such as cat/loose\\nnote.txt). Known layouts"),
        (["similar", name, "q"], 2, "No query was given. Type:"),
    ]  # fmt: skip
    for arguments, code, words in commands:
        done = resnet(*arguments, cwd=tmp_path, text=True)
        lines = done.stderr.splitlines()
        assert (done.returncode, words in lines[0]) == (code, True), done.stderr
        assert len(lines) == (2 if code == 2 else 1)
        assert "\x1b" not in done.stderr
