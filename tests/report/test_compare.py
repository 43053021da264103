from __future__ import annotations

import csv
import html
import json
import re
import shutil
from pathlib import Path

import pytest
from scipy import stats

from resnetkit import evaluate, train
from resnetkit.errors import ModelFileError, OutputError, RecipeError
from resnetkit.report import compare
from resnetkit.report.html import curve_panels, format_percent
from resnetkit.report.record import read_record
from resnetkit.report.sources import write_report


@pytest.mark.parametrize(
    ("first", "second"),
    [(0, 0), (3, 3), (1, 9), (40, 61), (0, 5), (0, 2000), (24_800, 25_200), (100_000, 101_000)],
)
def test_mcnemar_equals_the_binomial_test(first, second):
    theirs = stats.binomtest(first, first + second).pvalue if first + second else 1
    assert compare.Duel("a", "b", first, second).p_value == pytest.approx(theirs, rel=1e-6)


@pytest.fixture(scope="module")
def other(trained, tmp_path_factory):
    """A second run on the same data, for one epoch."""
    settings = {"model": "cifar_resnet20", "model_options": {"width": 8}, "image_size": 32}
    out = tmp_path_factory.mktemp("other") / "short"
    return train(
        trained.parent / "data", out=out, epochs=1, lr=1e-6, batch_size=8, **settings
    ).folder


def test_two_runs_are_compared(trained, other, tmp_path):
    file, notes = write_report([trained, other], out=tmp_path / "c.html")
    page = file.read_text(encoding="utf-8")
    assert notes == ()
    assert page.count("<polyline") == 4
    text = " ".join(re.sub(r"<[^>]+>", " ", page).split())
    found = [
        evaluate(run / "model.safetensors", trained.parent / "data", "val")
        for run in (trained, other)
    ]
    correct = [item.logits.argmax(1) == item.labels for item in found]
    only_first = int((correct[0] & ~correct[1]).sum())
    only_second = int((correct[1] & ~correct[0]).sum())
    plural = "image" if only_first == 1 else "images"
    assert f"Only run is correct on {only_first} {plural}, only short on {only_second}." in text
    differ = int((found[0].logits.argmax(1) != found[1].logits.argmax(1)).sum())
    assert differ > 0
    assert f"give different answers for {differ} image" in text
    assert page.count("data:image/jpeg") == differ
    assert "epochs 6 1" in text
    with pytest.raises(OutputError, match="exists"):
        write_report([trained, other], out=file)


@pytest.fixture(scope="module")
def corrected(trained, tmp_path_factory):
    """A run whose only correction changes the label of an image it validates on."""
    base = tmp_path_factory.mktemp("corrected")
    with (trained / "split.csv").open(encoding="utf-8") as lines:
        path = next(row["path"] for row in csv.DictReader(lines) if row["split"] == "val")
    new = "red" if path.startswith("blue") else "blue"
    (base / "judged.csv").write_text(f"path,verdict,new_label\n{path},relabel,{new}\n")
    settings = {"model": "cifar_resnet20", "model_options": {"width": 8}, "image_size": 32}
    return train(
        trained.parent / "data",
        out=base / "fixed",
        epochs=6,
        batch_size=8,
        corrections=base / "judged.csv",
        **settings,
    ).folder


def test_a_corrected_run_is_reported_with_its_corrections(corrected, trained, tmp_path):
    """The report and comparisons measure on the corrected labels, as the end of the run does."""
    before = (corrected / "report.html").read_text(encoding="utf-8")
    expected = json.loads((corrected / "metrics.json").read_text(encoding="utf-8"))["accuracy"]
    plain = evaluate(corrected / "model.safetensors", trained.parent / "data", "val")
    assert plain.metrics["accuracy"] != expected

    file, _ = write_report([corrected])
    page = file.read_text(encoding="utf-8")
    headline = re.compile(r'<div class="big">([^<]+)')
    assert headline.findall(page) == headline.findall(before)
    assert headline.findall(page) == [format_percent(expected).removesuffix("%")]
    for report in (before, page):
        commands = html.unescape(report)
        assert "resnet evaluate fixed/model.safetensors fixed/split.csv --split val" in commands
        assert "--recipe fixed/recipe.yaml --corrections fixed/corrections.csv" in commands
        assert str(corrected.parent) not in commands
        assert str(trained.parent) not in commands

    compared, _ = write_report([corrected, trained], out=tmp_path / "c.html")
    cells = re.search(r"<td>accuracy</td><td[^>]*>([^<]*)", compared.read_text(encoding="utf-8"))
    assert html.unescape(cells[1]) == format_percent(expected, 2)


def test_the_last_model_is_reported_as_itself(other, trained, tmp_path):
    run = shutil.copytree(trained, tmp_path / "run")
    lines = (run / "history.csv").read_text(encoding="utf-8").splitlines()
    kept = lines[0].split(",").index("kept")
    rows = [line.split(",") for line in lines[1:]]
    for row in rows:  # as if epoch 2 had been kept
        row[kept] = str(int(row[0] == "2"))
    text = "\n".join([lines[0], *map(",".join, rows), ""])
    (run / "history.csv").write_text(text, encoding="utf-8")
    before = (run / "report.html").read_bytes()

    file, _ = write_report([run / "last.safetensors"])
    assert file == run / "report-last.html"
    assert (run / "report.html").read_bytes() == before
    page = file.read_text(encoding="utf-8")
    assert "This is the model of epoch 6, with" in page
    assert "also used to select the epoch" not in page
    assert read_record(run / "last.safetensors").metrics is None
    assert read_record(run).metrics is not None
    assert "The model of epoch 2 was kept" in write_report([run])[0].read_text(encoding="utf-8")

    file, _ = write_report([run / "last.safetensors", other], out=tmp_path / "c.html")
    page = file.read_text(encoding="utf-8")
    assert "<bdi>last.safetensors and short</bdi>" in page
    assert re.search(r"<td>epoch of the model</td><td[^>]*>6</td><td[^>]*>1</td>", page)


def test_every_compared_run_has_its_own_line(trained):
    """Each run has a style that the page defines, and no two runs share one."""
    names = [str(number) for number in range(12)]
    (panel, _) = curve_panels([read_record(trained)] * 12, names)
    styles = [line.style for line in panel["series"]]
    assert len(set(styles)) == 12
    css = (Path(compare.__file__).parent / "templates" / "page.css").read_text(encoding="utf-8")
    for style in set(" ".join(styles).split()):
        assert f"svg .{style} " in css
        assert f".legend .{style} i" in css


def test_without_the_data_the_recorded_metrics_are_compared(trained, other, tmp_path):
    copies = [shutil.copytree(run, tmp_path / run.name) for run in (trained, other)]
    for copy in copies:
        environment = json.loads((copy / "environment.json").read_text())
        (copy / "environment.json").write_text(json.dumps({**environment, "data": "/gone"}))
    file, notes = write_report(copies, out=tmp_path / "c.html")
    assert "/gone does not exist" in notes[0]
    assert "polyline" in file.read_text()
    with pytest.raises(Exception, match="gone"):
        write_report([copies[0]])


def test_sources_are_resolved_or_refused(trained, tmp_path, save):
    model, data = trained / "model.safetensors", trained.parent / "data"
    alone = shutil.copy(model, tmp_path / "m.safetensors")
    file, _ = write_report([alone, data], out=tmp_path / "new" / "r.html")
    assert file.is_file()
    with pytest.raises(RecipeError, match=r"Name it: resnet report .*m\.safetensors DATA"):
        write_report([alone])
    with pytest.raises(ModelFileError, match=r"it has no model.* Pass a run folder or a model"):
        write_report([data])
    with pytest.raises(ModelFileError, match=r"Pass a run folder, such as .*run, or a model file"):
        write_report([trained.parent])
    with pytest.raises(ModelFileError, match="does not exist"):
        write_report([tmp_path / "gone", data])
    with pytest.raises(RecipeError, match="its data is unknown"):
        write_report([alone, alone], out=tmp_path / "x.html")
    assert read_record(model).name == trained.name
    before = (trained / "report.html").read_bytes()
    file, _ = write_report([trained])
    assert file == trained / "report.html"
    assert file.read_bytes() == before
