"""The Dockerfile of the image that runs exported models: pinned, small, and without root."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

RUNTIME = Path(__file__).parents[2] / "packaging" / "runtime"
DOCKERFILE = RUNTIME / "Dockerfile"


def instructions() -> list[tuple[str, str]]:
    """Return (instruction, arguments) in order; continued lines are joined."""
    text = re.sub(r"^#.*\n", "", DOCKERFILE.read_text(encoding="utf-8"), flags=re.M)
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in lines if line)]


def test_hadolint_finds_nothing():
    linter = shutil.which("hadolint", path=str(Path(sys.executable).parent))
    if linter is None:
        pytest.skip(
            "hadolint is not installed: THE DOCKERFILE IS NOT LINTED (pip install -e .[dev])"
        )
    done = subprocess.run([linter, "--no-color", DOCKERFILE], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_base_image_is_pinned_and_slim():
    bases = [rest.split()[0] for word, rest in instructions() if word == "FROM"]
    assert bases
    for base in bases:
        assert re.fullmatch(r"python:3\.\d+\.\d+-slim-[a-z]+", base), base


def test_the_image_runs_resnet_as_a_user_without_rights():
    last = max(i for i, (word, _) in enumerate(instructions()) if word == "FROM")
    final = instructions()[last:]
    users = [rest for word, rest in final if word == "USER"]
    assert users[-1].split(":")[0].isdigit()
    assert int(users[-1].split(":")[0]) > 0
    assert [rest for word, rest in final if word == "ENTRYPOINT"] == ['["resnet"]']
    words = [word for word, _ in final]
    assert "HEALTHCHECK" not in words
    assert max(i for i, word in enumerate(words) if word == "RUN") < words.index("USER")


def test_no_layer_keeps_a_cache():
    for word, rest in instructions():
        if word == "RUN" and re.search(r"\bpip (install|wheel)\b", rest):
            assert "--no-cache-dir" in rest
        assert "apt-get" not in rest


def test_the_build_context_has_what_is_copied():
    ignored = (RUNTIME / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    for word, rest in instructions():
        if word == "COPY":
            source = rest.split()[0]
            assert f"!{source}" in ignored
            assert (RUNTIME.parents[1] / source).is_dir()
