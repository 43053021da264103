"""A package imports only from its own folder and from packages above it in the list."""

from __future__ import annotations

import ast
from pathlib import Path

import resnetkit

ROOT = Path(resnetkit.__file__).parent
PACKAGES = [
    "", "data", "models", "evaluation", "report", "training", "inference", "export", "serving",
    "scale", "study", "cli",
]  # fmt: skip
# Root modules rank above every package; each may import only those before it in this list.
ROOT_MODULES = [
    "errors", "distribution", "signals", "randomness", "limits", "processes", "hosts", "runtime",
    "text", "progress", "storage", "prefetch", "calibration",
]  # fmt: skip
ENTRANCES = {"__init__", "__main__"}  # these import packages lazily


def imports(path: Path) -> list[tuple[str, int]]:
    """Return (dotted name below resnetkit, line) of each import, including those in functions."""
    package = ("resnetkit", *path.relative_to(ROOT).parent.parts)
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            base = list(package[: len(package) - node.level + 1]) if node.level else []
            base += node.module.split(".") if node.module else []
            names = [".".join([*base, alias.name]) for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        found += [
            (name.removeprefix("resnetkit."), node.lineno)
            for name in names
            if name.startswith("resnetkit.")
        ]
    return found


def package_of(name: str) -> str:
    first = name.split(".")[0]
    return first if first in PACKAGES else ""


def test_packages_import_only_from_above():
    wrong = []
    for path in ROOT.rglob("*.py"):
        relative = path.relative_to(ROOT)
        if relative.parent == Path() and relative.stem in ENTRANCES:
            continue
        package = relative.parts[0] if len(relative.parts) > 1 else ""
        for name, line in imports(path):
            if PACKAGES.index(package_of(name)) > PACKAGES.index(package):
                wrong.append(f"{relative}:{line} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_root_modules_import_each_other_in_order():
    for position, module in enumerate(ROOT_MODULES):
        for name, line in imports(ROOT / f"{module}.py"):
            first = name.split(".")[0]
            assert first in ROOT_MODULES[:position], f"{module}.py:{line} imports {first}"


def test_every_folder_is_a_known_room():
    folders = {p.name for p in ROOT.iterdir() if p.is_dir() and any(p.glob("*.py"))}
    assert folders <= set(PACKAGES)
    assert {p.stem for p in ROOT.glob("*.py")} == {*ROOT_MODULES, *ENTRANCES}


def test_codecs_are_used_in_one_file():
    users = {
        str(path.relative_to(ROOT))
        for path in ROOT.rglob("*.py")
        if "Image.open(" in path.read_text(encoding="utf-8")
    }
    assert users <= {"data/decode.py", "cli/demo.py"}
