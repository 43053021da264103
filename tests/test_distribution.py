"""A missing package causes a one-line error that says what to type."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import typer

import resnetkit
from resnetkit import distribution
from resnetkit.cli.commands import app
from resnetkit.errors import MissingPackageError

ROOT = Path(__file__).parents[1]
MODULES = {"pyyaml": "yaml", "scikit-learn": "sklearn"}
"""Modules that are not named like their distribution."""

WITHOUT_PYTORCH = """
import sys

class Refusal:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torchvision"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Refusal())
"""

RUN_EACH = """
from resnetkit.cli import main

for line in sys.stdin.read().splitlines():
    sys.argv = ["resnet", *line.split()]
    try:
        main()
    except SystemExit as end:
        print(end.code, file=sys.stderr)
"""

COMMANDS = {
    "demo": "--out new",
    "train": "data",
    "evaluate": "model.safetensors data",
    "predict": "model.safetensors data",
    "explain": "model.safetensors photo.jpg",
    "report": "model.safetensors data",
    "similar": "model.safetensors data photo.jpg",
    "models": "",
    "summary": "resnet18",
    "convert": "checkpoint.pth new.safetensors",
    "export": "model.safetensors",
    "bench": "model.safetensors",
    "study": "tables",
}
# These commands start without PyTorch, but may need it for some inputs.
NEEDLESS = {"check", "serve", "shard", "verify"}


def project(folder: Path) -> dict:
    return tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_every_command_says_what_is_missing(tmp_path):
    known = set(typer.main.get_command(app).commands)
    assert known <= {*COMMANDS, *NEEDLESS}, "list a new command above"
    lines = "\n".join(f"{name} {arguments}" for name, arguments in COMMANDS.items())
    program = [sys.executable, "-c", WITHOUT_PYTORCH + RUN_EACH]
    done = subprocess.run(program, cwd=tmp_path, input=lines, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    users = {name: f"resnet {name}" for name in COMMANDS}
    users |= {name: f"resnet {name} with a model file" for name in ("predict", "evaluate", "bench")}
    expected = [
        line
        for name in COMMANDS
        for line in (f"resnet: {users[name]} needs PyTorch: pip install resnetkit", "1")
    ]
    assert done.stderr.splitlines() == expected
    assert not list(tmp_path.iterdir())


def test_every_public_name_says_what_is_missing():
    code = f"""
import resnetkit
for name in {resnetkit.__all__}:
    try:
        getattr(resnetkit, name)
    except ImportError as error:
        print(f"{{type(error).__name__}}: {{error}}")
"""
    program = [sys.executable, "-c", WITHOUT_PYTORCH + code]
    done = subprocess.run(program, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    without = {"ExportedPredictor", "Prediction", "ResnetkitError"}
    needing = [name for name in resnetkit.__all__ if name not in without]
    assert done.stdout.splitlines() == [
        f"MissingPackageError: resnetkit.{name} needs PyTorch: pip install resnetkit"
        for name in needing
    ]


@pytest.fixture
def installed(monkeypatch):
    """The names of the distributions that appear to be installed; a test can add some."""
    names: set[str] = set()
    monkeypatch.setattr(
        importlib.metadata, "distributions", lambda name: [name] if name in names else []
    )
    return names


def test_the_runtime_is_removed_before_the_whole_is_installed(installed):
    installed.add("resnetkit-runtime")
    with pytest.raises(MissingPackageError) as caught, distribution.explain_missing("This"):
        raise ModuleNotFoundError("", name="torch.nn")
    assert str(caught.value) == (
        "This needs PyTorch: pip uninstall -y resnetkit-runtime && pip install resnetkit"
    )
    assert distribution.install_command("heif") == 'pip install "resnetkit-runtime[heif]"'
    installed.add("resnetkit")
    assert distribution.full_install_command() == "pip install resnetkit"
    assert distribution.install_command("heif") == 'pip install "resnetkit[heif]"'


def test_the_missing_package_is_named_if_pytorch_is_there(installed):
    installed |= {"resnetkit", "torch"}
    with (
        pytest.raises(MissingPackageError, match="This needs yaml: pip install resnetkit"),
        distribution.explain_missing("This"),
    ):
        raise ModuleNotFoundError("", name="yaml")


@pytest.mark.parametrize("name", ["resnetkit.nothing", "another", None])
def test_other_missing_modules_are_not_explained(name):
    with pytest.raises(ModuleNotFoundError), distribution.explain_missing("This"):
        raise ModuleNotFoundError("", name=name)


def test_the_runtime_depends_on_a_subset_and_on_its_engine():
    full, runtime = project(ROOT), project(ROOT / "packaging" / "runtime")
    extras = full["optional-dependencies"]
    ours, theirs = set(full["dependencies"]), set(runtime["dependencies"])
    assert theirs - ours == {"onnxruntime>=1.20"} <= set(extras["onnx"])
    for name, requirements in runtime["optional-dependencies"].items():
        assert requirements == extras[name]
    names = {re.split(r"[<>=]", requirement)[0] for requirement in ours - theirs}
    assert {MODULES.get(name, name) for name in names} == distribution.LEFT_OUT
    for field in ("requires-python", "license", "scripts", "authors"):
        assert runtime[field] == full[field]


def test_the_runtime_has_every_extra_that_messages_name():
    sources = (path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py"))
    named = {name for text in sources for name in re.findall(r"install_command\(['\"](\w+)", text)}
    assert {"heif", "ray", "s3", "serve"} <= named
    assert named <= project(ROOT / "packaging" / "runtime")["optional-dependencies"].keys()


def test_both_distributions_have_one_license():
    texts = {(folder / "LICENSE").read_bytes() for folder in (ROOT, ROOT / "packaging" / "runtime")}
    assert len(texts) == 1
