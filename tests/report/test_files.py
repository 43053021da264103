from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from resnetkit import evaluate
from resnetkit.data import manifest
from resnetkit.data.folder import Split
from resnetkit.data.paths import LeftOut, Paths
from resnetkit.evaluation.evaluate import Evaluation
from resnetkit.evaluation.metrics import probabilities
from resnetkit.report import files
from resnetkit.storage import csv_text


def test_all_files_are_written_and_agree(trained, tmp_path):
    found = evaluate(trained / "model.safetensors", trained.parent / "data", "all")
    files.write_evaluation(found, tmp_path, trained / "model.safetensors")
    assert json.loads((tmp_path / "metrics.json").read_text()) == found.metrics
    with (tmp_path / "predictions.csv").open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert len(rows) == 60
    shares = probabilities(found.logits)
    for i, row in enumerate(rows):
        assert row["path"] == found.samples.paths[i]
        assert row["path"].split("/")[0] == row["truth"]
        assert row["prediction"] == found.classes[shares[i].argmax()]
        assert float(row["probability"]) == float(shares[i].max())
        true = shares[i, found.labels[i]].double()
        assert float(row["loss"]) == pytest.approx(float(-torch.log(true)), rel=1e-4, abs=1e-6)
    errors = sum(row["truth"] != row["prediction"] for row in rows)
    assert errors == found.metrics["errors"]
    with (tmp_path / "per_class.csv").open(newline="") as lines:
        classes = list(csv.DictReader(lines))
    assert [row["class"] for row in classes] == ["blue", "green", "red"]
    assert float(classes[1]["recall"]) == found.metrics["per_class"][1]["recall"]
    for name in ("confusion_matrix.png", "reliability.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_predictions_are_those_of_the_logits_where_probabilities_round_to_a_tie(tmp_path):
    samples = Split(Path(), Paths(["a.png"]), np.array([1], np.int32))
    logits = torch.tensor([[0, 1e-8]])
    files.write_predictions(
        Evaluation(samples, "val", ("a", "b"), logits, {}), tmp_path / "predictions.csv"
    )
    with (tmp_path / "predictions.csv").open(newline="") as lines:
        (row,) = csv.DictReader(lines)
    assert (row["truth"], row["prediction"], row["probability"]) == ("b", "b", "0.5")


FORMULAS = ["=1+1", "+rose", "-rose", "@rose", "\trose", "\rrose", "'=rose", "''-rose"]


def test_no_cell_is_a_formula_and_numbers_stay_numbers(tmp_path):
    plain = ["rose", "a=b", "'90s", "", "'"]
    rows = [[name, -0.5, 3] for name in [*FORMULAS, *plain]]
    files.write_rows(tmp_path / "x.csv", ["class", "slope", "count"], rows)
    with (tmp_path / "x.csv").open(newline="") as lines:
        cells = list(csv.reader(lines))[1:]
    assert [row[1:] for row in cells] == [["-0.5", "3"]] * len(rows)
    assert not [row[0] for row in cells if row[0].startswith(tuple("=+-@\t\r"))]
    assert [row[0] for row in cells] == [*(f"'{name}" for name in FORMULAS), *plain]
    assert [csv_text(row[0]) for row in cells] == [row[0] for row in rows]


def test_a_written_manifest_is_read_back_unchanged(tmp_path):
    paths = [f"{name}.png" for name in FORMULAS]
    rows = [[path, label, "train"] for path, label in zip(paths, FORMULAS, strict=True)]
    files.write_rows(tmp_path / "split.csv", ["path", "label", "split"], rows)
    found = manifest.read_manifest(tmp_path / "split.csv", tmp_path, left_out=LeftOut(), notes=[])
    assert {label: list(paths) for label, paths in found["train"].items()} == {
        name: [f"{name}.png"] for name in FORMULAS
    }


def test_rows_keep_paths_that_are_not_utf8(tmp_path):
    files.write_rows(tmp_path / "x.csv", ["path"], [["r\udcff.png"], ['a "quoted",\nname']])
    assert b"r\xff.png" in (tmp_path / "x.csv").read_bytes()
    with (tmp_path / "x.csv").open(newline="", errors="surrogateescape") as lines:
        assert [row["path"] for row in csv.DictReader(lines)] == [
            "r\udcff.png",
            'a "quoted",\nname',
        ]
