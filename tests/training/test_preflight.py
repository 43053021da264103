"""What the ranks of a run compare before they train."""

from __future__ import annotations

import shutil

import pytest
import torch

from resnetkit.data.folder import read_dataset
from resnetkit.data.shard_writer import write_shards
from resnetkit.errors import DataError, TrainingError
from resnetkit.runtime import Runtime
from resnetkit.training import preflight
from resnetkit.training.recipe import load_recipe
from resnetkit.training.run import RunFolder


class Two(Runtime):
    """The main rank of two. The other rank reports ``other``, or by default the same values."""

    def __init__(self, other=None, seconds=0.0):
        super().__init__(torch.device("cpu"), "fp32", 0, 2)
        object.__setattr__(self, "other", other or {})
        object.__setattr__(self, "seconds", seconds)

    def with_precision(self, wanted):
        return Runtime(self.device, self.precision).with_precision(wanted)

    def gather_objects(self, value):
        _, report = value
        return [("alpha", report), ("beta", {**report, **self.other})]

    def gather(self, numbers):
        return [list(numbers), [number + self.seconds for number in numbers]]


@pytest.fixture
def check(flat_folder, tmp_path):
    def check(runtime, recipe=None, is_resumed=False):
        preflight.check_hosts(
            read_dataset(flat_folder),
            recipe or load_recipe("fast").with_settings({"precision": "fp32"}),
            RunFolder(tmp_path / "runs" / "new"),
            runtime,
            given={"resume": False, "lr": 0.1},
            is_resumed=is_resumed,
        )

    return check


def test_hosts_with_the_same_pass(check, capsys, monkeypatch):
    monkeypatch.setattr(preflight, "LOW_DISK", 0)
    check(Two())
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("key", "ours", "theirs"),
    [("resume", False, True), ("lr", 0.1, 0.2), ("precision", "fp32", "bf16")],
)
def test_a_difference_names_the_hosts_and_what_to_do(check, key, ours, theirs):
    with pytest.raises(TrainingError) as raised:
        check(Two({key: theirs}))
    assert f"{key}: {ours} on alpha (rank 0); {theirs} on beta (rank 1)" in str(raised.value)
    assert "run the same command there" in str(raised.value)


def test_a_missing_weights_file_is_named_unless_a_state_is_resumed(check, tmp_path):
    weights = tmp_path / "weights.safetensors"
    recipe = load_recipe("fast").with_settings({"precision": "fp32", "weights": str(weights)})
    weights.write_bytes(b"1")
    other = {"weights": f"no file {weights}"}
    with pytest.raises(TrainingError, match=r"weights: SHA-256 6b86b273ff34 on alpha .*; no file"):
        check(Two(other), recipe)
    weights.unlink()
    check(Two(), recipe, is_resumed=True)


def test_clocks_and_a_full_disk_are_warnings(check, capsys, monkeypatch):
    check(Two(seconds=4))
    assert "clock" not in capsys.readouterr().err
    monkeypatch.setattr(preflight, "LOW_DISK", 2**80)
    check(Two(seconds=60))
    text = " ".join(capsys.readouterr().err.split())
    assert "Warning: the clock of alpha is 60 seconds behind that of beta." in text
    assert "MB is free in" in text


def test_the_description_of_images_follows_names_labels_and_sizes(flat_folder, tmp_path):
    texts = [preflight.describe_images(read_dataset(flat_folder))]
    file = flat_folder / "red" / "003.png"
    assert texts[0].startswith("48 (all), 3 classes, names ")
    file.write_bytes(file.read_bytes() + b"\0")
    texts.append(preflight.describe_images(read_dataset(flat_folder)))
    file.rename(flat_folder / "blue" / "100.png")
    texts.append(preflight.describe_images(read_dataset(flat_folder)))
    dataset = read_dataset(flat_folder)
    dataset.splits["all"].labels[0] = 2
    texts.append(preflight.describe_images(dataset))
    assert len(set(texts)) == 4
    names = [text.split(", sizes ")[0] for text in texts]
    assert names[0] == names[1]
    (flat_folder / "blue" / "000.png").unlink()  # after it was listed
    assert preflight.describe_images(dataset) not in texts


def test_copies_of_shards_are_the_same_and_changed_ones_are_not(flat_folder, tmp_path):
    write_shards(flat_folder, tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    file = flat_folder / "red" / "003.png"
    file.write_bytes(file.read_bytes() + b"\0")
    write_shards(flat_folder, tmp_path / "three")
    one, two, three = (
        preflight.describe_images(read_dataset(tmp_path / name)) for name in ("one", "two", "three")
    )
    assert one == two != three


def test_ranks_that_read_other_images_are_named():
    identity = {"recipe": {"lr": 0.1}, "data": {"train contents": "12ab", "classes": ["a", "b"]}}
    preflight.check_ranks_agree(identity, Two())
    with pytest.raises(DataError, match=r"data train contents: 12ab on alpha .*; 34cd on beta"):
        preflight.check_ranks_agree(identity, Two({"data train contents": "34cd"}))
