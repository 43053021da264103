from __future__ import annotations

import csv
import json
import shutil

import pytest

from .command import resnet


def rows(done):
    return [json.loads(line) for line in done.stdout.splitlines()]


def found(done):
    return [[n["path"].split("data/")[-1] for n in row["neighbors"]] for row in rows(done)]


def test_a_folder_of_photos_and_a_page(model, images, tmp_path):
    query = images / "red" / "004.png"
    done = resnet("similar", model, images, query, "--page", tmp_path / "page.html", "--top-k", 3)
    assert done.returncode == 0, done.stderr
    (row,) = rows(done)
    assert row["source"] == str(query)
    assert [n["label"] for n in row["neighbors"]] == ["red"] * 3
    assert str(query) not in [n["path"] for n in row["neighbors"]]
    assert b"page.html" in done.stderr
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.count("<img src=") == 4
    again = resnet("similar", model, images, query, "--page", tmp_path / "page.html")
    assert again.returncode == 1
    assert b"page.html exists" in again.stderr


@pytest.mark.slow
def test_photos_may_be_a_glob_a_list_a_manifest_or_embeddings(model, images, tmp_path):
    files = sorted(images.rglob("*.png"))
    query = images / "blue" / "003.png"
    expected = resnet("similar", model, images, query)
    assert len(found(expected)[0]) == 5
    (tmp_path / "list.txt").write_text("\n".join(map(str, files)))
    made = resnet("predict", model, images, "--embeddings", tmp_path / "photos.npz")
    assert made.returncode == 0
    for photos in (images / "*" / "*.png", f"@{tmp_path / 'list.txt'}", tmp_path / "photos.npz"):
        done = resnet("similar", model, photos, query)
        assert done.returncode == 0, done.stderr
        assert found(done) == found(expected), photos
    done = resnet("similar", model, "@-", query, input=(tmp_path / "list.txt").read_bytes())
    assert found(done) == found(expected)
    done = resnet("similar", model, images, "-", input=query.read_bytes())
    assert found(done)[0][0] == "blue/003.png"
    assert rows(done)[0]["neighbors"][0]["copy"]

    lines = ["path,label", *(f"{path},x{path.parent.name}" for path in files)]
    (tmp_path / "photos.csv").write_text("\n".join(lines))
    done = resnet("similar", model, tmp_path / "photos.csv", query)
    assert found(done) == found(expected)
    assert rows(done)[0]["neighbors"][0]["label"] == "xblue"


def test_unreadable_images_are_named_and_counted(model, images, tmp_path):
    shutil.copytree(images / "red", tmp_path / "photos" / "red")
    (tmp_path / "photos" / "red" / "broken.png").write_bytes(b"no picture")
    query = images / "blue" / "000.png"
    done = resnet("similar", model, "photos", query, "gone.png", "--format", "csv", cwd=tmp_path)
    assert done.returncode == 3
    assert b"photos/red/broken.png: holds text" in done.stderr
    assert b"1 photo of 21 cannot be read" in done.stderr
    table = list(csv.DictReader(done.stdout.decode().splitlines()))
    assert [row["rank"] for row in table] == ["1", "2", "3", "4", "5", ""]
    assert "gone.png" in table[5]["error"]
    done = resnet("similar", model, "photos", query, "--format", "table", cwd=tmp_path)
    assert done.returncode == 3
    assert done.stdout.decode().splitlines()[1].startswith("   1   0.")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("photos", "a.jpg"), 2, "resnet similar model.safetensors photos a.jpg"),
        (
            ("m.safetensors",),
            2,
            "No photos to search were given. Type:\n  resnet similar m.",
        ),
        (("m.safetensors", "photos"), 2, "resnet similar m.safetensors photos QUERY..."),
        (("m.safetensors", "photos", "a.jpg"), 1, "m.safetensors does not exist"),
        (("MODEL", "a.jpg", "b.jpg"), 2, "got the single image a.jpg. Expected a folder, '*.jpg'"),
        (("MODEL", "-", "b.jpg"), 2, "got the single image -"),
        (("MODEL", "@-", "@-"), 2, "Standard input cannot be both PHOTOS and a QUERY"),
        (("MODEL", "photos", "a.jpg"), 1, "No photo could be read: photos: no images in this"),
        (("MODEL", "gone", "a.jpg"), 1, "No photo could be read: gone: No such file"),
        (("MODEL", "gone.npz", "a.jpg"), 1, "gone.npz cannot be read"),
    ],
)
def test_errors(model, tmp_path, arguments, code, message):
    (tmp_path / "photos").mkdir()
    arguments = [str(model) if argument == "MODEL" else argument for argument in arguments]
    done = resnet("similar", *arguments, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert message in done.stderr.decode()
    assert b"Traceback" not in done.stderr
