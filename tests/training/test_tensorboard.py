from __future__ import annotations

import subprocess
import sys

import pytest

from resnetkit import train
from resnetkit.errors import RecipeError


def test_tensorboard_reads_the_rows_of_the_history(flat_folder, small, tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = train(flat_folder, out=tmp_path / "run", tensorboard=True, **small)
    found = accumulator.EventAccumulator(str(run.folder / "tensorboard")).Reload()
    for tag, column in (("accuracy/val", "val_accuracy"), ("loss/train", "train_loss")):
        read = [(event.step, event.value) for event in found.Scalars(tag)]
        expected = [(row["epoch"], pytest.approx(row[column], rel=1e-6)) for row in run.history]
        assert read == expected


def test_without_tensorboard_the_error_says_what_to_install(tmp_path):
    code = (
        "import sys; sys.modules['torch.utils.tensorboard'] = None\n"
        "from resnetkit.training.tensorboard import TensorBoardLogger\n"
        f"TensorBoardLogger({str(tmp_path)!r})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert 'pip install "resnetkit[tensorboard]"' in done.stderr


def test_without_tensorboard_there_is_no_run_folder(flat_folder, small, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(RecipeError, match="TensorBoard is not installed"):
        train(flat_folder, out=tmp_path / "run", tensorboard=True, **small)
    assert not (tmp_path / "run").exists()
