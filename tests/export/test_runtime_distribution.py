"""`resnetkit-runtime` is built and installed into an empty environment, and classifies there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from resnetkit import __version__
from resnetkit.export.export import export

pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
MAX_MEGABYTES = 250
MAX_PEAK = 300  # MB
ABSENT = ("torch", "torchvision", "scipy", "sklearn", "matplotlib")


def pip(*arguments: object) -> None:
    """Run pip; skip the test if the package index cannot be reached."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        output = done.stdout + done.stderr
        unreachable = ("No matching distribution found", "Max retries", "NewConnectionError")
        if any(phrase in output for phrase in unreachable):
            pytest.skip(f"no package index: THE RUNTIME IS NOT INSTALLED\n{output[-500:]}")
        pytest.fail(output)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--quiet", "--no-deps", "--wheel-dir", folder, ROOT / "packaging" / "runtime")
    (file,) = folder.iterdir()
    return file


@dataclass(frozen=True)
class Environment:
    """An environment that has only the runtime."""

    folder: Path

    @property
    def bin(self) -> Path:
        return self.folder / ("Scripts" if os.name == "nt" else "bin")

    @property
    def packages(self) -> Path:
        (found,) = self.folder.rglob("site-packages")
        return found

    def run(self, program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        """Run a program in the environment, outside the clone."""
        command = [self.bin / program, *map(str, arguments)]
        # PYTHONPATH could expose the packages that the tests use.
        variables = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
        return subprocess.run(
            command, cwd=self.folder, env=variables, capture_output=True, text=True
        )


@pytest.fixture(scope="module")
def runtime(wheel, tmp_path_factory) -> Environment:
    folder = tmp_path_factory.mktemp("runtime") / "venv"
    # The pip that runs the tests installs into it, because its own pip would add 20 MB.
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    environment = Environment(folder)
    pip("--python", environment.bin / "python", "install", "--quiet", wheel)
    return environment


@pytest.fixture(scope="module")
def exported(tiny_model, save, tmp_path_factory) -> tuple[Path, Path]:
    """An exported network, and photos of its classes."""
    folder = tmp_path_factory.mktemp("exported")
    file = export(tiny_model, "onnx", folder / "model.onnx", golden="made").path
    return file, save(folder / "photos", 4)


def test_both_wheels_have_the_same_files(wheel, tmp_path):
    """Files in a package folder are included as they are, even those that git ignores."""
    pip("wheel", "--quiet", "--no-deps", "--wheel-dir", tmp_path, ROOT)
    (full,) = tmp_path.iterdir()

    def package(path: Path) -> set[str]:
        with zipfile.ZipFile(path) as archive:
            return {name for name in archive.namelist() if name.startswith("resnetkit/")}

    assert package(wheel) == package(full)
    assert len(package(wheel)) > 100


def test_the_environment_is_small_and_has_no_pytorch(runtime, capsys):
    files = [path for path in runtime.packages.rglob("*") if path.is_file()]
    megabytes = sum(path.stat().st_size for path in files) / 1e6
    with capsys.disabled():
        print(f"\nsite-packages of resnetkit-runtime: {megabytes:.1f} MB")
    assert megabytes <= MAX_MEGABYTES
    there = {path.name for path in runtime.packages.iterdir()}
    assert not there & set(ABSENT)
    assert {"numpy", "onnxruntime", "resnetkit"} <= there


def test_the_package_imports_and_knows_its_version(runtime):
    code = (
        "import importlib, importlib.metadata, importlib.util\n"
        "package = importlib.import_module('resnetkit')\n"
        f"found = [n for n in {ABSENT} if importlib.util.find_spec(n)]\n"
        "print(package.__version__, importlib.metadata.version('resnetkit-runtime'), found)"
    )
    done = runtime.run("python", "-c", code)
    assert done.stdout.split(maxsplit=2) == [__version__, __version__, "[]\n"], done.stderr
    done = runtime.run("resnet", "--help")
    assert done.returncode == 0, done.stderr
    assert "predict" in done.stdout


def test_it_verifies_evaluates_and_measures(runtime, exported):
    file, photos = exported
    done = runtime.run("resnet", "verify", file)
    assert done.returncode == 0, done.stderr
    assert "agrees with the model" in done.stderr
    done = runtime.run("resnet", "evaluate", file, photos)
    assert done.returncode == 0, done.stderr
    assert "average" in done.stdout
    done = runtime.run("resnet", "bench", file, "--seconds", 0.05, "--format", "json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["runtime"] == "onnx"


def rows(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


def test_it_predicts_what_the_full_package_predicts(runtime, exported, capsys):
    file, photos = exported
    started = time.perf_counter()
    done = runtime.run("resnet", "predict", file, photos)
    seconds = time.perf_counter() - started
    assert done.returncode == 0, done.stderr
    with capsys.disabled():
        print(f"\nresnet predict on 12 photos, from the start of the process: {seconds:.2f} s")
    command = [sys.executable, "-m", "resnetkit", "predict", file, photos]
    full = subprocess.run(command, capture_output=True, text=True)
    assert full.returncode == 0, full.stderr
    found, expected = rows(done.stdout), rows(full.stdout)
    assert len(found) == len(expected) == 12
    for ours, theirs in zip(found, expected, strict=True):
        for row in (ours, theirs):
            row["top"] = {one["class"]: one["probability"] for one in row["top"]}
        assert ours.keys() == theirs.keys()
        assert ours.pop("top") == pytest.approx(theirs.pop("top"), abs=1e-6)
        assert ours.pop("probability") == pytest.approx(theirs.pop("probability"), abs=1e-6)
        assert ours == theirs


def test_memory_stays_small(runtime, exported, capsys):
    pytest.importorskip("resource")
    code = (
        "import resource, subprocess, sys\n"
        "subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)\n"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    done = runtime.run("python", "-c", code, runtime.bin / "resnet", "predict", *exported)
    assert done.returncode == 0, done.stderr
    unit = 1 if sys.platform == "darwin" else 1024
    megabytes = int(done.stdout) * unit / 1e6
    with capsys.disabled():
        print(f"\npeak memory of resnet predict: {megabytes:.0f} MB")
    assert megabytes < MAX_PEAK


@pytest.mark.parametrize(
    ("arguments", "user"),
    [
        (("train", "photos"), "resnet train"),
        (("demo",), "resnet demo"),
        (("models",), "resnet models"),
        (("export", "model.safetensors"), "resnet export"),
        (("study", "tables"), "resnet study"),
        (("predict", "model.safetensors", "photos"), "resnet predict with a model file"),
    ],
)
def test_what_needs_pytorch_says_what_to_type(runtime, arguments, user):
    done = runtime.run("resnet", *arguments)
    assert (done.returncode, done.stdout) == (1, "")
    command = "pip uninstall -y resnetkit-runtime && pip install resnetkit"
    assert done.stderr == f"resnet: {user} needs PyTorch: {command}\n"


def test_an_optional_package_is_named(runtime, exported, tmp_path):
    file, photos = exported
    done = runtime.run("resnet", "predict", file, photos, "--save-images", tmp_path / "drawn")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "resnet: Drawing classes on images needs matplotlib: pip install matplotlib"
    )


def test_python_says_what_to_type_too(runtime):
    done = runtime.run("python", "-c", "import resnetkit; resnetkit.train")
    last = done.stderr.splitlines()[-1]
    assert last.startswith("resnetkit.errors.MissingPackageError: resnetkit.train needs PyTorch: ")
