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
    data = folder.read(touch(tmp_path / "d", "b/2.png", "b/1.JPG", "a/deep/er/3.webp"))
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
    data = folder.read(root)
    assert set(data.splits) == {"train", "val", "test"}
    assert list(data.splits["val"].paths) == [f"{name}/b/2.png"]
    assert data.splits["val"].labels.tolist() == [1]  # by name, not by position
    assert any("val has no pictures of: a" in note for note in data.notes)


def test_what_is_no_picture_is_left_out_and_counted(tmp_path):
    root = touch(
        tmp_path, "a/1.png", "a/._1.png", "a/Thumbs.db", "a/notes.txt", "b/1.png", "top.png",
        "__MACOSX/a/._1.png", ".hidden/x.png",
    )  # fmt: skip
    data = folder.read(root)
    assert len(data.splits["all"]) == 2
    assert data.left_out["hidden or system file(s)"] == 4
    assert data.left_out["file(s) of another kind"] == 1
    assert data.left_out["picture(s) outside a class folder"] == 1


def test_manifest(tmp_path):
    touch(tmp_path, "x/1.png", "x/2.png")
    (tmp_path / "m.csv").write_text("path,label,split\nx/1.png,cat,train\nx/2.png,dog,train\n")
    data = folder.read(tmp_path / "m.csv")
    assert data.classes == ("cat", "dog")
    assert data.splits["train"].path(1) == tmp_path / "x/2.png"
    (tmp_path / "n.csv").write_text("path,label\nx/1.png,cat\nx/2.png,dog\n")
    assert list(folder.read(tmp_path / "n.csv").splits) == ["all"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,label\nx.png,a\n", "has the columns file, label; expected path,label"),
        ("path,label,split\nx.png,a,later\n", "line 2: split is train, val or test; got later"),
        ("path,label\n,a\n", "line 2: path or label is empty"),
        ("path;label\nx.png;a\n", "separate them by commas, not semicolons"),
        ("path,label,split\nx.png,a,train\ny.png,b,\n", "some rows have a split and some have"),
    ],
)
def test_manifest_errors(tmp_path, text, message):
    (tmp_path / "m.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        folder.read(tmp_path / "m.csv")


def test_manifest_with_spaces_and_other_encodings(tmp_path):
    touch(tmp_path, "x/1.png", "x/2.png")
    (tmp_path / "m.csv").write_text("path, label\nx/1.png, cat\nx/2.png , dog \n")
    data = folder.read(tmp_path / "m.csv")
    assert data.classes == ("cat", "dog")
    assert list(data.splits["all"].paths) == ["x/1.png", "x/2.png"]
    for encoding in ("utf-16", "latin-1"):
        (tmp_path / "m.csv").write_bytes("path,label\nx/1.png,k\u00e4tzchen\n".encode(encoding))
        with pytest.raises(DataError, match="save it as CSV in UTF-8"):
            folder.read(tmp_path / "m.csv")
    with pytest.raises(DataError, match=r"1\.png is one picture; expected a folder"):
        folder.read(tmp_path / "x" / "1.png")


def test_nothing_there(tmp_path):
    touch(tmp_path, "flowers/a/1.png")
    with pytest.raises(DataError, match=r"flower does not exist.*Did you mean .*flowers"):
        folder.read(tmp_path / "flower")


def test_no_pictures(tmp_path):
    with pytest.raises(DataError, match=r"No pictures in .*left out: 1 file.*Known layouts"):
        folder.read(touch(tmp_path, "a/readme.txt"))


def test_empty_class(tmp_path):
    touch(tmp_path, "a/1.png", "b/1.png")
    (tmp_path / "c").mkdir()
    with pytest.raises(DataError, match=r"Class folders without a picture in .*: c"):
        folder.read(tmp_path)


def test_one_class(tmp_path):
    with pytest.raises(DataError, match="only one class, 'a'"):
        folder.read(touch(tmp_path, "a/1.png"))


def test_unknown_class_names_the_nearest(tmp_path):
    touch(tmp_path, "train/daisy/1.png", "train/rose/1.png", "val/roses/1.png")
    with pytest.raises(DataError, match=r"val has classes .* 'roses' \(did you mean 'rose'\?\)"):
        folder.read(tmp_path)


def test_two_names_for_validation(tmp_path):
    touch(tmp_path, "train/a/1.png", "train/b/1.png", "val/a/1.png", "valid/a/1.png")
    with pytest.raises(DataError, match="val and valid, which mean the same"):
        folder.read(tmp_path)


def test_classes_of_a_trained_network_are_kept(tmp_path):
    data = folder.read(touch(tmp_path, "b/1.png"), classes=["a", "b", "c"])
    assert data.classes == ("a", "b", "c")
    assert data.splits["all"].labels.tolist() == [1]


def make_part(tmp_path, per_class):
    paths = [f"{c}/{i}.png" for c, n in per_class.items() for i in range(n)]
    root = touch(tmp_path, *paths)
    return folder.read(root)


def test_split_is_stratified_and_a_function_of_the_seed(tmp_path):
    data = make_part(tmp_path, {"a": 40, "b": 20})
    digests = [str(i) for i in range(60)]
    divided = folder.split_dataset(data.splits["all"], data.classes, digests, 0.15, seed=1)
    assert divided["val"].counts(2) == [6, 3]
    assert set(divided["train"].paths) | set(divided["val"].paths) == set(data.splits["all"].paths)
    again = folder.split_dataset(data.splits["all"], data.classes, digests, 0.15, seed=1)
    assert list(again["val"].paths) == list(divided["val"].paths)
    other = folder.split_dataset(data.splits["all"], data.classes, digests, 0.15, seed=2)
    assert list(other["val"].paths) != list(divided["val"].paths)


def test_split_keeps_duplicates_together(tmp_path):
    data = make_part(tmp_path, {"a": 30, "b": 30})
    digests = [str(i // 3) for i in range(60)]  # each picture three times
    for seed in range(5):
        divided = folder.split_dataset(data.splits["all"], data.classes, digests, 0.2, seed)
        by_path = dict(zip(data.splits["all"].paths, digests, strict=True))
        train, val = ({by_path[p] for p in divided[name].paths} for name in ("train", "val"))
        assert not train & val
        assert divided["val"].counts(2) == [6, 6]


def test_split_needs_two_different_pictures(tmp_path):
    data = make_part(tmp_path, {"a": 3, "b": 3})
    with pytest.raises(DataError, match="Class 'b' has only one picture"):
        folder.split_dataset(
            data.splits["all"], data.classes, ["1", "2", "3", "4", "4", "4"], 0.2, 0
        )


def test_a_class_of_copies_is_told(tmp_path):
    data = make_part(tmp_path, {"a": 3, "b": 3})
    with pytest.raises(DataError, match="Class 'b' has no picture of its own"):
        folder.split_dataset(
            data.splits["all"], data.classes, ["1", "2", "3", "1", "2", "3"], 0.2, 0
        )


def test_select_and_counts(tmp_path):
    split = make_part(tmp_path, {"a": 2, "b": 3}).splits["all"]
    some = split.select(np.array([4, 0]))
    assert list(some.paths) == ["b/2.png", "a/0.png"]
    assert some.counts(3) == [1, 1, 0]


@pytest.mark.skipif(os.name == "nt", reason="names with quotes and newlines are not for Windows")
def test_odd_names(tmp_path):
    names = ["a b/ü ñ.png", 'a b/quo"te.png', "a b/new\nline.png", "日本/花.png"]
    data = folder.read(touch(tmp_path, *names))
    assert sorted(data.splits["all"].paths) == sorted(names)


def test_manifests_may_have_empty_lines_short_rows_and_other_columns(tmp_path):
    text = 'id,split,label,path\n1,,"a, b",x/1.png\n\n2,,c,x/é.png\n3,,c,notes.txt\n'
    (tmp_path / "m.csv").write_text(text, encoding="utf-8")
    data = folder.read(tmp_path / "m.csv")
    assert data.classes == ("a, b", "c")
    assert list(data.splits["all"].paths) == ["x/1.png", "x/é.png"]
    assert data.left_out["file(s) of another kind"] == 1
    (tmp_path / "n.csv").write_text("path,label,split\nx/1.png,cat\nx/2.png,dog\n")
    assert list(folder.read(tmp_path / "n.csv").splits) == ["all"]
    (tmp_path / "n.csv").write_text("path,label\nx/1.png,cat\nx/2.png\n")
    with pytest.raises(DataError, match="line 3: path or label is empty"):
        folder.read(tmp_path / "n.csv")


LIST = """
import csv, os, sys, time
from resnetkit.data import folder

def kilobytes(name):
    return int(next(l for l in open("/proc/self/status") if l.startswith(name)).split()[1])

before, start = kilobytes("VmRSS"), time.process_time()
data = folder.read(sys.argv[1])
seconds, memory = time.process_time() - start, kilobytes("VmHWM") - before
part = data.parts[sys.argv[2]]


def plainly(path):
    if os.path.isfile(path):
        with open(path, encoding="utf-8") as file:
            return [row["path"] for row in csv.DictReader(file)]
    labels = sorted(entry.path for entry in os.scandir(path))
    return [e.path for label in labels for e in sorted(os.scandir(label), key=lambda e: e.name)]


start = time.process_time()
plainly(sys.argv[1])
print(len(part), memory, seconds / (time.process_time() - start), part.paths[-1])
"""


def listed(data, split):
    """How many, the memory in kB, how many times as long as a plain loop it took, the last."""
    command = [sys.executable, "-c", LIST, str(data), split]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    count, memory, times, last = done.stdout.split()
    return int(count), int(memory), float(times), last


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the memory from /proc")
def test_a_hundred_thousand_files_take_little_memory_and_time(tmp_path):
    """A tenth of the 300 MB that a million may take."""
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


def test_a_split_inside_a_split_is_no_class(tmp_path):
    touch(tmp_path, "train/a/1.png", "train/b/1.png", "train/val/a/2.png", "test/a/3.png")
    with pytest.raises(DataError, match=r"train/val lies inside the split train; move it beside"):
        folder.read(tmp_path)
    touch(tmp_path / "flat", "train/a/1.png", "train/test/1.png")  # a class of tests
    assert folder.read(tmp_path / "flat").classes == ("a", "test")


def test_the_figures_of_a_run_are_no_photos(flat_folder):
    run = flat_folder / "runs" / "squares-resnet18"
    run.mkdir(parents=True)
    for name in ("environment.json", "recipe.yaml"):
        (run / name).write_text("{}")
    (run / "curves.png").write_bytes((flat_folder / "red" / "000.png").read_bytes())
    found = folder.read(flat_folder)
    assert found.classes == ("blue", "green", "red")
    assert found.left_out["folder(s) of a run, whose pictures are figures"] == 1
    with pytest.raises(DataError, match=r"No pictures in .*1 folder\(s\) of a run"):
        folder.read(flat_folder / "runs")
