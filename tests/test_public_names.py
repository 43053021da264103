from __future__ import annotations

import subprocess
import sys
import time

import pytest

import resnetkit


def test_public_names_are_sorted_and_there():
    assert list(resnetkit.__all__) == sorted(resnetkit.__all__)
    for name in resnetkit.__all__:
        assert getattr(resnetkit, name).__name__ == name
    with pytest.raises(AttributeError, match="nothing"):
        resnetkit.nothing  # noqa: B018


def heavy_modules(code: str) -> set[str]:
    """Which of the slow packages are imported after ``code``."""
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


def test_help_answers_in_half_a_second():
    taken = []
    for _ in range(5):
        start = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "resnetkit", "--help"], check=True, capture_output=True
        )
        taken.append(time.perf_counter() - start)
    assert min(taken) < 0.5
