"""Answers for batches from a table equal the predictor's."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import resnetkit
from resnetkit.errors import RecipeError
from resnetkit.models.weights import modelfile
from resnetkit.scale import BatchPredictor

pa = pytest.importorskip("pyarrow", reason="bulk prediction needs the extra ray")
pd = pytest.importorskip("pandas", reason="bulk prediction needs the extra ray")


@pytest.fixture
def paths(flat_folder, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"not an image")
    return [*map(str, sorted(flat_folder.rglob("*.png"))[:5]), str(tmp_path / "bad.png")]


@pytest.fixture
def predictor(tiny_model):
    return BatchPredictor(tiny_model, top_k=2, engine="eager", precision="fp32", device="cpu")


@pytest.fixture
def expected(tiny_model, paths):
    answers = resnetkit.load(tiny_model, "cpu", engine="eager")(paths, top_k=2)
    rows = [answer.to_dict() for answer in answers]
    assert [row["error"] is None for row in rows] == [True] * 5 + [False]
    return [{k: v for k, v in row.items() if k != "source"} for row in rows]


def answers_in(rows):
    return [{k: v for k, v in row.items() if k not in ("id", "path", "photo")} for row in rows]


def values(column):
    """Return a data frame column's values, with None for each NaN."""
    return [None if pd.isna(value) else value for value in column]


def test_a_table_a_frame_and_a_dict(predictor, paths, expected):
    table = pa.table({"id": list(range(6)), "path": paths})
    answered = predictor(table)
    assert answered.select(["id", "path"]) == table
    assert answers_in(answered.to_pylist()) == expected

    frame = predictor(table.to_pandas().set_index("id"))
    assert frame.index.tolist() == list(range(6))
    assert frame["path"].tolist() == paths
    assert values(frame["class"]) == [row["class"] for row in expected]
    assert values(frame["error"]) == [row["error"] for row in expected]
    assert frame["top"].tolist() == [row["top"] for row in expected]

    arrays = predictor({"id": np.arange(6), "path": np.array(paths, object)})
    assert arrays["id"].tolist() == list(range(6))
    for name in ("class", "top", "error", "model", "probability"):
        assert arrays[name].shape == (6,)
        assert arrays[name].tolist() == [row[name] for row in expected]


def test_columns_of_the_caller_are_not_overwritten(predictor, paths):
    columns = {"path": paths, "class": ["mine"] * 6, "model": ["mine"] * 6}
    for batch in (columns, pd.DataFrame(columns), pa.table(columns)):
        with pytest.raises(RecipeError, match=r"written to: class, model\. Rename them first"):
            predictor(batch)
    assert len(predictor({"path": np.array(paths, object), "set": np.arange(6)})["class"]) == 6


def test_bytes_and_missing_images(predictor, paths, expected):
    photos = [Path(path).read_bytes() for path in paths]
    answered = replace(predictor, column="photo")(pa.table({"photo": [None, *photos]})).to_pylist()
    assert answered[0]["class"] is None
    assert answered[0]["error"] == "no image in this row"
    assert answers_in(answered[1:6]) == expected[:5]
    assert answered[6]["error"] is not None
    frame = pd.DataFrame({"path": [float("nan"), paths[0], f"file://{paths[0]}", "ftp://b/a.jpg"]})
    errors = values(predictor(frame)["error"])
    assert errors[:3] == ["no image in this row", None, None]
    assert "ftp://b/a.jpg cannot be read" in errors[3]


def test_it_can_be_pickled_and_maps_iterators_of_frames(predictor, paths, expected):
    copy = pickle.loads(pickle.dumps(predictor))
    frames = (pd.DataFrame({"path": paths[i : i + 2]}) for i in (0, 2, 4))
    answered = pd.concat(copy.map_pandas(frames))
    assert values(answered["class"]) == [row["class"] for row in expected]


def test_columns_that_are_requested(trained, paths):
    model = trained / "model.safetensors"
    plain = BatchPredictor(model).answer_schema().names
    assert plain == ["class", "probability", "top", "model", "error"]
    predictor = BatchPredictor(model, coverage=0.8, false_alarms=0.2, device="cpu", many=False)
    found = predictor.answer(paths[:2]).to_pylist()
    asked = resnetkit.load(model, "cpu")(paths[:2], coverage=0.8, false_alarms=0.2)
    assert [row["set"] for row in found] == [list(answer.class_set) for answer in asked]
    assert [row["strangeness"] for row in found] == [answer.strangeness for answer in asked]
    with pytest.raises(ValueError, match="coverage"):
        replace(predictor, coverage=1.5).check()


def test_class_names_that_are_not_utf8(trained, paths, tmp_path):
    model, header = modelfile.read(trained / "model.safetensors")
    header = replace(header, classes=tuple(f"{name}\udce9" for name in header.classes))
    modelfile.write(tmp_path / "m.safetensors", model.state_dict(), header)
    predictor = BatchPredictor(tmp_path / "m.safetensors", coverage=0.8, device="cpu", many=False)
    found = predictor.answer(paths[:1]).to_pylist()[0]
    answer = resnetkit.load(trained / "model.safetensors", "cpu")(paths[0], coverage=0.8)
    assert found["class"] == f"{answer.class_name}\\udce9"
    assert [ranked["class"] for ranked in found["top"]] == [f"{n}\\udce9" for n, _ in answer.top]
    assert found["set"] == [f"{name}\\udce9" for name in answer.class_set]


def test_threads_are_those_of_the_caller(tiny_model, paths):
    """Run in a separate process, because the number of compute threads is process-wide."""
    code = (
        "import sys, torch\nfrom resnetkit.scale import BatchPredictor\n"
        "rows = BatchPredictor(sys.argv[1], threads=3, device='cpu').answer(sys.argv[2:])\n"
        "print(torch.get_num_threads(), rows['class'].null_count)"
    )
    command = [sys.executable, "-c", code, tiny_model, *paths]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["3", "1"]


def test_an_exported_file_needs_no_torch(tiny_model, paths, tmp_path):
    pytest.importorskip("onnxruntime", reason="exported files need onnxruntime")
    pytest.importorskip("onnxscript", reason="exporting needs onnxscript")
    from resnetkit.export.export import export

    file = tmp_path / "tiny.onnx"
    export(tiny_model, "onnx", file, golden="made")
    code = (
        "import sys, json\nfrom resnetkit.scale import BatchPredictor\n"
        "rows = BatchPredictor(sys.argv[1], top_k=2, threads=1).answer(sys.argv[2:]).to_pylist()\n"
        "print(json.dumps([rows, 'torch' in sys.modules]))"
    )
    command = [sys.executable, "-c", code, file, *paths]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    rows, has_torch = json.loads(done.stdout)
    assert not has_torch
    answers = resnetkit.ExportedPredictor(file, threads=1)(paths, top_k=2)
    for row, answer in zip(rows, answers, strict=True):
        wanted = answer.to_dict()
        assert {name: wanted[name] for name in row} == row
