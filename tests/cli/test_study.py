"""`resnet study`: fast help, JSON output, error messages."""

from __future__ import annotations

import json
import subprocess
import sys
import xml.etree.ElementTree as ET

import pytest

from .command import resnet as run


def resnet(*arguments, cwd=None):
    return run("study", *arguments, cwd=cwd, text=True)


def test_help_lists_the_commands_and_imports_nothing_heavy():
    done = resnet("--help")
    for command in ("tables", "blocks", "gradients", "degradation", "shortcuts"):
        assert command in done.stdout
    program = (
        "import sys; sys.argv = ['resnet', 'study', 'degradation', '--help']\n"
        "from resnetkit.cli import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "assert not {'torch', 'numpy', 'matplotlib'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--depths" in done.stdout


@pytest.mark.slow
def test_tables_as_text_json_and_files(tmp_path):
    done = resnet("tables", "--format", "json", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found == json.loads((tmp_path / "out" / "tables.json").read_text(encoding="utf-8"))
    macs = {row["what"]: row for table in found for row in table["rows"]}
    assert macs["VGG-19"]["published"] == "19.6"
    ET.parse(tmp_path / "out" / "blocks.svg")
    assert "Table 6: parameters in millions" in resnet("tables").stdout


def test_blocks_of_any_network(tmp_path):
    out = tmp_path / "b.svg"
    done = resnet("blocks", "resnet18", "--set", "width=24", "--out", out)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(out)
    assert "3x3 conv, 48, /2" in out.read_text(encoding="utf-8")


@pytest.mark.slow
def test_costs_of_shortcuts_need_no_training(tmp_path):
    done = resnet("shortcuts", "--costs", "--format", "json", cwd=tmp_path)
    assert json.loads(done.stdout)["costs"][0]["rows"][0]["derived"] == 21623848
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("blocks", "resnet5"), "Did you mean"),
        (("degradation", "--depths", "20,21"), "--depths takes one or more of 20, 32"),
        (("degradation", "--depths", "deep"), "as in 20,56"),
        (("degradation", "--recipe", "papr"), "Unknown recipe"),
        (("degradation", "--seeds", "0-"), "--seeds takes numbers, as in 0-4"),
        (("degradation", "--seeds", "1,1"), "--seeds takes different numbers"),
        (("shortcuts", "--model", "resnet5"), "Did you mean"),
    ],
)
def test_error_messages(arguments, words, tmp_path):
    done = resnet(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("'resnet5'") <= 1


@pytest.mark.slow
def test_gradients_writes_figures_and_json(tmp_path):
    done = resnet("gradients", "--steps", "2", "--out", tmp_path / "g", "--format", "json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found == json.loads((tmp_path / "g" / "gradients.json").read_text(encoding="utf-8"))
    assert "nan" in found["stacks"][4]["losses"]
    for name in ("stacks", "gradients", "responses"):
        figure = tmp_path / "g" / f"{name}.svg"
        ET.parse(figure)
        assert figure.stat().st_size < 200_000
