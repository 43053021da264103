"""Which epoch's model a run keeps, and how its folder is read."""

import shutil

import numpy as np
import pytest

from resnetkit.errors import ModelFileError
from resnetkit.report.record import kept_epoch, read_record, replaces_kept


def keep(accuracies, images):
    """Return the kept epoch, from 0, of a run with these validation accuracies."""
    history = []
    for number, accuracy in enumerate(accuracies):
        row = {"epoch": number, "val_accuracy": accuracy, "val_loss": 1.0}
        is_kept = replaces_kept([*history, row], images)
        history.append({**row, "kept": int(is_kept)})
    return kept_epoch(history)["epoch"]


def standard_error(accuracy, images):
    """Return the standard error of an accuracy by Agresti and Coull.

    It counts two more correct and two more wrong answers.
    """
    outcomes = [1] * (round(accuracy * images) + 2) + [0] * (round((1 - accuracy) * images) + 2)
    return np.std(outcomes) / np.sqrt(len(outcomes))


@pytest.mark.parametrize("images", [1, 20, 153, 10_000])
def test_it_is_the_last_within_two_standard_errors_of_the_highest_of_all(images):
    rng = np.random.default_rng(images)
    for _ in range(50):
        accuracies = rng.integers(0, images + 1, 30) / images
        highest = accuracies.max()
        lowest = highest - 2 * standard_error(highest, images)
        assert keep(accuracies.tolist(), images) == np.flatnonzero(accuracies >= lowest)[-1]


def test_of_153_photos_eight_more_errors_are_chance_and_ten_are_not():
    # With 130 of 153 correct, the standard error is 2.9 percentage points, or 4.5 photos.
    assert keep([100 / 153, 130 / 153, 122 / 153], 153) == 2
    assert keep([100 / 153, 130 / 153, 120 / 153], 153) == 1


def test_after_a_perfect_epoch_two_errors_are_chance_and_six_are_not():
    assert keep([0.9, 1.0, 0.98], 100) == 2
    assert keep([0.9, 1.0, 0.94], 100) == 1


def test_without_validation_the_last_is_kept():
    assert replaces_kept([{"epoch": 1, "train_loss": 1.0}], 0)


def test_runs_of_version_0_1_kept_the_highest():
    history = [
        {"epoch": 1, "val_accuracy": 0.5, "val_loss": 1.0},
        {"epoch": 2, "val_accuracy": 0.7, "val_loss": 1.2},
        {"epoch": 3, "val_accuracy": 0.7, "val_loss": 1.1},
        {"epoch": 4, "val_accuracy": 0.6, "val_loss": 0.9},
    ]
    assert kept_epoch(history)["epoch"] == 3


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("environment.json", b""),
        ("environment.json", b"\xff{}"),
        ("environment.json", b"[]"),
        ("environment.json", b"{}"),
        ("metrics.json", b'{"accuracy": 0.5'),
        ("metrics.json", b"3"),
        ("history.csv", b"epoch,train_loss\n1,"),
        ("history.csv", b"epoch,train_loss\n1"),
        ("history.csv", b"epoch,train_loss\n1,2,3"),
        ("history.csv", b"train_loss\n1"),
        ("history.csv", b"epoch,train_loss\n1,\xff"),
        ("history.csv", b'epoch,train_loss\n1,"2'),
    ],
)
def test_a_damaged_file_of_a_run_is_named(trained, tmp_path, name, content):
    run = shutil.copytree(trained, tmp_path / "run")
    assert read_record(run).history == read_record(trained).history
    (run / name).write_bytes(content)
    with pytest.raises(ModelFileError, match=f"{name} (is damaged|cannot be read): .*Restore"):
        read_record(run)
