"""Datasets in tar files: what is written, what is read, and what is refused."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import shutil
import tarfile
import tracemalloc
import warnings

import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

from resnetkit.data import files, folder, shards
from resnetkit.data.check import check_dataset
from resnetkit.data.decode import decode, image_size, is_gray, read_depth
from resnetkit.data.paths import Paths
from resnetkit.data.shard_writer import write_shards
from resnetkit.errors import DataError, ImageError, OutputError


@pytest.fixture
def packed(split_folder, tmp_path):
    """A folder of shards: three classes, 12 training and 6 validation images of each."""
    write_shards(split_folder, tmp_path / "packed", size=1)
    return tmp_path / "packed"


def contents(root):
    return {path.name: path.read_bytes() for path in root.iterdir()}


def edit_manifest(root, **changes):
    values = json.loads((root / "shards.json").read_text())
    (root / "shards.json").write_text(json.dumps(values | changes))


def edit_index(root, **changes):
    """Change arrays of the index, and its SHA-256 in the manifest."""
    arrays = safetensors.numpy.load_file(root / "index.safetensors")
    data = safetensors.numpy.save(arrays | changes)
    (root / "index.safetensors").write_bytes(data)
    edit_manifest(root, index_sha256=hashlib.sha256(data).hexdigest())


def test_shards_have_the_same_images(split_folder, packed):
    original = folder.read_dataset(split_folder)
    read = folder.read_dataset(packed)
    assert (read.name, read.classes) == (original.name, original.classes)
    assert read.remarks == ()
    assert list(read.splits) == list(original.splits)
    for name, split in original.splits.items():
        found = read.splits[name]
        assert list(found.paths) == list(split.paths)
        assert found.labels.tolist() == split.labels.tolist()
        for i in range(len(split)):
            assert files.read_file(found.path(i)) == files.read_file(split.path(i))
            assert image_size(found.path(i)) == image_size(split.path(i)) == (40, 36)
            assert not is_gray(found.path(i))
            assert read_depth(found.path(i)) is None


def test_each_image_has_its_sha256_in_the_index(split_folder, packed):
    found = shards.open_shards(packed)
    for row, path in enumerate(found.paths):
        digest = hashlib.sha256((split_folder / path).read_bytes()).digest()
        assert found.digests[row].tobytes() == digest
    for shard in found.manifest.shards:
        assert hashlib.sha256((packed / shard.name).read_bytes()).hexdigest() == shard.sha256


def test_the_same_images_give_the_same_bytes(split_folder, packed, tmp_path):
    os.utime(next((split_folder / "train" / "red").iterdir()), (1, 1))
    write_shards(split_folder, tmp_path / "again", size=1, workers=0)
    assert contents(tmp_path / "again") == contents(packed)
    write_shards(packed, tmp_path / "repacked", size=1)  # shards are a valid dataset to pack
    assert contents(tmp_path / "repacked") == contents(packed)


def test_shards_are_bounded(tmp_path):
    for name in ("a", "b"):
        (tmp_path / "large" / name).mkdir(parents=True)
        for number in range(4):
            image = Image.new("RGB", (360, 360), (number, 0, 0))
            image.save(tmp_path / "large" / name / f"{number}.bmp")  # 0.39 MB
    Image.new("RGB", (700, 700)).save(tmp_path / "large" / "b" / "0.bmp")  # 1.5 MB
    written = write_shards(tmp_path / "large", tmp_path / "out", size=1)
    assert [shard.images for shard in written.manifest.shards] == [2, 2, 1, 2, 1]
    sizes = [(tmp_path / "out" / shard.name).stat().st_size for shard in written.manifest.shards]
    assert [size > 10**6 for size in sizes] == [False, False, True, False, False]
    read = folder.read_dataset(tmp_path / "out").splits["all"]
    for i, path in enumerate(read.paths):
        assert files.read_file(read.path(i)) == (tmp_path / "large" / path).read_bytes()


def test_tarfile_reads_the_members(split_folder, packed):
    found = shards.open_shards(packed)
    labels = folder.read_dataset(split_folder).splits["train"].labels
    with tarfile.open(packed / "train-000000.tar") as tar:
        members = tar.getmembers()
        assert len(members) == 72
        for row, (image, label) in enumerate(zip(members[::2], members[1::2], strict=True)):
            assert (image.name, label.name) == (f"{row:08d}.png", f"{row:08d}.cls")
            assert image.offset_data == found.offsets[row]
            assert tar.extractfile(image).read() == (split_folder / found.paths[row]).read_bytes()
            assert int(tar.extractfile(label).read()) == labels[row]
            assert (image.mtime, image.uid, image.gid, image.mode) == (0, 0, 0, 0o644)


def test_webdataset_reads_the_members(split_folder, packed):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        webdataset = pytest.importorskip("webdataset")
        url = str(packed / "validation-000000.tar").replace("validation", "val")
        samples = list(webdataset.WebDataset(url, shardshuffle=False).decode("pil"))
    original = folder.read_dataset(split_folder).splits["val"]
    assert [sample["__key__"] for sample in samples] == [f"{row:08d}" for row in range(36, 54)]
    for i, sample in enumerate(samples):
        assert sample["cls"] == original.labels[i]
        with Image.open(original.path(i)) as image:
            assert np.array_equal(np.asarray(sample["png"]), np.asarray(image.convert("RGB")))


def test_a_manifest_may_name_images_anywhere(split_folder, tmp_path):
    (tmp_path / "lists").mkdir()
    lines = ["path,label"]
    for path in sorted((split_folder / "train").rglob("*.png")):
        name = path if path.parent.name == "red" else os.path.relpath(path, tmp_path / "lists")
        lines.append(f"{name},{path.parent.name}")
    (tmp_path / "lists" / "mine.csv").write_text("\n".join(lines))
    write_shards(tmp_path / "lists" / "mine.csv", tmp_path / "out")
    original = folder.read_dataset(tmp_path / "lists" / "mine.csv")
    read = folder.read_dataset(tmp_path / "out")
    shutil.rmtree(split_folder.rename(tmp_path / "moved"), ignore_errors=True)
    assert read.name == original.name == "mine"
    assert read.splits["all"].paths[0] == "blue/000.png"
    assert read.splits["all"].labels.tolist() == original.splits["all"].labels.tolist()
    assert len(files.read_file(read.splits["all"].path(35))) > 1000


def test_images_are_found_in_any_order(flat_folder, tmp_path):
    paths = [path.relative_to(flat_folder).as_posix() for path in flat_folder.rglob("*.png")]
    paths.sort(key=lambda path: path[::-1])
    lines = [f"{path},{path.split('/')[0]}" for path in paths]
    (flat_folder / "list.csv").write_text("\n".join(["path,label", *lines]))
    write_shards(flat_folder / "list.csv", tmp_path / "out")
    original = folder.read_dataset(flat_folder / "list.csv").splits["all"]
    found = folder.read_dataset(tmp_path / "out").splits["all"]
    assert list(found.paths) == list(original.paths) != sorted(original.paths)
    for i in range(len(found)):
        assert files.read_file(found.path(i)) == files.read_file(original.path(i))


def test_odd_names_and_extensions(flat_folder, tmp_path):
    odd = flat_folder / "red" / "IMG.1.new\nline é 花.PNG"
    (flat_folder / "red" / "000.png").rename(odd)
    raw = os.fsencode(flat_folder / "red") + b"/\xff.png"
    os.rename(os.fsencode(flat_folder / "red" / "001.png"), raw)
    (flat_folder / "sub").mkdir()
    (flat_folder / "sub" / ".hidden.png").write_bytes(b"")
    (flat_folder / "sub" / "x.png").write_bytes(odd.read_bytes())
    written = write_shards(flat_folder, tmp_path / "out")
    assert written.remarks == ("left out: 1 hidden or system file, such as sub/.hidden.png",)
    split = folder.read_dataset(tmp_path / "out").splits["all"]
    for path in (odd, os.fsdecode(raw)):
        name = os.path.relpath(path, flat_folder)
        assert name in list(split.paths)
        with open(path, "rb") as file:
            assert files.read_file(tmp_path / "out" / name) == file.read()


def test_images_that_cannot_be_decoded_are_named_and_kept(flat_folder, tmp_path):
    broken = flat_folder / "red" / "003.png"
    broken.write_bytes(broken.read_bytes()[:100])
    written = write_shards(flat_folder, tmp_path / "out")
    assert list(written.unreadable) == ["red/003.png"]
    assert files.read_file(tmp_path / "out" / "red" / "003.png") == broken.read_bytes()
    before = check_dataset(flat_folder)
    after = check_dataset(tmp_path / "out")
    assert after.issues == before.issues
    assert after.counts == before.counts


def test_a_file_that_cannot_be_read_ends_it(flat_folder, tmp_path):
    (flat_folder / "red" / "003.png").unlink()
    (flat_folder / "red" / "003.png").symlink_to("nothing.png")
    with pytest.raises(DataError, match=r"red/003.png: No such file.*Nothing was written"):
        write_shards(flat_folder, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["squares"]


def test_an_existing_folder_is_refused(flat_folder, tmp_path):
    for kind in (lambda path: path.mkdir(), lambda path: path.symlink_to("nothing")):
        kind(tmp_path / "out")
        with pytest.raises(OutputError, match="out exists"):
            write_shards(flat_folder, tmp_path / "out")
        (tmp_path / "out").rename(tmp_path / f"old{len(list(tmp_path.iterdir()))}")


def test_a_stopped_command_leaves_nothing(flat_folder, tmp_path):
    def stop(total):
        def advance(text):
            raise KeyboardInterrupt

        return advance

    with pytest.raises(KeyboardInterrupt):
        write_shards(flat_folder, tmp_path / "out", progress=stop)
    assert [path.name for path in tmp_path.iterdir()] == ["squares"]


def test_shards_among_photos_are_left_out(flat_folder):
    write_shards(flat_folder, flat_folder / "red" / "packed")
    found = folder.read_dataset(flat_folder)
    assert found.splits["all"].counts(3) == [16, 16, 16]
    assert "folder that resnet wrote" in found.remarks[0]


def test_parts_of_an_image_can_be_read(split_folder, packed):
    path = "train/red/000.png"
    whole = (split_folder / path).read_bytes()
    with files.open_file(packed / path) as file:
        assert (file.read(8), file.tell()) == (whole[:8], 8)
        assert file.seek(-4, os.SEEK_END) == len(whole) - 4
        assert (file.read(100), file.read(100)) == (whole[-4:], b"")
        assert file.seek(2) == 2
        assert file.read() == whole[2:]
        assert (file.seek(10**9), file.read(), file.read(1)) == (10**9, b"", b"")
        file.seek(0)
        assert file.read() == whole


@pytest.mark.parametrize("reordered", ["sorted", "backwards"])
def test_labels_and_splits_do_not_depend_on_the_order_of_keys(tmp_path, reordered):
    rows = [("1.png", "b", "train"), ("2.png", "a", "train"), ("3.png", "b", "test")]
    rows += [("4.png", "a", "test"), ("5.png", "a", "train")]
    for number, (path, _, _) in enumerate(rows):
        Image.new("RGB", (8, 8), (40 * number, 9, 9)).save(tmp_path / path)
    lines = ["path,label,split", *map(",".join, rows)]
    (tmp_path / "m.csv").write_text("\n".join(lines))
    write_shards(tmp_path / "m.csv", tmp_path / "packed")

    def reorder(value):
        if isinstance(value, dict):
            keys = sorted(value) if reordered == "sorted" else reversed(value)
            return {key: reorder(value[key]) for key in keys}
        return list(map(reorder, value)) if isinstance(value, list) else value

    manifest = tmp_path / "packed" / "shards.json"
    manifest.write_text(json.dumps(reorder(json.loads(manifest.read_text()))))
    found = folder.read_dataset(tmp_path / "packed")
    assert list(found.splits) == ["train", "test"]
    assert {
        (path, found.classes[label], name)
        for name, split in found.splits.items()
        for path, label in zip(split.paths, split.labels, strict=True)
    } == set(rows)


@pytest.mark.skipif(os.name == "nt", reason="links need a permission")
def test_two_images_of_one_path_are_refused(flat_folder, tmp_path):
    (tmp_path / "other" / "folder").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "other" / "000.png")
    (flat_folder / "red" / "link").symlink_to(tmp_path / "other" / "folder")
    lines = ["path,label", "red/000.png,a", "red/000.png,a", "red/001.png,b"]
    (flat_folder / "m.csv").write_text("\n".join(lines))
    assert write_shards(flat_folder / "m.csv", tmp_path / "same").manifest.images == 3
    (flat_folder / "m.csv").write_text("\n".join([*lines, "red/link/../000.png,a"]))
    with pytest.raises(DataError, match=r"Two different images would have the path red/000\.png"):
        write_shards(flat_folder / "m.csv", tmp_path / "different")
    assert not (tmp_path / "different").exists()


def test_a_file_in_place_of_a_packed_image_is_refused(packed):
    (packed / "notes").mkdir()
    assert len(folder.read_dataset(packed).splits) == 2
    stray = packed / folder.read_dataset(packed).splits["val"].paths[0]
    stray.parent.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(stray)
    for read in (folder.read_dataset, shards.open_shards):
        with pytest.raises(DataError, match=r"was put into a folder of shards"):
            read(packed)


def test_a_name_that_this_disk_does_not_allow_is_found(flat_folder, tmp_path, monkeypatch):
    """This happens if the disk where the dataset was packed allows longer names."""
    names = [f"{number}{'x' * 260}.png" for number in range(48)]
    monkeypatch.setattr("resnetkit.data.shard_writer._inner_paths", lambda dataset: names)
    write_shards(flat_folder, tmp_path / "packed")
    split = folder.read_dataset(tmp_path / "packed").splits["all"]
    assert files.read_file(split.path(47))[:4] == b"\x89PNG"


def test_a_foreign_manifest_above_images_hides_no_error(flat_folder):
    (flat_folder.parent / "shards.json").write_text("{}")
    damaged = flat_folder / "red" / "000.png"
    damaged.write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"000\.png: holds text, not an image"):
        decode(damaged)
    with pytest.raises(ImageError, match=r"gone\.png: there is no such file, and .*shards\.json"):
        files.read_file(flat_folder / "red" / "gone.png")


def test_a_path_that_is_not_in_the_shards(packed):
    for name in ("train/red/999.png", "train/red", "train/red/000.png/x.png", "zzz.png"):
        with pytest.raises(ImageError, match="No such file"):
            files.read_file(packed / name)


def test_a_changed_image_is_named(packed):
    found = shards.open_shards(packed)
    row = list(found.paths).index("train/green/003.png")
    with (packed / "train-000000.tar").open("r+b") as file:
        file.seek(int(found.offsets[row]) + 50)
        file.write(b"\0\0\0")
    image = packed / "train" / "green" / "003.png"
    with pytest.raises(ImageError) as caught:
        files.read_file(image)
    assert str(image) in str(caught.value)
    assert f"train-000000.tar/{row:08d}.png" in str(caught.value)
    assert "SHA-256" in str(caught.value)
    files.read_file(packed / "train" / "green" / "004.png")
    result = check_dataset(packed)
    assert [issue.kind for issue in result.issues if issue.level == "error"] == [
        "unreadable",
        "shards",
    ]


def test_check_finds_a_changed_label(packed):
    assert not check_dataset(packed).has_errors
    found = shards.open_shards(packed)
    with (packed / "train-000000.tar").open("r+b") as file:
        file.seek(int(found.offsets[1]) - 1024)  # the contents of 00000000.cls
        assert file.read(1) == b"0"
        file.seek(-1, os.SEEK_CUR)
        file.write(b"2")
    (issue,) = [issue for issue in check_dataset(packed).issues if issue.level == "error"]
    assert (issue.kind, issue.groups) == ("shards", [["train-000000.tar"]])


@pytest.mark.parametrize("kind", ["link", "device", "absolute", "size", "noise"])
def test_a_foreign_member_is_refused(packed, kind):
    found = shards.open_shards(packed)
    start = int(found.offsets[0])
    header = tarfile.TarInfo("00000000.png")
    header.size = int(found.sizes[0])
    if kind == "link":
        header.type, header.linkname = tarfile.SYMTYPE, "/etc/passwd"
    elif kind == "device":
        header.type = tarfile.CHRTYPE
    elif kind == "absolute":
        header.name = "/etc/passwd"
    elif kind == "size":
        header.size += 1
    block = b"x" * 512 if kind == "noise" else header.tobuf(tarfile.USTAR_FORMAT)
    with (packed / "train-000000.tar").open("r+b") as file:
        file.seek(start - 512)
        file.write(block)
    problem = "no tar header precedes it" if kind == "noise" else "found a"
    with pytest.raises(ImageError, match=rf"train-000000.tar/00000000.png\): {problem}"):
        files.read_file(packed / "train" / "blue" / "000.png")


def test_a_shard_of_another_size_is_named(packed):
    with (packed / "val-000000.tar").open("r+b") as file:
        file.truncate(5000)
    with pytest.raises(DataError, match=r"val-000000.tar has 5,000 bytes; expected"):
        folder.read_dataset(packed)
    with pytest.raises(ImageError, match=r"val-000000.tar has 5,000 bytes"):
        files.read_file(packed / "validation" / "red" / "100.png")
    files.read_file(packed / "train" / "red" / "000.png")


def test_a_shard_that_is_replaced_is_opened_again(packed, tmp_path):
    """Shards are kept open between images, so a replaced one must be noticed."""
    image = packed / "train" / "blue" / "000.png"
    whole = files.read_file(image)
    good = packed / "train-000000.tar"
    (tmp_path / "bad.tar").write_bytes(bytes(good.stat().st_size))
    good.rename(tmp_path / "good.tar")
    (tmp_path / "bad.tar").rename(good)
    with pytest.raises(ImageError, match="no tar header"):
        files.read_file(image)
    (tmp_path / "good.tar").rename(good)
    assert files.read_file(image) == whole


def test_a_missing_shard_or_a_pipe_is_named(packed):
    (packed / "val-000000.tar").unlink()
    with pytest.raises(DataError, match=r"val-000000.tar: No such file"):
        folder.read_dataset(packed)
    os.mkfifo(packed / "val-000000.tar")
    with pytest.raises(DataError, match=r"val-000000.tar is not a regular file"):
        folder.read_dataset(packed)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 2}, "Upgrade it"),
        ({"format_version": "1"}, "format_version is not valid"),
        ({"name": "../x"}, "name is not valid"),
        ({"name": 3}, "name is not valid"),
        ({"classes": ["red", "red"]}, "classes is not valid"),
        ({"splits": {"../train": {"red": 3}}}, "splits is not valid"),
        ({"splits": {"train": {"red": -3}}}, "splits is not valid"),
        ({"splits": {"train": {"red": 2**70}}}, "splits is not valid"),
        ({"splits": {"train": {"black": 3}}}, "splits is not valid"),
        ({"splits": {"train": {"red": 3}}}, "number of images is not valid"),
        ({"shards": [{"name": "../a.tar"}]}, "not a valid list"),
        (
            {"shards": [{"name": "/etc/passwd", "images": 54, "bytes": 1, "sha256": "0" * 64}]},
            "shards is not valid",
        ),
        ({"shards": 3}, "not a valid list"),
        ({"index_sha256": "0" * 64}, "its SHA-256 is not the one in shards.json"),
        ({"index_sha256": None}, "index_sha256 is not valid"),
    ],
)
def test_a_changed_manifest_is_refused(packed, changes, message):
    edit_manifest(packed, **changes)
    with pytest.raises(DataError, match=message):
        folder.read_dataset(packed)


@pytest.mark.parametrize("text", ["", "[]", "[" * 100_000, "{", "\xff", '{"format_version": 1}'])
def test_a_manifest_that_is_not_one_is_refused(packed, text):
    (packed / "shards.json").write_text(text, encoding="latin-1")
    with pytest.raises(DataError, match=r"shards.json is not a valid list of shards"):
        folder.read_dataset(packed)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("offsets", lambda a: a + np.uint64(2**40)),
        ("offsets", lambda a: a * np.uint64(0)),
        ("offsets", lambda a: np.full_like(a, 2**64 - 1)),
        ("offsets", lambda a: a.astype(np.int64)),
        ("sizes", lambda a: np.full_like(a, 2**32 - 1)),
        ("sizes", lambda a: a[:-1]),
        ("by_path", lambda a: a + np.uint32(1)),
        ("lengths", lambda a: a + np.uint16(1)),
        ("sha256", lambda a: a[:, :16].copy()),
        ("paths", lambda a: a.reshape(1, -1)),
    ],
)
def test_a_changed_index_is_refused(packed, name, change):
    arrays = safetensors.numpy.load_file(packed / "index.safetensors")
    edit_index(packed, **{name: change(arrays[name])})
    with pytest.raises(DataError, match=r"index.safetensors is not a valid index"):
        folder.read_dataset(packed)


@pytest.mark.parametrize(
    "evil", ["/etc/passwd", "../../x.png", "a/../../b", "a//b.png", "./a", "a/."]
)
def test_a_path_that_leaves_the_folder_is_refused(packed, evil):
    arrays = safetensors.numpy.load_file(packed / "index.safetensors")
    lengths = arrays["lengths"].copy()
    text = arrays["paths"].tobytes()[lengths[0] :]
    lengths[0] = len(evil)
    edit_index(packed, paths=np.frombuffer(evil.encode() + text, np.uint8), lengths=lengths)
    with pytest.raises(DataError, match="leads out of the folder"):
        folder.read_dataset(packed)


def test_a_damaged_or_foreign_index_is_refused(packed):
    index = packed / "index.safetensors"
    whole = index.read_bytes()
    for wrong in (whole[:-1], b"", whole[:-1] + b"x", b"\x80\x04N.", b"\xff" * 100):
        index.write_bytes(wrong)
        edit_manifest(packed, index_sha256=hashlib.sha256(wrong).hexdigest())
        if wrong != whole[:-1] + b"x":  # valid, but an image's digest is wrong
            with pytest.raises(DataError, match="is not a valid index"):
                folder.read_dataset(packed)
    index.unlink()
    with pytest.raises(DataError, match="No such file"):
        folder.read_dataset(packed)


def test_tars_without_our_index_are_not_taken_for_a_dataset(tmp_path):
    (tmp_path / "foreign").mkdir()
    with tarfile.open(tmp_path / "foreign" / "train-000000.tar", "w") as tar:
        link = tarfile.TarInfo("a.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
        tar.addfile(tarfile.TarInfo("/tmp/evil.jpg"), io.BytesIO())
    with pytest.raises(
        DataError, match=r"No images in .*Tar files need the index that resnet shard writes"
    ):
        folder.read_dataset(tmp_path / "foreign")


def test_the_index_is_compact(tmp_path):
    """At 400 bytes per image, an index of a million images takes 0.4 GB while it is read."""
    count = 50_000
    paths = Paths(
        f"train/n{row // 1000:08d}/n{row // 1000:08d}_{row:08d}.JPEG" for row in range(count)
    )
    text, lengths = paths.to_buffers()
    arrays = {
        "paths": text,
        "lengths": lengths.astype(np.uint16),
        "offsets": np.arange(count, dtype=np.uint64) * 1024 + 512,
        "sizes": np.full(count, 512, np.uint32),
        "sha256": np.zeros((count, 32), np.uint8),
        "by_path": np.arange(count, dtype=np.uint32),
    }
    (tmp_path / "index.safetensors").write_bytes(safetensors.numpy.save(arrays))
    classes = tuple(f"n{i:08d}" for i in range(50))
    shards.Manifest(
        "many",
        classes,
        {"train": dict.fromkeys(classes, 1000)},
        shards=(shards.Shard("train-000000.tar", count, 1024 * count + 1024, "0" * 64),),
        index_sha256=hashlib.sha256((tmp_path / "index.safetensors").read_bytes()).hexdigest(),
    ).write(tmp_path / "shards.json")
    with (tmp_path / "train-000000.tar").open("wb") as file:
        file.truncate(1024 * count + 1024)  # sparse: takes no space
    del arrays, paths, text, lengths
    tracemalloc.start()
    try:
        dataset = folder.read_dataset(tmp_path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        shards._load.cache_clear()
    assert len(dataset.splits["train"]) == count
    assert peak < 400 * count
    assert shards.open_shards(tmp_path).find("train/n00000049/n00000049_00049999.JPEG") == 49_999
    shards._load.cache_clear()


def test_the_manifest_is_a_small_readable_file(packed):
    values = json.loads((packed / "shards.json").read_text())
    assert values["format_version"] == shards.FORMAT_VERSION == 1
    assert (values["name"], values["images"]) == ("parts", 54)
    assert values["classes"] == ["blue", "green", "red"]
    counts = {"train": dict.fromkeys(values["classes"], 12)}
    assert values["splits"] == counts | {"val": dict.fromkeys(values["classes"], 6)}
    assert [shard["name"] for shard in values["shards"]] == ["train-000000.tar", "val-000000.tar"]
    assert set(values["shards"][0]) == {field.name for field in dataclasses.fields(shards.Shard)}
