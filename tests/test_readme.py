"""Documents are correct: commands parse, Python blocks run, links and files exist."""

from __future__ import annotations

import logging
import re
import shlex
from pathlib import Path

import pytest
import typer

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/*.md")])
GUIDES = [  # with a Chinese version; test_docs.py checks the walk through the network
    path.with_name(path.name.replace(".zh-CN", ""))
    for path in (*ROOT.glob("*.zh-CN.md"), *sorted(ROOT.glob("docs/*.zh-CN.md")))
    if path.stem != "resnet.zh-CN"
]
COMMAND = typer.main.get_command(__import__("resnetkit.cli.commands", fromlist=["app"]).app)


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(encoding="utf-8"), re.M | re.S)


def lines_of(path: Path) -> list[str]:
    """Return the commands in a document, without comments."""
    return [
        line.removeprefix("$ ").split("  #")[0].strip()
        for block in blocks(path, "console")
        for line in block.splitlines()
        if line.startswith("$ ")
    ]


def commands() -> list[str]:
    found = [line for path in DOCUMENTS for line in lines_of(path)]
    assert found
    return sorted(set(found))


@pytest.mark.parametrize("line", [line for line in commands() if line.startswith("resnet ")])
def test_commands_parse(line):
    name, *arguments = shlex.split(line)[1:]
    command = COMMAND.commands[name]  # type: ignore[attr-defined]
    while hasattr(command, "commands"):  # a group, such as `resnet study`
        name, *arguments = arguments
        command = command.commands[name]
    command.make_context(name, list(arguments))


def make_targets() -> list[str]:
    return re.findall(r"^([a-z-]+\d?):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)


@pytest.mark.parametrize("line", [line for line in commands() if line.startswith("make ")])
def test_make_targets_exist(line):
    assert line.split()[1] in make_targets()


def test_contributing_names_the_make_targets():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = re.findall(r"^\| `make ([\w-]+)` \|", text, re.M)
    assert sorted(named) == sorted({*make_targets()} - {"lint", "clean"})


def test_links_lead_somewhere():
    for path in DOCUMENTS:
        for link in re.findall(r"\]\((?!https?:|#)([^)]+)\)", path.read_text(encoding="utf-8")):
            assert (path.parent / link.split("#")[0]).exists(), f"{path.name}: {link}"


def test_every_document_is_found_from_the_index():
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^(?:.* <)?([\w./-]+)>?$", index, re.M))
    for path in DOCUMENTS:
        if path.name not in ("index.md", "pull_request_template.md"):
            name = path.relative_to(ROOT).with_suffix("").as_posix()
            shown = name.removeprefix("docs/") if name.startswith("docs/") else f"../{name}"
            assert shown in listed, name


def test_the_reference_has_every_public_name():
    import resnetkit
    from resnetkit import models

    made = {*models.builders.__all__, "darknet53", *models.weights.__all__}  # via directives
    for page, module, left in (("python", resnetkit, set()), ("models", models, made)):
        text = (ROOT / "docs" / "reference" / f"{page}.md").read_text(encoding="utf-8")
        named = re.findall(r"^\.\. auto\w+:: (?:resnetkit\.)?(\w+)$", text, re.M)
        assert sorted(named) == sorted({*module.__all__} - left)


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) < 120


def test_the_architecture_page_lists_every_package():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = re.findall(r"^\| `([a-z]+)/` \|.*\]\(\.\./src/", text, re.M)
    there = [p.parent.name for p in (ROOT / "src" / "resnetkit").glob("*/__init__.py")]
    assert sorted(named) == sorted(there)


def test_the_guide_lists_every_file_of_a_run():
    text = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    table = text.split("## The files of a run")[1].split("\n## ")[0]
    named = {
        name.strip("`/")
        for cell in re.findall(r"^\| (`.*?`) \|", table, re.M)
        for name in cell.split(", ")
    }
    promised = (ROOT / "tests" / "training" / "test_loop.py").read_text(encoding="utf-8")
    left = re.findall(r"def test_a_run_leaves_what.*?names >= \{(.*?)\}", promised, re.S)[0]
    assert named == {*re.findall(r'"([\w.]+)"', left), "state"}


@pytest.mark.parametrize("english", GUIDES, ids=lambda path: path.name)
def test_chinese_documents_follow_the_english_ones(english):
    """Headings, tables, commands, outputs, code, figures and numbers are the same."""
    chinese = english.with_name(f"{english.stem}.zh-CN.md")
    for language in ("text", "python"):
        assert blocks(chinese, language) == blocks(english, language)
    assert lines_of(chinese) == lines_of(english)
    ours, theirs = (path.read_text(encoding="utf-8") for path in (english, chinese))
    for pattern in (r"^(#+) ", r"^!\[.*\]\((.*)\)", r"^\|"):
        assert re.findall(pattern, ours, re.M) == re.findall(pattern, theirs, re.M), pattern
    number = r"(?<![\w.])\d+(?:[.,]\d+)+(?!\w)"
    assert sorted(re.findall(number, ours)) == sorted(re.findall(number, theirs))


@pytest.mark.slow
def test_python_blocks_run(tmp_path, monkeypatch, caplog):
    import resnetkit
    from resnetkit.data.digits import write_digits

    monkeypatch.chdir(tmp_path)
    caplog.set_level(logging.INFO, logger="resnetkit")  # a block silences messages: restore them
    write_digits(Path("demo/digits"))  # like `resnet demo`, but with fewer epochs
    resnetkit.train("demo/digits", recipe="demo", epochs=2, out="demo/run")
    for path in GUIDES:
        for block in blocks(path, "python"):
            exec(block, {})
