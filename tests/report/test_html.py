from __future__ import annotations

import base64
import html as standard
import io
import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from resnetkit import evaluate
from resnetkit.report import html, thumbnails
from resnetkit.report.record import read_record

COLORS = ("blue", "green", "red")


def text_of(page):
    return standard.unescape(re.sub(r"<[^>]+>", " ", page))


@pytest.fixture(scope="module")
def page(trained):
    return (trained / "report.html").read_text(encoding="utf-8")


def test_a_run_ends_with_a_report(trained, page):
    metrics = json.loads((trained / "metrics.json").read_text())
    text = " ".join(text_of(page).split())
    accuracy = html.format_percent(metrics["accuracy"])
    assert f'<div class="big">{accuracy.removesuffix("%")}<small>%</small></div>' in page
    assert "data · cifar_resnet20" in text
    assert "trained for 6 epochs on 51 images from data" in text
    for heading in ("Training", "Confusions", "Doubtful labels", "Recipe and commands"):
        assert heading in text
    assert f"resnet train data --recipe {trained.name}/recipe.yaml" in text
    assert len(page) < 4e6


def test_paths_are_relative_to_the_working_folder(trained, page, tmp_path, monkeypatch):
    """No report contains an absolute path, wherever it was made."""
    assert str(trained.parent) not in standard.unescape(page)
    monkeypatch.chdir(trained.parent)
    found = evaluate(trained / "model.safetensors", "data", "val")
    html.write_page(tmp_path / "r.html", found, trained / "model.safetensors")
    text = text_of((tmp_path / "r.html").read_text(encoding="utf-8"))
    run = trained.relative_to(trained.parent)
    assert f"resnet train data --recipe {run}/recipe.yaml" in text
    assert f"resnet evaluate {run}/model.safetensors data --split val" in text
    assert str(trained.parent) not in text


def test_the_evaluate_command_names_the_evaluated_data(trained, tmp_path, monkeypatch):
    shutil.copytree(trained.parent / "data", tmp_path / "other photos")
    monkeypatch.chdir(tmp_path)
    found = evaluate(trained / "model.safetensors", "other photos", "all")
    html.write_page(tmp_path / "r.html", found, trained / "model.safetensors")
    text = text_of((tmp_path / "r.html").read_text(encoding="utf-8"))
    assert "model.safetensors 'other photos' --split all" in text
    assert "resnet train data --recipe" in text


def test_the_evaluate_command_names_a_manifest_and_not_the_folder_it_is_in(
    trained, tmp_path, monkeypatch
):
    """The manifest is next to the data of the run, so its images have the same base folder."""
    for name in ("data", "run"):
        shutil.copytree(trained.parent / name, tmp_path / name)
    environment = tmp_path / "run" / "environment.json"
    facts = json.loads(environment.read_text(encoding="utf-8"))
    environment.write_text(json.dumps({**facts, "data": str(tmp_path / "data")}))
    rows = [f"data/{color}/{number:03}.png,{color},test" for color in COLORS for number in range(3)]
    (tmp_path / "test.csv").write_text("\n".join(["path,label,split", *rows]))
    monkeypatch.chdir(tmp_path)
    found = evaluate("run/model.safetensors", "test.csv")
    html.write_page(tmp_path / "r.html", found, "run/model.safetensors")
    text = text_of((tmp_path / "r.html").read_text(encoding="utf-8"))
    assert "resnet evaluate run/model.safetensors test.csv --split test" in text


def test_the_page_loads_nothing(page):
    assert re.findall(r'(?:src|href)="(?!data:|#)[^"]*"', page) == []
    assert re.findall(r"url\(|@import|https?://", page) == []


def test_the_same_run_gives_the_same_bytes(trained, tmp_path):
    found = evaluate(trained / "model.safetensors", trained.parent / "data", "val")
    html.write_page(tmp_path / "r.html", found, trained / "model.safetensors")
    assert (tmp_path / "r.html").read_bytes() == (trained / "report.html").read_bytes()


def test_thumbnails_have_the_stated_size(trained, tmp_path):
    found = evaluate(trained / "model.safetensors", trained.parent / "data", "all")
    html.write_page(tmp_path / "r.html", found, trained / "model.safetensors")
    uris = re.findall(r"data:image/jpeg;base64,([^\"]+)", (tmp_path / "r.html").read_text())
    assert len(uris) >= 24
    for uri in uris[:4]:
        with Image.open(io.BytesIO(base64.b64decode(uri))) as image:
            assert image.size == (thumbnails.SIDE, thumbnails.SIDE)


def test_names_are_escaped_and_can_be_in_any_script(trained, tmp_path, save):
    """Try class names with markup, scripts, templates, Chinese, Arabic, emoji, and a long one."""
    from resnetkit import train

    names = ["<img src=x onerror=alert(1)>", "花 زهرة 🌷", "{{ 7 * 7 }}</script>" + "x" * 90]
    data = save(tmp_path / "data", 8)
    for folder, name in zip(sorted(data.iterdir()), names, strict=True):
        folder.rename(data / name.replace("/", "∕"))
    settings = {"model": "cifar_resnet20", "model_options": {"width": 8}, "image_size": 32}
    run = train(data, out=tmp_path / "run", epochs=1, batch_size=8, **settings)
    page = (run.folder / "report.html").read_text(encoding="utf-8")
    assert "<img src=x" not in page
    assert "&lt;img src=x onerror=alert(1)&gt;" in page
    assert "花 زهرة 🌷" in page
    assert "{{ 7 * 7 }}" in standard.unescape(page)
    assert page.count("<script") == page.count("</script>")


def test_a_missing_image_is_reported(trained, tmp_path):
    data = shutil.copytree(trained.parent / "data", tmp_path / "data")
    found = evaluate(trained / "model.safetensors", data, "val")
    shutil.rmtree(data)
    html.write_page(tmp_path / "r.html", found, trained / "model.safetensors")
    assert "the image is no longer available" in (tmp_path / "r.html").read_text()


def test_a_model_file_alone_has_no_curves(trained, tmp_path):
    copy = shutil.copy(trained / "model.safetensors", tmp_path / "m.safetensors")
    found = evaluate(copy, trained.parent / "data", "val", calibrate=True, flip=True)
    html.write_page(tmp_path / "r.html", found, copy)
    text = " ".join(text_of((tmp_path / "r.html").read_text()).split())
    assert "The model of epoch" not in text
    assert "--split val --flip" in text
    assert "a temperature fitted on 9 images of the val split" in text
    assert not read_record(copy).is_run


def test_shares_and_values_are_formatted():
    assert html.format_percent(0.5) == "50.0%"
    assert html.format_percent(0.0) == "0%"
    assert html.format_value({"a": [1, 2.50], "b": None}) == "a 1, 2.5, b none"
    assert html.format_value(False) == "no"


def test_heat_maps_are_laid_over_images():
    image = np.full((8, 8, 3), 100, np.uint8)
    heat = np.zeros((8, 8))
    heat[2, 3] = 1
    found = thumbnails.overlay(image, heat)
    assert (abs(found[0, 0].astype(int) - 100) <= 1).all()
    assert (found[2, 3].astype(int) - 100)[0] > 20  # the hottest pixel is red
