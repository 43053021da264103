from __future__ import annotations

import json
import statistics

import pytest

from resnetkit.data import tree
from resnetkit.errors import Interrupted, OutputError, RecipeError
from resnetkit.training import seeds
from resnetkit.training.seeds import parse_seeds, train_seeds


def test_seeds_are_numbers_and_ranges():
    assert parse_seeds("0-4") == [0, 1, 2, 3, 4]
    assert parse_seeds("3, 1,7-8") == [3, 1, 7, 8]
    assert parse_seeds("3", fewest=1) == [3]
    for wrong in ("", "a", "1", "1,1", "4-0", "-3", "0-2,1", "0-99999999999"):
        with pytest.raises(RecipeError, match="--seeds takes"):
            parse_seeds(wrong)


def test_a_stopped_sweep_says_how_to_continue_all_of_it(flat_folder, small, tmp_path, monkeypatch):
    def stopped(*args, **settings):
        raise Interrupted("Stopped. To resume: resnet train --resume seed-0", 130)

    monkeypatch.setattr(seeds, "train", stopped)
    with pytest.raises(Interrupted, match="add --resume to the same command") as caught:
        train_seeds(flat_folder, seeds=[0, 3], out=tmp_path / "all", **small)
    assert caught.value.exit_code == 130


def test_a_run_for_each_seed_and_their_mean(flat_folder, small, tmp_path, capsys):
    settings = {**small, "epochs": 1}
    found = train_seeds(flat_folder, seeds=[0, 3], out=tmp_path / "all", **settings)
    assert [run.recipe.seed for run in found.runs] == [0, 3]
    assert [run.folder.name for run in found.runs] == ["seed-0", "seed-3"]
    assert found.runs[0].model.read_bytes() != found.runs[1].model.read_bytes()
    assert capsys.readouterr().err.count("\nnetwork ") == 1  # the plan is the same for all
    accuracies = [run.metrics["accuracy"] for run in found.runs]
    assert found.mean == statistics.mean(accuracies)
    assert found.deviation == statistics.stdev(accuracies)
    # Even among photos, the folder is not taken for a class.
    assert tree.output(str(tmp_path / "all")) == tree.OUTPUTS
    written = json.loads((tmp_path / "all" / "seeds.json").read_text())
    assert written == {
        "seeds": [0, 3],
        "accuracies": accuracies,
        "mean": found.mean,
        "deviation": found.deviation,
    }

    before = {run.folder: run.model.stat().st_mtime_ns for run in found.runs}
    again = train_seeds(flat_folder, seeds=[0, 3], out=tmp_path / "all", resume=True, **settings)
    assert {run.folder: run.model.stat().st_mtime_ns for run in again.runs} == before
    assert "is already finished" in capsys.readouterr().err
    with pytest.raises(OutputError):
        train_seeds(flat_folder, seeds=[0, 3], out=tmp_path / "all", **settings)
    with pytest.raises(RecipeError, match="not both"):
        train_seeds(flat_folder, seeds=[0, 3], **{**settings, "seed": 1})
    with pytest.raises(RecipeError, match=r"two or more different numbers; got \[3\]"):
        train_seeds(flat_folder, seeds=[3], **settings)
