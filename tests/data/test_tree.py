"""What folders mean: splits, classes, or nothing to train on."""

from __future__ import annotations

import inspect
import os
import random
import subprocess
import sys
import tempfile
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resnetkit.cli.sources import expand_sources
from resnetkit.data import folder
from resnetkit.data.check import check_dataset
from resnetkit.data.paths import is_system
from resnetkit.errors import DataError


def touch(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"x")
    return root


def in_classes(*folders):
    return [f"{name}/{label}/{i}.png" for name in folders for label in "ab" for i in range(2)]


@pytest.mark.parametrize(
    ("train", "other", "split"),
    [
        ("Training", "Testing", "test"),
        ("training", "test", "test"),
        ("Training", "Test", "test"),
        ("seg_train", "seg_test", "test"),
        ("train", "dev", "val"),
        ("train", "Validate", "val"),
        ("train_images", "val_images", "val"),
        ("images-train", "images-eval", "val"),
        ("TrainSet", "TestSet", "test"),
        ("train2017", "val2017", "val"),
    ],
)
def test_common_split_names_are_splits(tmp_path, train, other, split):
    data = folder.read_dataset(touch(tmp_path, *in_classes(train, other)))
    assert data.classes == ("a", "b")
    assert set(data.splits) == {"train", split}
    assert data.splits[split].paths[0] == f"{other}/a/0.png"
    noted = any(f"{other} as {split}" in note for note in data.notes)
    assert noted == (other.lower() != "test")  # the name "test" needs no note


def test_a_split_folder_inside_one_of_the_same_name(tmp_path):
    paths = in_classes("seg_train/seg_train", "seg_test/seg_test")
    data = folder.read_dataset(touch(tmp_path, *paths, "seg_pred/seg_pred/1.png", "seg_pred/2.png"))
    assert data.classes == ("a", "b")
    assert sorted(p for split in data.splits.values() for p in split.paths) == sorted(paths)
    assert data.left_out.lines() == ["1 folder next to the splits, such as seg_pred"]


@pytest.mark.parametrize("name", ["passenger_train", "test_tube", "restrain", "valley", "latest"])
def test_other_names_are_classes(tmp_path, name):
    data = folder.read_dataset(touch(tmp_path, f"{name}/1.png", "bus/1.png"))
    assert data.classes == tuple(sorted(("bus", name)))
    assert not data.notes


@pytest.mark.parametrize(
    ("paths", "words"),
    [
        (["bus/1.png", "car/1.png", "train/1.png"], r"is 'train' \(next to 'bus', 'car'\) a split"),
        (["bus/1.png", "car/1.png", "train/steam/1.png", "train/electric/1.png"], "is 'train'"),
        (["cat/1.png", "dog/1.png", "test/1.png"], r"is 'test' \(next to 'cat', 'dog'\) a split"),
        (["cat/1.png", "dog/1.png", "val/cat/1.png", "val/dog/1.png"], r"is 'val' \(next to"),
        (["train/1.png", "test/1.png"], "is 'test' or 'train' a split or a class"),
        (["images-train/1.png", "images-test/1.png"], "'images-test' or 'images-train' a split"),
        (
            ["part1/a/1.png", "part1/b/1.png", "part2/a/1.png", "part2/b/1.png"],
            "contain the same folders",
        ),
        (  # the smaller split lacks a class
            [f"{part}/{name}/1.png" for part in ("holdout", "rest") for name in "abc"][1:],
            "contain the same folders, 'a', 'b', 'c'",
        ),
        (in_classes("x_train", "x_test", "y_train", "y_test"), "a split or a class"),
    ],
)
def test_an_ambiguous_layout_is_an_error(tmp_path, paths, words):
    with pytest.raises(DataError, match=words) as raised:
        folder.read_dataset(touch(tmp_path, *paths))
    assert f"into {tmp_path / 'train'}" in str(raised.value)
    assert "path,label" in str(raised.value)
    found = check_dataset(tmp_path)
    assert [f.text for f in found.issues if f.kind == "layout"] == [str(raised.value)]
    assert {f.kind: len(f.groups) for f in found.issues}["unreadable"] == len(paths)


def test_folders_that_differ_are_classes(tmp_path):
    touch(tmp_path, "cat/in/1.png", "cat/out/1.png", "dog/in/1.png", "dog/far/1.png")
    assert folder.read_dataset(tmp_path).classes == ("cat", "dog")


@pytest.mark.parametrize(
    "inside", [("train/a", "train/b", "val/a", "val/b"), ("a", "b"), ("deep/a", "deep/b", "c")]
)
def test_a_folder_around_the_dataset_is_named(tmp_path, inside):
    """Unpacking an archive often makes flowers/flowers/..., with __MACOSX next to it."""
    touch(tmp_path, *(f"flowers/{name}/1.png" for name in inside), "__MACOSX/flowers/a/._1.png")
    with pytest.raises(DataError, match="only one class, 'flowers'") as raised:
        folder.read_dataset(tmp_path)
    assert str(raised.value).endswith(f"pass {tmp_path / 'flowers'}")
    (issue,) = (i for i in check_dataset(tmp_path).issues if i.kind == "one-class")
    assert f"pass {tmp_path / 'flowers'}" in issue.text


@pytest.mark.parametrize("inside", [("flowers/a/1.png",), ("flowers/a/1.png", "flowers/1.png")])
def test_a_single_class_is_no_folder_around_a_dataset(tmp_path, inside):
    with pytest.raises(DataError, match="Known layouts"):
        folder.read_dataset(touch(tmp_path, *inside))


def test_a_network_that_lacks_a_class_is_named_as_such(tmp_path):
    with pytest.raises(DataError, match="all has classes that the model does not have: 'dog'"):
        folder.read_dataset(touch(tmp_path, "cat/1.png", "dog/1.png"), classes=["cat", "cow"])


def test_following_the_error_message_works(tmp_path):
    classes = touch(tmp_path / "c", *(f"train/{name}/1.png" for name in ("bus", "car", "train")))
    assert folder.read_dataset(classes).classes == ("bus", "car", "train")
    nested = [f"train/{name}/{side}/1.png" for name in ("p", "q") for side in ("left", "right")]
    assert folder.read_dataset(touch(tmp_path / "n", *nested)).classes == ("p", "q")


def test_the_classes_of_a_network_settle_the_layout(tmp_path):
    touch(tmp_path, "bus/1.png", "car/1.png", "train/1.png", "train/steam/2.png")
    data = folder.read_dataset(tmp_path, classes=["bus", "car", "train"])
    assert data.splits["all"].labels.tolist() == [0, 1, 2, 2]


@pytest.mark.parametrize("inside", [(), ("val/1.png",), ("val/a/notes.txt",), ("val/.DS_Store",)])
def test_a_split_without_class_folders_is_not_used(tmp_path, inside):
    touch(tmp_path, *in_classes("train"), *inside)
    (tmp_path / "val").mkdir(exist_ok=True)
    data = folder.read_dataset(tmp_path)
    assert set(data.splits) == {"train"}
    (note,) = data.notes
    assert note.startswith("val has ")
    assert "a validation split is created instead" in note
    assert [f.text for f in check_dataset(tmp_path).issues if f.kind == "reading"] == [note]


def test_system_files_are_left_out(tmp_path):
    wanted = ["cat/1.jpg", "cat/old/2.jpg", "dog/1.jpg"]
    system = [
        "@eaDir/1.jpg", "cat/@eaDir/1.jpg/SYNOPHOTO_THUMB_M.jpg", "#recycle/x.jpg",
        "cat/.@__thumb/1.jpg", "$RECYCLE.BIN/$R1.jpg", "System Volume Information/1.jpg",
        "cat/Thumbs.db", "dog/desktop.ini", "dog/._1.jpg", "dog/.DS_Store", "__MACOSX/dog/1.jpg",
        ".Trashes/1.jpg", "lost+found/1.jpg", "__pycache__/1.jpg", "dog/.ipynb_checkpoints/1.jpg",
        "~snapshot/a/1.jpg", "RECYCLER/1.jpg", "FOUND.000/1.jpg",
        ".git/1.jpg", ".dropbox.cache/1.jpg", "Old Previews.lrdata/1.jpg", "cat/.thumbnails/1.jpg",
        "cat/CaptureOne/Cache/1.jpg", "Photos Library.photoslibrary/resources/1.jpg", "@tmp/1.jpg",
        "venv/lib/1.png", "node_modules/1.png", "cat/CVS/1.png", "_gsdata_/1.jpg",
    ]  # fmt: skip
    data = folder.read_dataset(touch(tmp_path, *wanted, *system))
    assert list(data.splits["all"].paths) == wanted
    assert data.classes == ("cat", "dog")
    assert dict(data.left_out) == {"hidden or system files": len(system)}
    assert "such as " in data.left_out.lines()[0]


def test_composed_and_decomposed_names_are_one_class(tmp_path):
    composed, decomposed = (unicodedata.normalize(form, "caf\u00e9") for form in ("NFC", "NFD"))
    touch(tmp_path, f"train/{composed}/1.png", "train/tea/1.png", f"val/{decomposed}/1.png")
    data = folder.read_dataset(tmp_path)
    assert data.classes == (composed, "tea")
    assert data.splits["val"].labels.tolist() == [0]
    assert folder.read_dataset(tmp_path, classes=[decomposed, "tea"]).splits[
        "train"
    ].labels.tolist() == [0, 1]
    touch(tmp_path / "both", f"{composed}/1.png", f"{decomposed}/2.png", "tea/1.png")
    if len(os.listdir(tmp_path / "both")) == 3:  # some disks merge the two names
        with pytest.raises(DataError, match="Are they one class"):
            folder.read_dataset(tmp_path / "both")


def test_names_that_are_not_utf_8_are_classes(tmp_path):
    name = os.fsdecode(b"caf\xe9")
    try:
        touch(tmp_path, f"{name}/{name}.png", "tea/1.png")
    except OSError:
        pytest.skip("this disk accepts only UTF-8 names")
    data = folder.read_dataset(tmp_path)
    assert data.classes == (name, "tea")
    assert data.splits["all"].path(0).exists()


def test_class_folders_with_similar_names_get_a_note(tmp_path):
    data = folder.read_dataset(touch(tmp_path, "01/1.png", "1/2.png", "b/1.png"))
    assert data.classes == ("01", "1", "b")
    assert data.notes == (
        "'01', '1' are separate classes; if they are one, put their images into one folder",
    )


def test_everything_that_is_left_out_is_counted(tmp_path):
    touch(tmp_path, "readme.md", "1.png", "train/2.png", "train/labels.csv", *in_classes("train"))
    (tmp_path / "train" / "a" / "round").symlink_to("..", target_is_directory=True)
    data = folder.read_dataset(tmp_path)
    assert dict(data.left_out) == {
        "images outside a class folder": 2,
        "files of another kind": 2,
        "links to a folder that is read anyway": 1,
    }


def test_a_linked_folder_is_read_once_and_deep_ones_need_no_stack(tmp_path):
    folders = [tmp_path / "cats" / name for name in "abcdefgh"]
    for one in folders:
        touch(one, "1.png")
        for other in folders:
            if one != other:
                (one / f"0{other.name}").symlink_to(other, target_is_directory=True)
    deep = "/".join(["d"] * 400)
    touch(tmp_path, f"dogs/{deep}/1.png", "outside/inner/2.png")
    (tmp_path / "dogs" / "linked").symlink_to("../outside", target_is_directory=True)
    (tmp_path / "outside").rename(tmp_path.parent / f"{tmp_path.name}-outside")
    (tmp_path / "outside").symlink_to(f"../{tmp_path.name}-outside", target_is_directory=True)
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack()) + 300)
    try:
        data = folder.read_dataset(tmp_path)
        predicted = list(expand_sources([str(tmp_path)]))
    finally:
        sys.setrecursionlimit(limit)
    cats = [f"cats/{name}/1.png" for name in "abcdefgh"]
    dogs = [f"dogs/{deep}/1.png", "dogs/linked/inner/2.png"]
    assert list(data.splits["all"].paths) == [*cats, *dogs, "outside/inner/2.png"]
    assert data.left_out["links to a folder that is read anyway"] == 8 * 7
    assert predicted == [str(tmp_path / path) for path in [*cats, dogs[0], "outside/inner/2.png"]]


NAMES = [
    *[
        "train",
        "Training",
        "val",
        "dev",
        "test",
        "seg_train",
        "seg_test",
        "cat",
        "Cat",
        "dog",
        "01",
    ],
    *["1", "@eaDir", "$RECYCLE.BIN", ".git", "x.lrdata", "caf\u00e9", "cafe\u0301", "\u732b"],
    *[os.fsdecode(b"caf\xe9"), "a.png", "b.jpg", "._a.png", "q", "notes.txt", "runs"],
]
TREES = st.sets(st.lists(st.sampled_from(NAMES), min_size=1, max_size=4).map(tuple), max_size=12)
READ = """
import os, sys
from resnetkit.data import folder
from resnetkit.errors import DataError
real = os.scandir
class Backwards:  # as another disk might list
    def __init__(self, path): self.found = list(real(path))[::-1]
    def __enter__(self): return iter(self.found)
    def __exit__(self, *unused): pass
    def __iter__(self): return iter(self.found)
for order in (real, Backwards):
    os.scandir = order
    for root in sys.argv[1:]:
        try:
            data = folder.read_dataset(root)
            splits = {k: (list(s.paths), s.labels.tolist()) for k, s in data.splits.items()}
            print(ascii((data.classes, splits, data.remarks)))
        except DataError as error:
            print(ascii(str(error)))
    print("--")
"""


def create(root, tree):
    for names in sorted(tree):
        path = root.joinpath(*names)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                path.write_bytes(b"x")
        except (FileExistsError, NotADirectoryError):
            continue  # a file with that name exists
    return root


@given(TREES)
@settings(max_examples=300, deadline=None)
def test_every_file_is_an_image_or_counted(tree):
    with tempfile.TemporaryDirectory() as name:
        root = create(Path(name), tree)
        try:
            found = folder.survey(root)
        except DataError:  # the tree is ambiguous, or has no images
            return
        taken = {p for split in found.splits.values() for paths in split.values() for p in paths}
        files = {p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()}
        assert taken <= files
        beside = {
            entry for entry in os.listdir(root)
            if (root / entry).is_dir() and not is_system(entry)
            and not any(path.startswith(f"{entry}/") for path in taken)
        }  # fmt: skip
        folders = found.left_out["folders next to the splits"]
        assert folders <= len(beside)
        uncounted = [f for f in files - taken if not (folders and f.split("/")[0] in beside)]
        counted = {
            next((f"{a}/" for a in parents(f) if is_system(Path(a).name)), f) for f in uncounted
        }
        assert sum(found.left_out.values()) - folders == len(counted)
        assert all(found.left_out.examples[reason] for reason in found.left_out)


def parents(path):
    return [str(p) for p in reversed(Path(path).parents)][1:]


def test_the_result_depends_on_no_hash_and_no_listing_order(tmp_path):
    rng = random.Random(0)
    roots = []
    for number in range(80):
        tree = {tuple(rng.choices(NAMES, k=rng.randint(1, 4))) for _ in range(rng.randint(1, 12))}
        (tmp_path / str(number)).mkdir()
        roots.append(str(create(tmp_path / str(number), tree)))
    seen = set()
    for seed in "07":
        command = [sys.executable, "-c", READ, *roots]
        env = {**os.environ, "PYTHONHASHSEED": seed}
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
        seen |= set(done.stdout.split("--\n")[:2])
    assert len(seen) == 1
