from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from resnetkit.data import folder
from resnetkit.errors import DataError


def touch(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"x")
    return root


def test_flat_folder(tmp_path):
    data = folder.read_dataset(touch(tmp_path / "d", "b/2.png", "b/1.JPG", "a/deep/er/3.webp"))
    assert data.classes == ("a", "b")
    assert data.name == "d"
    assert list(data.splits) == ["all"]
    split = data.splits["all"]
    assert list(split.paths) == ["a/deep/er/3.webp", "b/1.JPG", "b/2.png"]
    assert split.labels.tolist() == [0, 1, 1]
    assert split.path(1) == tmp_path / "d" / "b" / "1.JPG"


@pytest.mark.parametrize("name", ["val", "valid", "validation", "Validation"])
def test_split_folders(tmp_path, name):
    root = touch(tmp_path, "train/a/1.png", "train/b/1.png", f"{name}/b/2.png", "test/a/3.png")
    data = folder.read_dataset(root)
    assert set(data.splits) == {"train", "val", "test"}
    assert list(data.splits["val"].paths) == [f"{name}/b/2.png"]
    assert data.splits["val"].labels.tolist() == [1]  # by name, not by position
    assert any("val has no images of: a" in note for note in data.notes)


def test_other_files_are_left_out_and_counted(tmp_path):
    root = touch(
        tmp_path, "a/1.png", "a/._1.png", "a/Thumbs.db", "a/notes.txt", "b/1.png", "top.png",
        "__MACOSX/a/._1.png", ".hidden/x.png",
    )  # fmt: skip
    data = folder.read_dataset(root)
    assert len(data.splits["all"]) == 2
    assert data.left_out["hidden or system files"] == 4
    assert data.left_out["files of another kind"] == 1
    assert data.left_out["images outside a class folder"] == 1


def test_manifest(tmp_path):
    touch(tmp_path, "x/1.png", "x/2.png")
    (tmp_path / "m.csv").write_text("path,label,split\nx/1.png,cat,train\nx/2.png,dog,train\n")
    data = folder.read_dataset(tmp_path / "m.csv")
    assert data.classes == ("cat", "dog")
    assert data.splits["train"].path(1) == tmp_path / "x/2.png"
    (tmp_path / "n.csv").write_text("path,label\nx/1.png,cat\nx/2.png,dog\n")
    assert list(folder.read_dataset(tmp_path / "n.csv").splits) == ["all"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,label\nx.png,a\n", "has the columns file, label; expected path,label"),
        (
            "path,label,split\nx.png,a,later\n",
            "line 2: split must be train, val or test; got later",
        ),
        ("path,label\n,a\n", "line 2: path or label is empty"),
        ("path;file\nx.png;a\n", "has the columns path, file; expected path,label"),
        ("path,label\nx.png,1,0\n", "line 2 has 3 values, but there are 2 columns .path, label."),
        ("path,label\nC:\\x\\1.png,a\n", "line 2: C:.* is a path on another computer"),
        ("path,label\nhttps://a.org/1.png,a\n", "line 2: .* or a web address"),
        ("path,label,split\nx.png,a,train\ny.png,b,\n", "some rows have a split and some do not"),
    ],
)
def test_manifest_errors(tmp_path, text, message):
    (tmp_path / "m.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        folder.read_dataset(tmp_path / "m.csv")


def test_manifest_with_spaces_and_other_encodings(tmp_path):
    touch(tmp_path, "x/1.png", "x/2.png")
    (tmp_path / "m.csv").write_text("path, label\nx/1.png, cat\nx/2.png , dog \n")
    data = folder.read_dataset(tmp_path / "m.csv")
    assert data.classes == ("cat", "dog")
    assert list(data.splits["all"].paths) == ["x/1.png", "x/2.png"]
    for contents, message in (
        ("path,label\nx/1.png,k\u00e4tzchen\n".encode("latin-1"), "m.csv is not UTF-8 text"),
        (b"PK\3\4\x14\0\6\0", "m.csv is an Excel workbook"),
        (b"\x89PNG\0\0", "m.csv is not text"),
    ):
        (tmp_path / "m.csv").write_bytes(contents)
        with pytest.raises(DataError, match=f"{message}.*save it as CSV in UTF-8"):
            folder.read_dataset(tmp_path / "m.csv")
    with pytest.raises(DataError, match=r"1\.png is a single image; expected a folder"):
        folder.read_dataset(tmp_path / "x" / "1.png")


def test_a_missing_folder(tmp_path):
    touch(tmp_path, "flowers/a/1.png")
    with pytest.raises(DataError, match=r"flower does not exist.*Did you mean .*flowers"):
        folder.read_dataset(tmp_path / "flower")


def test_no_images(tmp_path):
    with pytest.raises(DataError, match=r"No images in .*left out: 1 file.*Known layouts"):
        folder.read_dataset(touch(tmp_path, "a/readme.txt"))


def test_empty_class(tmp_path):
    touch(tmp_path, "a/1.png", "b/1.png")
    (tmp_path / "c").mkdir()
    with pytest.raises(DataError, match=r"Class folders without images in .*: c"):
        folder.read_dataset(tmp_path)


def test_one_class(tmp_path):
    with pytest.raises(DataError, match="only one class, 'a'"):
        folder.read_dataset(touch(tmp_path, "a/1.png"))


def test_unknown_class_names_the_nearest(tmp_path):
    touch(tmp_path, "train/daisy/1.png", "train/rose/1.png", "val/roses/1.png")
    with pytest.raises(DataError, match=r"val has classes .* 'roses' \(did you mean 'rose'\?\)"):
        folder.read_dataset(tmp_path)


def test_two_names_for_validation(tmp_path):
    touch(tmp_path, "train/a/1.png", "train/b/1.png", "val/a/1.png", "valid/a/1.png")
    with pytest.raises(DataError, match="val and valid, which mean the same"):
        folder.read_dataset(tmp_path)


def test_classes_of_a_trained_network_are_kept(tmp_path):
    data = folder.read_dataset(touch(tmp_path, "b/1.png"), classes=["a", "b", "c"])
    assert data.classes == ("a", "b", "c")
    assert data.splits["all"].labels.tolist() == [1]


def make_dataset(tmp_path, per_class):
    paths = [f"{c}/{i}.png" for c, n in per_class.items() for i in range(n)]
    root = touch(tmp_path, *paths)
    return folder.read_dataset(root)


def test_select_and_counts(tmp_path):
    split = make_dataset(tmp_path, {"a": 2, "b": 3}).splits["all"]
    some = split.select(np.array([4, 0]))
    assert list(some.paths) == ["b/2.png", "a/0.png"]
    assert some.counts(3) == [1, 1, 0]


@pytest.mark.skipif(os.name == "nt", reason="Windows allows no quotes or newlines in names")
def test_odd_names(tmp_path):
    names = ["a b/ü ñ.png", 'a b/quo"te.png', "a b/new\nline.png", "日本/花.png"]
    data = folder.read_dataset(touch(tmp_path, *names))
    assert sorted(data.splits["all"].paths) == sorted(names)


def test_manifests_may_have_empty_lines_short_rows_and_other_columns(tmp_path):
    text = 'id,split,label,path\n1,,"a, b",x/1.png\n\n2,,c,x/é.png\n3,,c,notes.txt\n'
    (tmp_path / "m.csv").write_text(text, encoding="utf-8")
    data = folder.read_dataset(tmp_path / "m.csv")
    assert data.classes == ("a, b", "c")
    assert list(data.splits["all"].paths) == ["x/1.png", "x/é.png"]
    assert data.left_out["files of another kind"] == 1
    (tmp_path / "n.csv").write_text("path,label,split\nx/1.png,cat\nx/2.png,dog\n")
    assert list(folder.read_dataset(tmp_path / "n.csv").splits) == ["all"]
    (tmp_path / "n.csv").write_text("path,label\nx/1.png,cat\nx/2.png\n")
    with pytest.raises(DataError, match="line 3: path or label is empty"):
        folder.read_dataset(tmp_path / "n.csv")


LIST = """
import csv, os, sys, time
from resnetkit.data import folder

def kilobytes(name):
    return int(next(l for l in open("/proc/self/status") if l.startswith(name)).split()[1])

before, start = kilobytes("VmRSS"), time.process_time()
data = folder.read_dataset(sys.argv[1])
seconds, memory = time.process_time() - start, kilobytes("VmHWM") - before
split = data.splits[sys.argv[2]]


def plain_loop(path):
    if os.path.isfile(path):
        with open(path, encoding="utf-8") as file:
            return [row["path"] for row in csv.DictReader(file)]
    labels = sorted(entry.path for entry in os.scandir(path))
    return [e.path for label in labels for e in sorted(os.scandir(label), key=lambda e: e.name)]


start = time.process_time()
plain_loop(sys.argv[1])
print(len(split), memory, seconds / (time.process_time() - start), split.paths[-1])
"""


def listed(data, split):
    """Return the count, the memory in kB, the time relative to a plain loop, and the last path."""
    command = [sys.executable, "-c", LIST, str(data), split]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    count, memory, times, last = done.stdout.split()
    return int(count), int(memory), float(times), last


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the memory from /proc")
def test_a_hundred_thousand_files_take_little_memory_and_time(tmp_path):
    """The memory limit is a tenth of the 300 MB allowed for a million files."""
    for label in range(100):
        (tmp_path / "d" / f"n{label:08d}").mkdir(parents=True)
        for i in range(1000):
            (tmp_path / "d" / f"n{label:08d}" / f"n{label:08d}_{i:06d}.JPEG").touch()
    count, memory, times, last = listed(tmp_path / "d", "all")
    assert (count, last) == (100_000, "n00000099/n00000099_000999.JPEG")
    assert memory < 30_000
    assert times < 20


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the memory from /proc")
def test_a_long_manifest_takes_little_memory_and_time(tmp_path):
    with (tmp_path / "m.csv").open("w") as file:
        file.write("path,label,split\n")
        for i in range(100_000):
            file.write(f"n{i % 100:08d}/n{i % 100:08d}_{i:06d}.JPEG,n{i % 100:08d},train\n")
    count, memory, times, last = listed(tmp_path / "m.csv", "train")
    assert (count, last) == (100_000, "n00000099/n00000099_099999.JPEG")
    assert memory < 30_000
    assert times < 20


def test_a_split_inside_a_split_is_an_error(tmp_path):
    touch(tmp_path, "train/a/1.png", "train/b/1.png", "train/val/a/2.png", "test/a/3.png")
    with pytest.raises(DataError, match=r"train/val is inside the split train; move it to"):
        folder.read_dataset(tmp_path)
    touch(tmp_path / "flat", "train/a/1.png", "train/test/1.png")  # "test" is a class here
    assert folder.read_dataset(tmp_path / "flat").classes == ("a", "test")


def test_the_figures_of_a_run_are_left_out(flat_folder):
    run = flat_folder / "runs" / "squares-resnet18"
    run.mkdir(parents=True)
    for name in ("environment.json", "recipe.yaml"):
        (run / name).write_text("{}")
    (run / "curves.png").write_bytes((flat_folder / "red" / "000.png").read_bytes())
    found = folder.read_dataset(flat_folder)
    assert found.classes == ("blue", "green", "red")
    assert found.left_out["folders of a run, whose images are figures"] == 1
    with pytest.raises(DataError, match=r"No images in .*1 folder of a run"):
        folder.read_dataset(flat_folder / "runs")


def test_a_link_to_nothing_is_named(tmp_path):
    (tmp_path / "photos").symlink_to("gone")
    with pytest.raises(DataError, match=r"photos is a link to gone, which does not exist$"):
        folder.read_dataset(tmp_path / "photos")
