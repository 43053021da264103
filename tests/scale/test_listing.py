"""What sources expand to: images, their versions, and blocks of bounded size."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from resnetkit.cli.sources import expand_sources
from resnetkit.errors import RecipeError
from resnetkit.inference.images import Unreadable
from resnetkit.scale import listing
from resnetkit.scale.listing import Item, cut_blocks, list_items, open_block

pa = pytest.importorskip("pyarrow", reason="bulk prediction needs the extra ray")
parquet = pytest.importorskip("pyarrow.parquet", reason="bulk prediction needs the extra ray")


def listed(*arguments):
    return list(list_items(map(str, arguments), expand_sources))


def opened(items):
    return [image for block in cut_blocks(items, set()) for image in open_block(block)]


@pytest.fixture
def photos(flat_folder):
    return [str(path) for path in sorted(flat_folder.rglob("*.png"))]


def test_files_folders_and_lists_are_those_of_predict(flat_folder, photos, tmp_path):
    (tmp_path / "list.txt").write_text("\n".join(photos[:3]))
    arguments = [str(flat_folder), f"@{tmp_path}/list.txt", "gone.png", str(tmp_path / "none*")]
    items = listed(*arguments)
    assert [item.image for item in items] == list(expand_sources(arguments))
    status = os.stat(photos[0])
    assert items[0].version == f"{status.st_size}-{status.st_mtime_ns}"
    assert items[0].size == status.st_size
    assert items[-2] == Item("gone.png", "", 0, "gone.png")
    assert isinstance(items[-1].image, Unreadable)


def test_urls(tmp_path, photos):
    spaced = tmp_path / "two words.png"
    spaced.write_bytes(b"")
    assert [item.source for item in listed(f"file://{tmp_path}/two%20words.png")] == [str(spaced)]
    for url in ("https://host/a.jpg", "file://host/a.jpg"):
        with pytest.raises(RecipeError, match="cannot be read"):
            listed(url)
    for url in ("s3://bucket/photos.parquet", "gs://bucket/photos.parquet#image"):
        with pytest.raises(RecipeError, match="Copy the file"):
            listed(url)


def test_images_in_shards_have_the_version_of_their_manifest(flat_folder, tmp_path):
    from resnetkit.data.shard_writer import write_shards

    write_shards(flat_folder, tmp_path / "shards")
    items = listed(tmp_path / "shards")
    assert len(items) == 48
    assert {item.version.startswith("shards-") for item in items} == {True}
    assert len({item.version for item in items}) == 1


def test_parquet_with_paths(photos, tmp_path):
    file = tmp_path / "p.parquet"
    parquet.write_table(pa.table({"path": [*photos, None], "other": range(49)}), file)
    items = listed(file)
    assert [item.source for item in items[:-1]] == photos
    assert items[0].version == listed(photos[0])[0].version
    assert items[-1].image == Unreadable(str(file), f"{file}: a row has no path")


@pytest.mark.parametrize("kind", ["bytes", "struct"])
def test_parquet_with_bytes(photos, tmp_path, kind):
    contents = [Path(path).read_bytes() for path in photos]
    values = [*contents] if kind == "bytes" else [{"bytes": c, "path": "x"} for c in contents]
    values[7] = None if kind == "bytes" else {"bytes": None, "path": "x"}
    contents[7] = None
    (tmp_path / "in").mkdir()
    table = pa.table({"id": range(48), "jpeg": values})
    parquet.write_table(table, tmp_path / "in" / "a.parquet", row_group_size=10)
    parquet.write_table(table.slice(0, 5), tmp_path / "in" / "b.parquet")
    (tmp_path / "in" / "_note.parquet").write_bytes(b"not data")
    items = listed(f"{tmp_path}/in#jpeg")
    places = (("a", 46), ("a", 47), ("b", 0), ("b", 1))
    names = [f"{tmp_path}/in/{file}.parquet#jpeg:{row}" for file, row in places]
    assert [item.source for item in items[46:50]] == names
    assert opened(items) == contents + contents[:5]
    some = [items[i] for i in (3, 4, 29, 30, 47, 50)]  # the other images already have rows
    assert opened(some) == [*(contents[i] for i in (3, 4, 29, 30, 47)), contents[2]]


def test_which_column(photos, tmp_path):
    file = tmp_path / "p.parquet"
    parquet.write_table(pa.table({"path": photos[:1], "bytes": [b"1"], "id": [1]}), file)
    assert listed(file)[0].column == "bytes"
    assert listed(f"{file}#path")[0].source == photos[0]
    with pytest.raises(RecipeError, match=r"has no column photo.*it has path, bytes, id"):
        listed(f"{file}#photo")
    with pytest.raises(RecipeError, match="must hold paths or bytes; it holds int64"):
        listed(f"{file}#id")
    with pytest.raises(RecipeError, match="there is no Parquet file"):
        listed(f"{tmp_path}/gone.parquet#path")
    file.write_bytes(b"PAR1")
    assert "is not a readable Parquet file" in listed(file)[0].image.error


def test_two_columns_of_a_file_are_different_images(tmp_path):
    file = tmp_path / "p.parquet"
    parquet.write_table(pa.table({"a": [b"1", b"2"], "bytes": [b"3", b"4"]}), file)
    items = listed(f"{file}#a", file, f"{file}#bytes")
    sources = [f"{file}#a:0", f"{file}#a:1", f"{file}:0", f"{file}:1"]
    assert [item.source for item in items] == [*sources, *sources[2:]]  # the same as without #bytes
    assert opened(items) == [b"1", b"2", b"3", b"4"]


def test_folders_that_other_programs_hide_are_not_read(photos, tmp_path):
    files = ["_made/part-0", "_made/a/part-0", "_made/_temporary/0/part-0", "_made/a/.old/part-0"]
    for file, photo in zip(files, photos, strict=False):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(pa.table({"path": [photo]}), tmp_path / f"{file}.parquet")
    assert [item.source for item in listed(tmp_path / "_made")] == [photos[1], photos[0]]


def test_a_folder_of_images_with_a_parquet_file_is_a_folder_of_images(flat_folder, photos):
    parquet.write_table(pa.table({"path": photos[:1]}), flat_folder / "labels.parquet")
    assert [item.source for item in listed(flat_folder)] == photos
    assert [item.source for item in listed(f"{flat_folder}#path")] == photos[:1]


def test_blocks_are_bounded_by_bytes(monkeypatch):
    monkeypatch.setattr(listing, "BLOCK_BYTES", 100)
    monkeypatch.setattr(listing, "LEAST_BYTES", 10)
    sizes = [90, 5, 1, 500, 40, 40, 40, *[1] * 12]
    items = [Item(f"{i}", "", size, f"{i}") for i, size in enumerate(sizes)]
    blocks = [block["number"].to_pylist() for block in cut_blocks(items, set())]
    assert blocks == [[0, 1], [2, 3], [4, 5, 6], list(range(7, 17)), [17, 18]]


def test_an_image_has_one_row():
    a, b = Item("a", "1", 1, "a"), Item("b", "1", 1, "b")
    changed = Item("a", "2", 1, "a")
    seen: set[bytes] = set()
    (block,) = cut_blocks([a, b, a], seen)
    assert block["source"].to_pylist() == ["a", "b"]
    (block,) = cut_blocks([b, changed, a], seen)
    assert block["version"].to_pylist() == ["2"]
    assert list(cut_blocks([a, b, changed], seen)) == []


def test_bytes_and_names_that_are_not_text():
    name = os.fsdecode(b"caf\xe9.png")
    images = (b"12", name, Unreadable("folder", "empty"))
    items = list(list_items(["-"], lambda arguments: iter(images)))
    assert opened(items) == [b"12", name, Unreadable("folder", "empty")]
    assert [item.source for item in items] == ["<bytes>", "caf\\udce9.png", "folder"]
