from __future__ import annotations

import csv
import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.neighbors import NearestNeighbors

import resnetkit
from resnetkit import ImageIndex
from resnetkit.data.shard_writer import write_shards
from resnetkit.errors import DataError
from resnetkit.inference.embeddings import EmbeddingsFile
from resnetkit.inference.images import Unreadable
from resnetkit.inference.similar_page import write_similar_page
from resnetkit.inference.similar_rows import format_similar, format_similar_header
from resnetkit.models.weights import modelfile


@pytest.fixture(scope="module")
def predictor(trained):
    return resnetkit.load(trained / "model.safetensors", "cpu", precision="fp32")


@pytest.fixture(scope="module")
def photos(trained):
    return [str(path) for path in sorted((trained.parent / "data").rglob("*.png"))]


@pytest.fixture(scope="module")
def index(predictor, photos):
    return ImageIndex.from_images(predictor, photos)


def test_as_scikit_learn_on_the_predictors_features(predictor, photos, index):
    features = np.stack([p.features for p in predictor.stream(photos, features=True)])
    assert index.features.tolist() == features.tolist()
    search = NearestNeighbors(n_neighbors=6, metric="cosine", algorithm="brute")
    distances, expected = search.fit(features.astype(np.float64)).kneighbors()
    answers = list(index.find(predictor, photos, k=6))
    assert [answer.source for answer in answers] == photos
    for answer, row, distance in zip(answers, expected, distances, strict=True):
        assert [n.path for n in answer.neighbors] == [photos[i] for i in row]
        similarities = [n.similarity for n in answer.neighbors]
        np.testing.assert_allclose(similarities, 1 - distance, rtol=0, atol=1e-7)
        assert not any(n.is_copy for n in answer.neighbors)


def test_labels_are_folders_or_given(predictor, photos, index):
    assert index.labels == [path.split("/")[-2] for path in photos]
    own = ImageIndex.from_images(predictor, photos[:3], ["x", "y", "z"])
    assert own.labels == ["x", "y", "z"]
    (answer,) = own.find(predictor, photos[1], k=2)
    assert answer.label == "blue"
    assert {n.label for n in answer.neighbors} == {"x", "z"}


def test_a_link_is_the_same_file_and_a_copy_is_named(predictor, photos, tmp_path):
    shutil.copy(photos[0], tmp_path / "copy.png")
    (tmp_path / "link.png").symlink_to(photos[0])
    os.link(tmp_path / "copy.png", tmp_path / "zz hard link.png")
    paths = [*photos[:4], *sorted(map(str, tmp_path.iterdir()))]
    index = ImageIndex.from_images(predictor, paths)
    assert list(index.sources) == [*photos[:4], str(tmp_path / "copy.png")]
    assert index.repeated == 2
    for query in (photos[0], tmp_path / "link.png"):
        (answer,) = index.find(predictor, [query], k=5)
        assert len(answer.neighbors) == 4  # the query itself is left out
        first = answer.neighbors[0]
        assert (first.path, first.is_copy) == (str(tmp_path / "copy.png"), True)
        assert first.similarity == pytest.approx(1, abs=1e-6)
        assert not any(n.is_copy for n in answer.neighbors[1:])


def test_photos_in_shards(predictor, photos, index, tmp_path, monkeypatch):
    data = Path(photos[0]).parents[1]
    shutil.copytree(data, tmp_path / "data")
    shutil.copy(photos[0], tmp_path / "data" / "blue" / "copy.png")
    write_shards(tmp_path / "data", tmp_path / "packed")
    packed = [
        str(tmp_path / "packed" / path.relative_to(tmp_path / "data"))
        for path in sorted((tmp_path / "data").rglob("*.png"))
    ]
    first = str(tmp_path / "packed" / Path(photos[0]).relative_to(data))
    copy = str(tmp_path / "packed" / "blue" / "copy.png")
    in_shards = ImageIndex.from_images(predictor, [*packed, first])
    assert list(in_shards.sources) == packed
    assert in_shards.repeated == 1
    monkeypatch.chdir(tmp_path)
    for query, paths in (
        (first, {copy}),
        (os.path.relpath(first), {copy}),
        (photos[0], {copy, first}),
        (Path(photos[0]).read_bytes(), {copy, first}),
    ):
        (answer,) = in_shards.find(predictor, [query], k=4)
        assert {n.path for n in answer.neighbors if n.is_copy} == paths
        assert (first in [n.path for n in answer.neighbors]) == (first in paths)
    file = write_embeddings(tmp_path / "a.npz", in_shards, predictor.digest)
    assert ImageIndex.from_file(file, predictor).notes == ()
    gone = replace(in_shards, sources=[*packed[:-1], packed[-1] + "x"])
    (note,) = gone.notes
    assert "names 1 photo that does not exist" in note


def test_objects_are_identified_by_their_url(predictor, index):
    urls = [f"s3://bucket/photos/{i}.png" for i in range(len(index))]
    remote = replace(index, sources=urls)
    assert remote.notes == ()
    assert remote.position(urls[3]) == 3
    assert remote.position("s3://bucket/photos/x.png") == -1


def test_images_in_memory(predictor, photos, index):
    data = Path(photos[7]).read_bytes()
    with Image.open(photos[7]) as picture:
        from_bytes, from_pixels = index.find(predictor, [data, picture], k=1)
    assert from_bytes.source == "<bytes>"
    assert from_bytes.label == ""
    assert [n.path for n in from_bytes.neighbors] == [photos[7]]
    assert from_bytes.neighbors[0].is_copy
    assert from_pixels.neighbors[0].path == photos[7]
    assert not from_pixels.neighbors[0].is_copy  # an array has no file bytes to compare


def test_unreadable_images_are_named_and_labels_stay_with_their_photos(predictor, photos, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    sources = [Unreadable("empty", "empty: no images"), *photos[:2], str(tmp_path / "broken.png")]
    index = ImageIndex.from_images(predictor, [*sources, photos[30]], ["e", "a", "b", "c", "d"])
    assert list(index.sources) == [*photos[:2], photos[30]]
    assert index.labels == ["a", "b", "d"]
    assert [source for source, _ in index.errors] == ["empty", str(tmp_path / "broken.png")]
    assert "broken.png: holds text" in index.errors[1][1]
    broken, fine = index.find(predictor, [tmp_path / "broken.png", photos[5]], k=2)
    assert "holds text" in broken.error
    assert broken.neighbors == ()
    assert fine.error is None
    assert len(fine.neighbors) == 2


def test_an_index_of_nothing_is_an_error(predictor, tmp_path):
    with pytest.raises(DataError, match="No photo could be read: x: no images"):
        ImageIndex.from_images(predictor, [Unreadable("x", "x: no images")])
    with pytest.raises(DataError, match=r"No photo could be read$"):
        ImageIndex.from_images(predictor, [])
    with pytest.raises(DataError, match="several images, such as a list of paths; got 'photos'"):
        ImageIndex.from_images(predictor, "photos")


def test_the_results_do_not_depend_on_how_many_queries_come_at_once(
    predictor, photos, index, monkeypatch
):
    whole = [a.to_dict() for a in index.find(predictor, photos, k=3)]
    monkeypatch.setattr("resnetkit.inference.similar.QUERIES_AT_ONCE", 7)
    assert [a.to_dict() for a in index.find(predictor, iter(photos), k=3)] == whole


def write_embeddings(path, index, model):
    with EmbeddingsFile(path, model) as file:
        for source, features in zip(index.sources, index.features, strict=True):
            file.add(source, features)
    return path


def test_a_file_of_embeddings_replaces_the_photos(predictor, photos, index, tmp_path):
    path = write_embeddings(tmp_path / "a.npz", index, predictor.digest)
    read = ImageIndex.from_file(path, predictor)
    assert read.notes == ()
    assert read.labels == index.labels
    expected = [a.to_dict() for a in index.find(predictor, photos[:9])]
    assert [a.to_dict() for a in read.find(predictor, photos[:9])] == expected


def test_a_file_of_another_model_is_refused(predictor, index, tmp_path):
    path = write_embeddings(tmp_path / "a.npz", index, "0123456789ab")
    with pytest.raises(DataError, match=r"written with model 0123456789ab.*--embeddings NEW\.npz"):
        ImageIndex.from_file(path, predictor)
    np.savez(tmp_path / "b.npz", features=np.ones((2, 3), np.float32), sources=["a", "b"])
    with pytest.raises(DataError, match=r"has 3 numbers per image, but .* computes 32"):
        ImageIndex.from_file(tmp_path / "b.npz", predictor)
    np.savez(tmp_path / "c.npz", features=np.ones((2, 32), np.float32), sources=["a", "b"])
    old = ImageIndex.from_file(tmp_path / "c.npz", predictor)
    assert "does not say which model wrote it" in old.notes[0]
    assert "names 2 photos that do not exist relative to this folder, such as a" in old.notes[1]
    write_embeddings(tmp_path / "d.npz", old, "")
    with EmbeddingsFile(tmp_path / "e.npz", predictor.digest):
        pass
    with pytest.raises(DataError, match="has no rows"):
        ImageIndex.from_file(tmp_path / "e.npz", predictor)


@pytest.mark.parametrize(
    "content",
    [
        {"features": np.ones((2, 3))},
        {"features": np.ones((2, 3)), "sources": ["one"]},
        {"features": np.ones(3), "sources": ["a", "b", "c"]},
        {"features": np.array([["x"]]), "sources": ["a"]},
        {"features": np.array([[None]], object), "sources": ["a"]},
    ],
)
def test_other_npz_files_are_refused(predictor, tmp_path, content):
    np.savez(tmp_path / "a.npz", **content)
    with pytest.raises(DataError, match=r"expected a file that `resnet predict --embeddings"):
        ImageIndex.from_file(tmp_path / "a.npz", predictor)


@pytest.mark.parametrize("damage", ["missing", "empty", "text", "npy", "cut"])
def test_damaged_files_are_refused(predictor, index, tmp_path, damage):
    path = write_embeddings(tmp_path / "a.npz", index, predictor.digest)
    if damage == "npy":
        np.save(tmp_path / "b.npy", index.features)
        (tmp_path / "b.npy").rename(path)
    data = path.read_bytes()
    path.unlink()
    if damage != "missing":
        changed = {"empty": b"", "text": b"hello", "cut": data[: len(data) // 2]}
        path.write_bytes(changed.get(damage, data))
    with pytest.raises(DataError, match=r"a\.npz cannot be read"):
        ImageIndex.from_file(path, predictor)


def test_a_network_without_a_head(trained, photos, tmp_path):
    """The features are the input to the last layer, so the head does not matter."""
    model, header = modelfile.read(trained / "model.safetensors")
    tensors = {k: v for k, v in model.state_dict().items() if not k.startswith("fc.")}
    options = {**header.options, "num_classes": 0}
    bare = modelfile.Header(header.architecture, options, (), header.preprocessing)
    modelfile.write(tmp_path / "bare.safetensors", tensors, bare)
    found = []
    for file in (tmp_path / "bare.safetensors", trained / "model.safetensors"):
        predictor = resnetkit.load(file, "cpu", precision="fp32")
        index = ImageIndex.from_images(predictor, photos)
        answers = index.find(predictor, photos[:5])
        found.append([(n.path, n.similarity) for answer in answers for n in answer.neighbors])
    assert found[0] == found[1]


@pytest.fixture
def answers(predictor, photos, index, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    shutil.copy(photos[0], tmp_path / "<b>.png")
    queries = [str(tmp_path / "<b>.png"), str(tmp_path / "broken.png"), photos[25]]
    return list(index.find(predictor, queries, k=3))


def test_json_lines(answers, photos, predictor):
    rows = [json.loads(format_similar(answer, "jsonl")) for answer in answers]
    assert list(rows[0]) == ["source", "neighbors", "model", "error"]
    assert rows[0]["neighbors"][0] == {
        "path": photos[0],
        "label": "blue",
        "similarity": pytest.approx(1, abs=1e-6),
        "copy": True,
    }
    assert rows[1]["neighbors"] == []
    assert "holds text" in rows[1]["error"]
    assert {row["model"] for row in rows} == {predictor.digest}


def test_csv(answers, photos):
    text = format_similar_header("csv") + "".join(format_similar(a, "csv") for a in answers)
    rows = list(csv.DictReader(text.splitlines()))
    assert [row["rank"] for row in rows] == ["1", "2", "3", "", "1", "2", "3"]
    assert rows[0]["path"] == photos[0]
    assert [row["copy"] for row in rows] == ["1", "0", "0", "", "0", "0", "0"]
    assert float(rows[6]["similarity"]) == answers[2].neighbors[2].similarity
    assert "holds text" in rows[3]["error"]


def test_table(answers, photos):
    assert format_similar_header("table") == ""
    lines = "".join(format_similar(a, "table") for a in answers).splitlines()
    assert lines[0] == answers[0].source
    assert re.fullmatch(rf"   1   1\.0000  {re.escape(photos[0])}  \(the same bytes\)", lines[1])
    assert lines[4].startswith(f"{answers[1].source}  ERROR  ")
    assert [line[:4] for line in lines[6:]] == ["   1", "   2", "   3"]


def test_the_page_shows_every_query_and_loads_nothing(
    answers, predictor, photos, index, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    write_similar_page(
        tmp_path / "page.html", predictor, index, answers=answers, photos=str(tmp_path / "<i>")
    )
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.count('<img src="data:image/jpeg;base64,') == 2 + 2 * 3
    assert page.count("the image is no longer available") == 1  # the broken query
    assert "holds text" in page
    assert page.count("the same bytes as the query") == 1
    assert "&lt;b&gt;.png" in page
    assert "<b>.png" not in page
    assert "&lt;i&gt;" in page
    assert not re.search(r"(src|href)=\"(?!data:)", page)
    assert str(tmp_path) not in page
