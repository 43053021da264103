from __future__ import annotations

import hashlib
import os
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from resnetkit.data import check, folder
from resnetkit.data.check import check_dataset
from resnetkit.errors import DataError


def tree_digest(root: Path) -> str:
    """Return a hash of the names, modes, modification times and contents under ``root``."""
    total = hashlib.sha256()
    for path in sorted(root.rglob("*")):
        state = path.lstat()
        total.update(f"{path} {state.st_mode} {state.st_mtime_ns} {state.st_size}".encode())
        if path.is_file():
            total.update(path.read_bytes())
    return total.hexdigest()


def noise(*seed: int, size: tuple[int, int] = (64, 48)) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture
def healthy(tmp_path):
    root = tmp_path / "data"
    for s, (split, count) in enumerate({"train": 20, "val": 4}.items()):
        for c, name in enumerate(("cat", "dog")):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                noise(s, c, number).save(root / split / name / f"{number}.png")
    return root


def by_kind(result):
    return {issue.kind: issue for issue in result.issues}


def test_a_healthy_dataset_has_no_issues(healthy):
    before = tree_digest(healthy)
    calls = []
    found = check_dataset(healthy, 2, lambda count: lambda text: calls.append(count))
    assert found.issues == ()
    assert not found.has_errors
    assert found.counts == {"train": {"cat": 20, "dog": 20}, "val": {"cat": 4, "dog": 4}}
    assert calls == [48] * 48
    assert tree_digest(healthy) == before


def test_no_training_images(healthy):
    shutil.rmtree(healthy / "train")
    found = check_dataset(healthy, 2)
    assert by_kind(found)["no-training-images"].text == "there are no training images, only val"
    assert found.has_errors


def test_the_same_image_in_two_splits_or_two_classes(healthy):
    shutil.copy(healthy / "train/cat/3.png", healthy / "val/cat/again.png")
    shutil.copy(healthy / "train/cat/4.png", healthy / "train/dog/cat.png")
    shutil.copy(healthy / "train/cat/5.png", healthy / "train/cat/copy.png")
    noise(0, 0, 6).save(healthy / "val/cat/saved.webp", quality=60)
    noise(0, 0, 7).save(healthy / "train/dog/saved.jpg", quality=60)
    noise(0, 0, 8).save(healthy / "train/cat/saved.jpg", quality=60)
    before = tree_digest(healthy)
    found = check_dataset(healthy, 2)
    assert [(f.kind, f.level, [sorted(group) for group in f.groups]) for f in found.issues] == [
        ("copy-in-two-classes", "error", [["train/cat/4.png", "train/dog/cat.png"]]),
        ("copy-in-two-splits", "error", [["train/cat/3.png", "val/cat/again.png"]]),
        ("copy", "warning", [["train/cat/5.png", "train/cat/copy.png"]]),
        ("near-copy-in-two-classes", "warning", [["train/cat/7.png", "train/dog/saved.jpg"]]),
        ("near-copy-in-two-splits", "warning", [["train/cat/6.png", "val/cat/saved.webp"]]),
        ("near-copy", "warning", [["train/cat/8.png", "train/cat/saved.jpg"]]),
    ]
    assert found.has_errors
    assert tree_digest(healthy) == before


def test_unreadable_images_are_named(healthy):
    whole = (healthy / "train/cat/0.png").read_bytes()
    (healthy / "train/cat/0.png").write_bytes(whole[: len(whole) // 2])
    (healthy / "train/dog/1.png").write_text("Dear diary")
    (healthy / "train/dog/gone.jpg").symlink_to("nowhere")
    issue = by_kind(check_dataset(healthy, 2))["unreadable"]
    assert issue.level == "error"
    messages = {group[0]: detail for group, detail in zip(issue.groups, issue.details, strict=True)}
    assert "truncated" in messages["train/cat/0.png"]
    assert "holds text" in messages["train/dog/1.png"]
    assert messages["train/dog/gone.jpg"] == "No such file or directory"


def test_classes_are_counted(healthy):
    (healthy / "train/empty").mkdir()
    (healthy / "train/few").mkdir()
    noise(9, 9).save(healthy / "train/few/1.png")
    noise(9, 8).save(healthy / "train/few/2.png")
    (healthy / "val/dig").mkdir()
    noise(9, 7).save(healthy / "val/dig/1.png")
    for number in range(4):
        (healthy / f"val/dog/{number}.png").unlink()
    found = by_kind(check_dataset(healthy, 2))
    assert {kind: (f.level, f.text.partition(": ")[2]) for kind, f in found.items()} == {
        "empty-class": ("error", "empty (0)"),
        "unknown-class": ("error", "dig"),
        "absent-class": ("warning", "dog (20), empty (0), few (2)"),
        "few-pictures": ("warning", "few (2)"),
    }
    noise(9, 6).save(healthy / "val/dog/1.png")
    for number in range(2, 20):
        noise(9, 5, number).save(healthy / f"train/cat/more{number}.png")
        (healthy / f"train/dog/{number}.png").unlink()
    assert "cat (38), dog (2)" in by_kind(check_dataset(healthy, 2))["unbalanced"].text


def test_a_flat_folder_with_a_class_of_one_image_or_one_class(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        noise(len(name), ord(name[0])).save(tmp_path / name / "1.png")
    assert by_kind(check_dataset(tmp_path, 0))["single-picture"].text.endswith("cat (1), dog (1)")
    shutil.rmtree(tmp_path / "dog")
    assert by_kind(check_dataset(tmp_path, 0))["one-class"].level == "error"


def test_odd_images(healthy):
    cat = healthy / "train/cat"
    noise(101, size=(20, 40)).save(cat / "tiny.png")
    noise(102, size=(400, 60)).save(cat / "long.png")
    noise(103).convert("CMYK").save(cat / "cmyk.jpg")
    noise(104).quantize(16).save(cat / "palette.png")
    noise(105).convert("RGBA").save(cat / "alpha.png")
    Image.fromarray(np.arange(4096, dtype=np.uint16).reshape(64, 64) * 16).save(cat / "deep.png")
    noise(106).save(cat / "moving.gif", save_all=True, append_images=[noise(107)])
    noise(108).save(cat / "named.png", "JPEG")
    Image.new("RGB", (50, 50), "white").save(cat / "white.png")
    Image.new("RGB", (50, 50), "white").save(cat / "white.bmp")
    exif = Image.Exif()
    exif[0x0112] = 6
    noise(110).save(cat / "turned.jpg", exif=exif)
    found = {
        kind: sorted(group[0] for group in f.groups)
        for kind, f in by_kind(check_dataset(healthy)).items()
    }
    names = {kind: [os.path.basename(path) for path in paths] for kind, paths in found.items()}
    assert names == {
        "misnamed": ["named.png"],
        "tiny": ["tiny.png"],
        "long": ["long.png"],
        "blank": ["white.bmp", "white.png"],  # and not near copies of each other
        "animated": ["moving.gif"],
        "turned": ["turned.jpg"],
        "transparent": ["alpha.png"],
        "palette": ["moving.gif", "palette.png"],
        "cmyk": ["cmyk.jpg"],
        "deep": ["deep.png"],
    }


def test_a_manifest_that_names_an_image_twice(tmp_path, healthy):
    table = healthy / "m.csv"
    table.write_text("path,label\ntrain/cat/0.png,cat\ntrain/cat/0.png,dog\ntrain/cat/1.png,dog\n")
    found = by_kind(check_dataset(table, 1))
    assert found["copy-in-two-classes"].groups == [["train/cat/0.png", "train/cat/0.png"]]


def test_missing_data_is_an_error(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        check_dataset(tmp_path / "gone")
    with pytest.raises(DataError, match="No images"):
        check_dataset(tmp_path)


def test_training_images_come_first(healthy):
    shutil.copytree(healthy / "val", healthy / "test")
    assert list(check_dataset(healthy).counts) == ["train", "val", "test"]
    (group,) = [
        f.groups[0] for f in check_dataset(healthy).issues if f.kind == "copy-in-two-splits"
    ]
    assert group[0].startswith("val/")
    assert group[1].startswith("test/")


def test_at_most_ten_classes_are_named(tmp_path):
    for number in range(13):
        (tmp_path / f"class{number:02d}").mkdir()
        for copy in range(6):
            noise(number, copy).save(tmp_path / f"class{number:02d}" / f"{copy}.png")
    found = by_kind(check_dataset(tmp_path))
    assert found["few-pictures"].text.endswith("class09 (6), and 3 more")


def test_an_ambiguous_layout_is_one_issue_among_others(tmp_path):
    for c, name in enumerate(("bus", "car", "train")):
        (tmp_path / name).mkdir()
        for number in range(4):
            noise(c, number).save(tmp_path / name / f"{number}.png")
    shutil.copy(tmp_path / "bus/0.png", tmp_path / "train/copy.png")
    (tmp_path / "car/1.png").write_text("not an image")
    (tmp_path / "notes.txt").write_text("")
    noise(9).save(tmp_path / "loose.png")
    with pytest.raises(DataError, match="a split or a class"):
        folder.read_dataset(tmp_path)
    found = check_dataset(tmp_path, 1)
    assert found.has_errors
    assert found.counts == {"undecided": {".": 1, "bus": 4, "car": 4, "train": 5}}
    issues = [(f.kind, f.level, [list(group) for group in f.groups]) for f in found.issues]
    assert issues == [
        ("layout", "error", []),
        ("unreadable", "error", [["car/1.png"]]),
        ("copy", "warning", [["bus/0.png", "train/copy.png"]]),
        ("left-out", "note", []),
    ]
    assert "is 'train' (next to 'bus', 'car') a split or a class?" in by_kind(found)["layout"].text
    assert by_kind(found)["copy"].text == "exactly the same image more than once"


def test_the_value_range_of_16_bit_colors_is_shown(healthy, tmp_path, deep_png):
    assert check_dataset(healthy, 1).to_dict()["value_range"] is None
    rng = np.random.default_rng(1)
    for name in ("cat/1", "cat/2", "dog/1", "dog/2"):
        path = tmp_path / f"deep/{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(deep_png(rng.integers(0, 4096, (48, 48, 3))))
    found = check_dataset(tmp_path / "deep", 2)
    assert found.to_dict()["value_range"] == (0, 4095)
    issue = by_kind(found)["deep"]
    assert (issue.level, len(issue.groups)) == ("note", 4)
    assert "in training, 0 becomes black and 4,095 becomes white" in issue.text
    noise(3).save(tmp_path / "deep/cat/usual.png")
    found = check_dataset(tmp_path / "deep", 2)
    assert found.to_dict()["value_range"] is None
    assert by_kind(found)["deep"].level == "error"


def test_searching_for_near_duplicates_does_not_copy_the_thumbnails():
    count = 40_000
    rng = np.random.default_rng(0)
    contents = check._Contents(
        rows=[check.Row("all", "a", "a/0.jpg")] * count,
        hashes=rng.integers(0, 2**64, count, dtype=np.uint64),
        thumbs=np.zeros((count, 16, 16, 3), np.uint8),
        flat=np.zeros(count, bool),
        digests=[f"{i:016x}" for i in range(count)],
    )
    tracemalloc.start()
    try:
        assert list(check._image_issues(contents)) == []
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < contents.thumbs.nbytes
