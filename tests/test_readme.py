"""What the documents show must work: commands parse, Python blocks run, files exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
COMMAND = typer.main.get_command(__import__("resnetkit.cli.commands", fromlist=["app"]).app)


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(encoding="utf-8"), re.M | re.S)


def commands() -> list[str]:
    found = [
        line.removeprefix("$ ").split("  #")[0].strip()
        for path in DOCUMENTS
        for block in blocks(path, "console")
        for line in block.splitlines()
        if line.startswith("$ ")
    ]
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


@pytest.mark.parametrize("line", [line for line in commands() if line.startswith("make ")])
def test_make_targets_exist(line):
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
    assert line.split()[1] in targets


def test_links_lead_somewhere():
    for path in DOCUMENTS:
        for link in re.findall(r"\]\((?!https?:|#)([^)]+)\)", path.read_text(encoding="utf-8")):
            assert (path.parent / link.split("#")[0]).exists(), f"{path.name}: {link}"


def test_the_map_of_the_house_is_the_house():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    named = re.findall(r"^\| `([a-z]+)/` \|.*\]\(src/", text, re.M)
    there = [p.parent.name for p in (ROOT / "src" / "resnetkit").glob("*/__init__.py")]
    assert sorted(named) == sorted(there)


def test_the_chinese_readme_shows_the_same():
    """The same headings, commands, outputs, code and rooms as the English one."""
    english, chinese = ROOT / "README.md", ROOT / "README.zh-CN.md"
    headings = [
        re.findall(
            r"^#+ ", re.sub(r"^```.*?^```", "", path.read_text("utf-8"), flags=re.M | re.S), re.M
        )
        for path in (english, chinese)
    ]
    assert headings[0] == headings[1]
    for language in ("console", "text", "python"):
        assert blocks(chinese, language) == blocks(english, language)
    rooms = [
        re.findall(r"^\| `([^|]*) \|", path.read_text(encoding="utf-8"), re.M)
        for path in (english, chinese)
    ]
    assert [row.replace("、", ", ") for row in rooms[1]] == rooms[0]


@pytest.mark.slow
def test_python_blocks_run(tmp_path, monkeypatch):
    from resnetkit.data.digits import write_digits

    monkeypatch.chdir(tmp_path)
    write_digits(Path("demo/digits"))
    for block in blocks(ROOT / "README.md", "python"):
        exec(block, {})
