"""docs/resnet.md: its code is in the source, and its numbers are computed or recorded."""

from __future__ import annotations

import json
import re
import shlex
import textwrap
from pathlib import Path

import pytest
import torchvision
import typer

from resnetkit.cli.commands import app
from resnetkit.models import ResNet50_Weights, summarize
from resnetkit.models.skeleton import get_skeleton
from resnetkit.study import published, tables

ROOT = Path(__file__).parents[1]
WALKS = [ROOT / "docs" / "resnet.md", ROOT / "docs" / "resnet.zh-CN.md"]
SOURCES = [path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py")]
COMMAND = typer.main.get_command(app)
FIGURES = ROOT / "docs" / "figures"


def excerpts(text: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)


@pytest.mark.parametrize("path", WALKS, ids=lambda path: path.name)
def test_every_excerpt_is_in_the_source(path):
    found = excerpts(path.read_text(encoding="utf-8"))
    assert len(found) >= 12
    for excerpt in found:
        assert any(excerpt in source for source in SOURCES), textwrap.shorten(excerpt, 200)


def gmacs(name: str, size: int = 224, **options: object) -> str:
    return f"{summarize(get_skeleton(name, **options), size).macs / 1e9:.3f}"


def parameters(name: str, **options: object) -> str:
    return f"{summarize(get_skeleton(name, **options), 64).parameters:,}"


def computed() -> dict[str, str]:
    """Return every computed number in the walk, formatted as in the text."""
    blocks = {row.what: row.derived for row in tables.blocks().rows}
    numbers = {
        what: f"{value:,}" if isinstance(value, int) else f"{value:,.1f} M"
        for what, value in blocks.items()
    }
    for option in ("A", "B", "C"):
        numbers[f"{option} parameters"] = parameters("resnet34", shortcut=option)
        numbers[f"{option} macs"] = gmacs("resnet34", shortcut=option)
    for name in ("resnet50", "resnext50_32x4d", "wide_resnet50_2"):
        numbers[f"{name} parameters"] = parameters(name)
        numbers[f"{name} macs"] = gmacs(name)
    numbers["darknet53 parameters"] = parameters("darknet53")
    numbers["darknet53 macs"] = gmacs("darknet53", 256)
    v1, v15 = (summarize(get_skeleton("resnet50", stride_on=on)).macs for on in ("1x1", "3x3"))
    numbers["resnet50 V1"] = f"{v1 / 1e9:.3f}"
    numbers["V1.5 over V1"] = f"{100 * (v15 / v1 - 1):.1f}%"
    numbers["resnet152 V1"] = gmacs("resnet152", stride_on="1x1")
    figure = {row.what: row.derived for row in tables.figure3().rows}
    numbers["VGG-16"] = f"{figure['VGG-16']:.3f}"
    wide, basic = (
        blocks[f"{name}: millions of multiply-adds"]
        for name in ("BasicBlock, 256 channels", "Bottleneck, 256 channels, 64 inside")
    )
    numbers["bottleneck at equal width"] = "17 " if round(wide / basic) == 17 else "another number"
    numbers["head"] = parameters_of_the_head()
    numbers["resnet50"] = str(summarize(get_skeleton("resnet50")))
    return numbers


def parameters_of_the_head() -> str:
    head = summarize(get_skeleton("resnet50")).stages[-1]
    return f"{head.parameters:,}"


@pytest.mark.parametrize("path", WALKS, ids=lambda path: path.name)
def test_computed_numbers_are_those_of_built_networks(path):
    text = path.read_text(encoding="utf-8")
    missing = {what: number for what, number in computed().items() if number not in text}
    assert not missing


@pytest.mark.parametrize("path", WALKS, ids=lambda path: path.name)
def test_published_numbers_are_those_of_the_paper(path):
    text = path.read_text(encoding="utf-8")
    for net, (top1, _) in published.TABLE3_ERRORS.items():
        assert top1 in text, net
    for depth in (110, 1202):
        assert published.TABLE6_ERRORS[depth] in text
    first, second = (
        member.meta["_metrics"]["ImageNet-1K"]["acc@1"]
        for member in (ResNet50_Weights.IMAGENET1K_V1, ResNet50_Weights.IMAGENET1K_V2)
    )
    assert f"{first}%" in text
    assert f"{second}%" in text
    assert f"{second - first:.1f} " in text
    assert ResNet50_Weights.IMAGENET1K_V2.transforms().resize_size == [232]
    vgg = torchvision.models.VGG19_Weights.IMAGENET1K_V1.meta["num_params"]
    linear = sum(a * b + b for a, b in ((512 * 7 * 7, 4096), (4096, 4096), (4096, 1000)))
    assert f"{vgg:,}" in text
    assert f"{linear:,}" in text


@pytest.mark.parametrize("path", WALKS, ids=lambda path: path.name)
def test_make_layer_step_by_step(path):
    rows = re.findall(
        r"^\| `layer2\.(\d)` \| (\d+) \| (\d+) \| (\d) \| (.*?) \| (.*?) \|$",
        path.read_text(encoding="utf-8"),
        re.M,
    )
    network = get_skeleton("resnet50")
    shapes = {row.name: row.output for row in summarize(network).rows}
    assert len(rows) == len(network.layer2)
    for number, inplanes, planes, stride, downsample, output in rows:
        block = network.layer2[int(number)]
        assert int(inplanes) == block.conv1.in_channels
        assert int(planes) == block.conv2.out_channels
        assert int(stride) == block.stride
        assert (block.downsample is not None) == ("1x1" in downsample)
        last = shapes[f"layer2.{number}.bn3"]
        assert output == " x ".join(map(str, last[1:]))


@pytest.mark.parametrize("path", WALKS, ids=lambda path: path.name)
def test_measured_numbers_are_those_of_the_recorded_runs(path):
    """The text quotes the results in docs/figures, which `resnet study` wrote."""
    text = path.read_text(encoding="utf-8")
    runs = json.loads((FIGURES / "degradation.json").read_text(encoding="utf-8"))["outcomes"]
    for net in dict.fromkeys(one["net"] for one in runs):
        row = re.search(rf"^\| {net} \|(.*)\|$", text, re.M)
        assert row, net
        for which in ("train_errors", "val_errors"):
            last = [100 * one[which][-1] for one in runs if one["net"] == net]
            mean = sum(last) / len(last)
            assert (
                f"{mean:.1f}% ({min(last):.1f} to {max(last):.1f})".replace(
                    " to ", " to " if path is WALKS[0] else " 到 "
                )
                in row[1]
            )
    measured = json.loads((FIGURES / "gradients.json").read_text(encoding="utf-8"))
    for signal in (*measured["stacks"], *measured["nets"]):
        row = re.search(rf"^\| {re.escape(signal['net'])} \|(.*)\|$", text, re.M)
        assert row, signal["net"]
        first, last = signal["before"][0], signal["before"][-2]
        back = "backward" if signal in measured["stacks"] else "gradient"
        shown = [first["activation"], last["activation"], first[back], last[back]]
        shown += [signal["losses"][0], signal["losses"][-1]]
        cells = [cell.strip() for cell in row[1].split("|")]
        assert cells == [written(value) for value in shown], signal["net"]


def written(value: float | str) -> str:
    return "NaN" if isinstance(value, str) else f"{value:.2g}"


def test_both_walks_have_the_same_code_and_figures():
    english, chinese = (path.read_text(encoding="utf-8") for path in WALKS)
    assert excerpts(english) == excerpts(chinese)
    for pattern in (r"\]\((figures/[^)]+)\)", r"^\$ (.*)$", r"arxiv\.org/abs/[\d.]+"):
        assert re.findall(pattern, english, re.M) == re.findall(pattern, chinese, re.M)


def sections(text: str) -> list[str]:
    return re.split(r"^## ", text, flags=re.M)


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)


def test_both_walks_have_the_same_sections_numbers_and_tables():
    """Compare section by section; the number of sentences may differ."""
    texts = [without_code(path.read_text(encoding="utf-8")) for path in WALKS]
    assert re.findall(r"^#+ ", texts[0], re.M) == re.findall(r"^#+ ", texts[1], re.M)
    english, chinese = map(sections, texts)
    for ours, theirs in zip(english, chinese, strict=True):
        title, number = ours.splitlines()[0], r"\d+(?:[.,]\d+)+(?:e-?\d+)?"
        assert set(re.findall(number, ours)) == set(re.findall(number, theirs)), title
        assert len(re.findall(r"^\|", ours, re.M)) == len(re.findall(r"^\|", theirs, re.M)), title


@pytest.mark.parametrize("path", WALKS, ids=lambda path: path.name)
def test_every_figure_says_how_it_was_made(path):
    text = path.read_text(encoding="utf-8")
    captions = re.findall(r"^!\[[^]]+\]\(figures/[^)]+\)\n\n\*(.*?)\*\n\n", text, re.M | re.S)
    assert len(captions) == text.count("](figures/") == len(list(FIGURES.glob("*.svg")))
    for caption in captions:
        assert "`resnet study " in caption
        # The caption names the hardware (cores, a GPU or other), the versions and the date.
        assert re.search(r"\bcores?\b|\bGPU\b|\bhardware\b|核|硬件", caption), caption
        assert re.search(r"\btorch \d+\.\d+", caption), caption
        assert re.search(r"\d{4}-\d\d-\d\d", caption), caption


@pytest.mark.parametrize("path", WALKS, ids=lambda path: path.name)
def test_every_claim_has_a_source_a_verdict_and_a_command(path):
    last = sections(path.read_text(encoding="utf-8"))[-1]
    rows = re.findall(r"^\| (.*) \|$", last, re.M)[1:]
    assert len(rows) >= 14
    claims = (ROOT / "tests" / "test_claims.py").read_text(encoding="utf-8")
    for row in rows:
        cells = row.split(" | ")
        assert len(cells) == 4, row
        assert all(cells), row
        name, *arguments = shlex.split(cells[3].strip("`"))
        if name == "pytest":
            assert arguments[:2] == ["tests/test_claims.py", "-k"]
            assert re.search(rf"^def test_\w*{arguments[2]}", claims, re.M)
            continue
        command = COMMAND
        while hasattr(command, "commands"):
            name, *arguments = arguments
            command = command.commands[name]
        command.make_context(name, list(arguments))


def test_figures_are_small():
    sizes = [path.stat().st_size for path in FIGURES.iterdir()]
    assert sum(sizes) < 2_000_000
    assert max(p.stat().st_size for p in FIGURES.glob("*.svg")) < 200_000
