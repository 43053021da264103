from __future__ import annotations

import subprocess
import sys

import pytest

import resnetkit


def test_public_names_are_sorted_and_exist():
    assert list(resnetkit.__all__) == sorted(resnetkit.__all__)
    for name in resnetkit.__all__:
        assert getattr(resnetkit, name).__name__ == name
    with pytest.raises(AttributeError, match="nothing"):
        resnetkit.nothing  # noqa: B018


def heavy_modules(code: str) -> set[str]:
    """Return the slow packages that are imported after ``code``."""
    program = f"import sys\n{code}\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split()) & {"torch", "torchvision", "sklearn", "matplotlib", "numpy"}


def test_importing_the_package_imports_nothing_heavy():
    assert heavy_modules("import resnetkit") == set()
    assert heavy_modules("import resnetkit.cli.commands") == set()


def test_importing_the_models_leaves_torchvision_out():
    assert heavy_modules("import resnetkit.models") == {"torch", "numpy"}
    assert heavy_modules("import resnetkit.inference.predictor") == {"torch", "numpy"}


def test_help_imports_nothing_heavy():
    """`resnet --help` takes under half a second; these packages take longer to import."""
    code = (
        "import sys\nfrom resnetkit.cli import main\nsys.argv = ['resnet', '--help']\n"
        "try:\n    main()\nexcept SystemExit:\n    print('loaded:', *sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    loaded = set(done.stdout.rpartition("loaded:")[2].split())
    assert "resnetkit.cli.commands" in loaded
    heavy = {"torch", "torchvision", "numpy", "PIL", "sklearn", "matplotlib", "pydantic", "jinja2"}
    assert not heavy & loaded
