"""Comparisons of networks, in a folder of runs that can be stopped and resumed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image

from resnetkit.data.folder import read_dataset
from resnetkit.data.transforms import normalize
from resnetkit.errors import OutputError, RecipeError
from resnetkit.models.weights import modelfile
from resnetkit.study import degradation, figures, runs, shortcuts
from resnetkit.study.runs import Net, Outcome

TINY = {"model_options": {"width": 4}, "epochs": 2, "batch_size": 12, "warmup": 0.0}
NETS = [Net("a", "cifar_plain20"), Net("b", "cifar_resnet20", {"shortcut": "B"})]


def compare(data, out, nets=NETS, seeds=(0,), minutes=None, **settings):
    return runs.compare(
        nets,
        str(data),
        out,
        recipe_name="study-digits",
        minutes=minutes,
        seeds=seeds,
        device="cpu",
        workers=0,
        settings={**TINY, **settings},
    )


def test_a_comparison_can_be_continued(split_folder, tmp_path, capfd):
    out = tmp_path / "out"
    comparison, found = compare(split_folder, out)
    assert capfd.readouterr().err.count("\nnetwork ") == 1  # one plan for all nets
    assert [(one.net, one.seed, len(one.val_errors)) for one in found] == [("a", 0, 2), ("b", 0, 2)]
    assert found[1].parameters > found[0].parameters  # the projections of option B
    assert (out / "b-seed0" / "model.safetensors").is_file()
    history = (out / "a-seed0" / "history.csv").read_text().splitlines()
    accuracy = float(history[-1].split(",")[history[0].split(",").index("train_accuracy")])
    assert found[0].train_errors[-1] == pytest.approx(1 - accuracy, abs=1e-6)

    stamps = {path: path.stat().st_mtime_ns for path in out.glob("*-seed0/metrics.json")}
    assert compare(split_folder, out)[1] == found
    assert stamps == {path: path.stat().st_mtime_ns for path in out.glob("*-seed0/metrics.json")}
    assert json.loads((out / "study.json").read_text())["recipe"]["epochs"] == 2
    deviations = degradation.response_deviations(comparison, found)
    assert [(one.net, len(one.values)) for one in deviations] == [("a", 19), ("b", 19)]
    assert degradation.table6(comparison, found, "cpu") is None
    figures.errors(found, [["a", "b"]], tmp_path / "e.svg")
    figures.responses(deviations, tmp_path / "r.svg")
    for name in ("e.svg", "r.svg"):
        assert (tmp_path / name).stat().st_size < 200_000

    with pytest.raises(OutputError, match=r"epochs 2, now 3.*--out"):
        compare(split_folder, out, epochs=3)
    for name in ("model", "seed"):
        with pytest.raises(RecipeError, match=f"--set {name}=... cannot be used in a study"):
            compare(split_folder, tmp_path / "other", **{name: "0"})
    for settings in ({"val_split": 0}, {"patience": 2}):
        with pytest.raises(RecipeError, match=r"A study compares .* (above 0|to null)"):
            compare(split_folder, tmp_path / "other", **settings)
    assert not (tmp_path / "other").exists()


def test_the_responses_of_gray_networks_are_measured_on_gray_images(split_folder, tmp_path):
    """The images are prepared as for training: cropped, with the recipe's range of values."""
    for path in split_folder.rglob("*.png"):
        with Image.open(path) as image:
            gray = np.asarray(image.convert("L")).astype(np.uint16) * 16
        Image.fromarray(gray).save(path)
    more = {"channels": 1, "resize_size": 20, "value_range": [0, 4095]}
    comparison, found = compare(split_folder, tmp_path / "out", nets=NETS[:1], **more)
    (deviations,) = degradation.response_deviations(comparison, found)
    network, header = modelfile.read(found[0].folder / "last.safetensors")
    assert network.conv1.in_channels == 1
    train = read_dataset(split_folder).splits["train"]
    pixels = [header.preprocessing.pixels(train.path(i)) for i in range(len(train))]
    crops = torch.stack([header.preprocessing.crop(each) for each in pixels])
    inputs = normalize(crops, header.preprocessing)
    expected = network.train().bn1(network.conv1(inputs)).std().item()
    assert deviations.values[0] == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
def test_seeds_and_nets_can_be_added(split_folder, tmp_path, capfd):
    out = tmp_path / "out"
    _, first = compare(split_folder, out, nets=NETS[:1])
    stamp = (out / "a-seed0" / "metrics.json").stat().st_mtime_ns
    _, more = compare(split_folder, out, seeds=(0, 4))
    assert [(one.net, one.seed) for one in more] == [("a", 0), ("a", 4), ("b", 0), ("b", 4)]
    assert more[0] == first[0]
    assert more[1].train_errors != first[0].train_errors
    assert (out / "a-seed0" / "metrics.json").stat().st_mtime_ns == stamp
    # A record of an earlier version, which also named nets and seeds, is continued.
    record = json.loads((out / "study.json").read_text())
    older = {**record, "seeds": [0], "recipe": {**record["recipe"], "model": "cifar_plain20"}}
    (out / "study.json").write_text(json.dumps(older))
    assert compare(split_folder, out, seeds=(4,))[1] == [more[1], more[3]]


def test_minutes_determine_the_epochs_once(split_folder, tmp_path, capfd):
    out = tmp_path / "out"
    comparison, _ = compare(split_folder, out, nets=NETS[:1], minutes=0.0001, epochs=9)
    assert comparison.recipe.epochs == runs.FEWEST_EPOCHS
    assert "so this will take longer" in capfd.readouterr().err
    # Another time budget, or a slower machine, does not change the comparison.
    again, _ = compare(split_folder, out, nets=NETS[:1], minutes=5, epochs=9)
    assert again.recipe.epochs == runs.FEWEST_EPOCHS
    two = tmp_path / "two"
    most, _ = compare(split_folder, two, nets=NETS[:1], minutes=5, epochs=5, batch_size=None)
    assert (most.recipe.epochs, most.recipe.batch_size) == (5, 16)  # one batch size for all nets


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="needs Unix signals")
def test_a_killed_study_resumes_to_the_same_result(split_folder, tmp_path):
    """Kill the command, then resume the study in this process, where PyTorch is loaded."""
    command = [
        *(sys.executable, "-m", "resnetkit", "study", "shortcuts", "--data", split_folder),
        *("--recipe", "study-digits", "--device", "cpu", "--workers", "0", "--seeds", "0"),
        *("--set", "model_options={width: 4}", "--set", "epochs=12", "--set", "batch_size=12"),
        *("--set", "warmup=0.0"),
    ]
    nets = shortcuts.nets("cifar_resnet20")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    compare(split_folder, whole, nets, epochs=12)
    process = subprocess.Popen(
        [*command, "--out", killed], stderr=subprocess.PIPE, stdout=subprocess.PIPE
    )
    deadline = time.monotonic() + 240
    while not list(killed.glob("*-B-seed0/history.csv")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not list(killed.glob("*-C-seed0"))
    compare(split_folder, killed, nets, epochs=12)
    for name in ("A", "B", "C"):
        model = f"cifar_resnet20-{name}-seed0/model.safetensors"
        assert (whole / model).read_bytes() == (killed / model).read_bytes()


def outcome(net, seed, error):
    return Outcome(net, seed, 1, 1, (0.9, error), (0.9, error), None)


def test_verdicts_separate_depth_from_noise():
    def words(plain, residual):
        found = [outcome("plain20", s, e) for s, e in enumerate(plain[0])]
        found += [outcome("plain56", s, e) for s, e in enumerate(plain[1])]
        found += [outcome("resnet20", s, e) for s, e in enumerate(residual[0])]
        found += [outcome("resnet56", s, e) for s, e in enumerate(residual[1])]
        return runs.verdicts(found, degradation.groups([20, 56]))

    lines = words(([0.04, 0.05], [0.6, 0.7]), ([0.02, 0.04], [0.03, 0.05]))
    assert lines[0] == (
        "plain56 against plain20: training error 65.00% against 4.50%, higher with every seed"
    )
    assert lines[1].endswith("no difference beyond the spread of the seeds")
    assert words(([0.1], [0.2]), ([0.2, 0.3], [0.1, 0.15]))[1].endswith("lower with every seed")
    assert "1 seed" in words(([0.1], [0.2]), ([0.2], [0.1]))[0]


def test_depths_that_the_paper_does_not_have():
    assert degradation.parse_depths("56, 20,20") == [20, 56]
    with pytest.raises(RecipeError, match="as in 20,56"):
        degradation.parse_depths("deep")
    with pytest.raises(RecipeError, match="20, 32, 44, 56, 110"):
        degradation.nets([20, 21])
    assert [net.name for net in degradation.nets([20, 32])] == [
        "plain20",
        "plain32",
        "resnet20",
        "resnet32",
    ]


def test_the_table_shows_mean_and_range():
    found = [outcome("x", 0, 0.1), outcome("x", 1, 0.2), outcome("x", 2, 0.6)]
    assert "30.00% (10.00 to 60.00)" in runs.table(found)
    assert "3 seeds, 2 epochs" in runs.table(found)


def test_costs_of_the_shortcuts_by_hand():
    """ResNet-34: three strided projections (B); C also projects the thirteen other blocks."""
    rows = {row.what: row.derived for row in shortcuts.costs("resnet34", 224).rows}
    changing = [(64, 128, 28), (128, 256, 14), (256, 512, 7)]
    inside = [(64, 64, 56)] * 3 + [(128, 128, 28)] * 3 + [(256, 256, 14)] * 5 + [(512, 512, 7)] * 2
    base = rows["A: parameters"]
    assert rows["none: parameters"] == base
    for option, shapes in (("B", changing), ("C", changing + inside)):
        weights = sum(a * b + 2 * b for a, b, _ in shapes)
        macs = sum(a * b * side**2 for a, b, side in shapes) / 1e6
        assert rows[f"{option}: parameters"] - base == weights
        assert rows[f"{option}: millions of multiply-adds"] - rows[
            "A: millions of multiply-adds"
        ] == pytest.approx(macs)
    assert "25.03" in shortcuts.published_errors()


@pytest.mark.slow
def test_degradation_on_digits(tmp_path):
    """The deeper plain net trains worse than the shallower one; the deeper residual net does not.

    Measured with three seeds: 4.8 to 5.0% against 59.6 to 72.7%; 1.3 to 2.1% against 1.0 to 3.0%.
    """
    _, found = runs.compare(
        degradation.nets([20, 56]),
        "digits",
        tmp_path / "out",
        recipe_name=None,
        minutes=None,
        seeds=range(1),
        device="cpu",
        workers=1,
        settings={"epochs": 8},
    )
    error = {outcome.net: runs.last_errors(found, outcome.net)[0] for outcome in found}
    assert error["plain56"] > error["plain20"] + 0.1
    assert error["resnet56"] < error["resnet20"] + 0.02
    assert error["resnet56"] < error["plain20"] + 0.02
