"""Wrong labels: found at the end of a run, judged by the user, and corrected in the next run."""

from __future__ import annotations

import csv
import json
import re

import numpy as np
import pytest

from resnetkit import evaluate, train
from resnetkit.cli.tables import closing_lines
from resnetkit.data.corrections import read_corrections
from resnetkit.data.dataset import Images
from resnetkit.data.folder import Split, read_dataset
from resnetkit.data.preprocessing import Preprocessing
from resnetkit.data.tree import is_run
from resnetkit.errors import DataError, TrainingError
from resnetkit.evaluation.label_errors import Suspect
from resnetkit.report.suspects import COLUMNS, write_suspects, write_suspects_page
from resnetkit.training import checkpoint, suspects
from resnetkit.training.run import RunFolder


def rows_of(file):
    with file.open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


@pytest.fixture
def once(small):
    return {**small, "epochs": 1}


def test_a_wrong_label_is_found_and_corrected(flat_folder, small, tmp_path):
    """The squares are easy: eight epochs without augmentation are enough to learn every label."""
    wrong = flat_folder / "red" / "wrong.png"
    (flat_folder / "blue" / "005.png").rename(wrong)
    settings = {
        **small,
        "epochs": 8,
        "model_options": {"width": 16},
        "crop_scale": (0.9, 1.0),
        "val_split": 0.1,
        "seed": 1,
    }
    run = train(flat_folder, out=tmp_path / "run", **settings)
    split = (run.folder / "split.csv").read_text()
    assert "red/wrong.png,red,train" in split
    (found,) = rows_of(run.folder / "suspects.csv")
    assert list(found) == list(COLUMNS)
    assert (found["path"], found["label"], found["suggested"]) == ("red/wrong.png", "red", "blue")
    assert (found["verdict"], found["new_label"]) == ("", "")
    assert all(found[f"neighbor_{i}"].startswith("blue/") for i in (1, 2, 3))
    line = "1 training label looks wrong: {0}/suspects.csv, shown in {0}/suspects.html\n"
    assert line.format(run.folder) in closing_lines(run)
    page = (run.folder / "suspects.html").read_text(encoding="utf-8")
    assert page.count("data:image/jpeg") == 4
    assert "1 of 42 training labels looks wrong" in re.sub(r"\s+", " ", page)
    assert 'href="suspects.html"' in (run.folder / "report.html").read_text(encoding="utf-8")

    judged = tmp_path / "judged.csv"
    judged.write_text(
        (run.folder / "suspects.csv").read_text().replace(",,,blue/", ",relabel,,blue/")
    )
    fixed = train(flat_folder, out=tmp_path / "fixed", corrections=judged, **settings)
    assert "red/wrong.png,blue,train" in (fixed.folder / "split.csv").read_text()
    assert rows_of(fixed.folder / "suspects.csv") == []


def test_the_plan_and_the_folder_name_the_corrections(flat_folder, once, tmp_path, capsys):
    first = train(flat_folder, out=tmp_path / "run", **once)
    before = rows_of(first.folder / "split.csv")
    of_train = [row["path"] for row in before if row["split"] == "train"]
    of_val = [row["path"] for row in before if row["split"] == "val"]
    judged = tmp_path / "judged.csv"
    target = "green" if of_val[0].startswith("blue") else "blue"
    judged.write_text(
        "path,verdict,new_label\n"
        f"{of_train[0]},drop,\n{of_train[1]},relabel,red\n{of_val[0]},relabel,{target}\n"
    )
    capsys.readouterr()
    run = train(flat_folder, out=tmp_path / "second", corrections=judged, **once)
    assert f"Corrected: 2 images relabeled, 1 dropped ({judged})." in capsys.readouterr().err
    # All other images stay in their split.
    expected = {row["path"]: (row["label"], row["split"]) for row in before}
    del expected[of_train[0]]
    expected[of_train[1]] = ("red", "train")
    expected[of_val[0]] = (target, "val")
    after = rows_of(run.folder / "split.csv")
    assert {row["path"]: (row["label"], row["split"]) for row in after} == expected
    # The suggested command uses the corrected labels, and gives the metrics of the run.
    command = next(line for line in closing_lines(run).split("\n") if "resnet evaluate" in line)
    assert str(run.folder / "split.csv") in command
    again = evaluate(run.model, run.folder / "split.csv", "val")
    assert again.metrics == json.loads((run.folder / "metrics.json").read_text())
    # The recorded corrections read back unchanged.
    dataset = read_dataset(flat_folder)
    recorded = read_corrections(run.folder / "corrections.csv", dataset)
    assert recorded.identity() == read_corrections(judged, dataset).identity()


def test_a_resumed_run_keeps_its_corrections(flat_folder, once, tmp_path):
    judged = tmp_path / "judged.csv"
    judged.write_text("path,verdict\nblue/001.png,drop\n")
    run = train(flat_folder, out=tmp_path / "run", corrections=judged, **once)
    judged.unlink()
    assert train(run.folder, resume=True).metrics == run.metrics
    judged.write_text("path,verdict\nblue/002.png,drop\n")
    with pytest.raises(TrainingError, match=r"data: corrections was '0 images relabeled, 1 dropp"):
        train(run.folder, resume=True, corrections=judged)
    plain = train(flat_folder, out=tmp_path / "plain", **once)
    with pytest.raises(TrainingError, match="data: corrections was 'none' and is '0 images"):
        train(plain.folder, resume=True, corrections=judged)


def test_a_run_that_was_killed_while_it_began_keeps_its_corrections(
    flat_folder, once, tmp_path, monkeypatch
):
    judged = tmp_path / "judged.csv"
    judged.write_text("path,verdict\nblue/001.png,drop\n")

    def killed(*_):
        raise KeyboardInterrupt

    for moment in ("write_corrections", "write_text"):
        out = tmp_path / moment
        with monkeypatch.context() as patch:
            patch.setattr(RunFolder, moment, killed)
            with pytest.raises(KeyboardInterrupt):
                train(flat_folder, out=out, corrections=judged, **once)
        assert not is_run(out)  # so a command without the corrections cannot resume it
        run = train(flat_folder, out=out, corrections=judged, resume=True, **once)
        assert "blue/001.png" not in (run.folder / "split.csv").read_text()


def test_the_page_of_a_corrected_run_names_the_corrected_labels(flat_folder, small, tmp_path):
    judged = tmp_path / "judged.csv"
    judged.write_text("path,verdict,new_label\nblue/005.png,relabel,red\n")
    settings = {
        **small,
        "epochs": 8,
        "model_options": {"width": 16},
        "crop_scale": (0.9, 1.0),
        "val_split": 0.1,
        "seed": 1,
    }
    run = train(flat_folder, out=tmp_path / "run", corrections=judged, **settings)
    split = run.folder / "split.csv"
    page = (run.folder / "suspects.html").read_text(encoding="utf-8")
    assert re.search(r"resnet train \S*split\.csv --corrections", page)
    # The second round starts from the labels of the first.
    again = tmp_path / "again.csv"
    again.write_text("path,verdict\nblue/001.png,drop\n")
    fixed = train(split, out=tmp_path / "fixed", corrections=again, **{**settings, "epochs": 1})
    labels = {row["path"]: row["label"] for row in rows_of(fixed.folder / "split.csv")}
    assert "blue/001.png" not in labels
    assert labels["blue/005.png"] == "red"


def test_corrections_need_no_validation(flat_folder, once, tmp_path):
    judged = tmp_path / "judged.csv"
    judged.write_text("path,verdict\nblue/001.png,drop\n")
    run = train(flat_folder, out=tmp_path / "run", corrections=judged, val_split=0, **once)
    assert "blue/001.png" not in (run.folder / "split.csv").read_text()
    assert "training label" in closing_lines(run)


def test_a_class_keeps_an_image(flat_folder, once, tmp_path):
    judged = tmp_path / "judged.csv"
    rows = [f"{path.relative_to(flat_folder)},drop" for path in flat_folder.glob("blue/*.png")]
    judged.write_text("\n".join(["path,verdict", *rows]) + "\n")
    with pytest.raises(DataError, match=r"judged\.csv, no training image of class 'blue' is left"):
        train(flat_folder, out=tmp_path / "run", corrections=judged, **once)
    assert not (tmp_path / "run").exists()


def test_mixed_images_are_searched_with_a_note(flat_folder, once, tmp_path, capsys):
    run = train(flat_folder, out=tmp_path / "run", **{**once, "cutmix": 1.0})
    assert "MixUp or CutMix blended the images" in capsys.readouterr().err
    assert (run.folder / "suspects.csv").read_text().startswith(",".join(COLUMNS))


def test_a_network_that_learned_too_little_lists_nothing(flat_folder, once, tmp_path, capsys):
    """With random labels, most images have a negative margin and neighbors of other classes."""
    rng = np.random.default_rng(0)
    for path in sorted(flat_folder.glob("*/*.png")):
        label = ("blue", "green", "red")[rng.integers(3)]
        path.rename(flat_folder / label / f"moved-{path.parent.name}-{path.name}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("resnetkit.evaluation.label_errors.THRESHOLD", -1.0)
        run = train(flat_folder, out=tmp_path / "run", **once)
    assert "the network has learned too little to judge them" in capsys.readouterr().err
    assert not (run.folder / "suspects.csv").exists()
    assert "wrong" not in closing_lines(run)


def test_too_many_images_are_not_searched(flat_folder, once, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(suspects, "MOST_IMAGES", 41)
    run = train(flat_folder, out=tmp_path / "run", **once)
    message = "there are 42 images and 126 logits, and the limits are 41 and 100,000,000"
    assert message in capsys.readouterr().err
    assert not (run.folder / "suspects.csv").exists()
    assert "wrong" not in closing_lines(run)


def test_the_state_of_a_finished_run_names_the_corrections(flat_folder, once, tmp_path):
    run = train(flat_folder, out=tmp_path / "run", **once)
    saved = checkpoint.read_newest(run.folder / "state").values
    assert saved["identity"]["data"]["corrections"] == "none"


def test_names_that_look_like_formulas_and_markup_are_harmless(flat_folder, tmp_path):
    folder = tmp_path / "odd"
    (folder / "=a").mkdir(parents=True)
    (folder / "<b>").mkdir()
    sources = sorted(flat_folder.glob("red/*.png"))
    for number, name in enumerate(["=a/=1+1.png", "=a/2.png", "<b>/3.png"]):
        (folder / name).write_bytes(sources[number].read_bytes())
    dataset = read_dataset(folder)
    images = Images(dataset.splits["all"], Preprocessing(32, 32))
    paths = list(images.split.paths)
    index = paths.index("=a/=1+1.png")
    suspect = Suspect(
        index=index,
        label=dataset.classes.index("=a"),
        suggested=dataset.classes.index("<b>"),
        score=2.5,
        neighbors=(paths.index("<b>/3.png"),),
    )
    file = tmp_path / "suspects.csv"
    write_suspects(file, [suspect], images, dataset.classes)
    text = file.read_text(encoding="utf-8")
    assert text.split("\n")[1] == "'=a/=1+1.png,'=a,<b>,2.5,,,<b>/3.png,,"
    file.write_text(text.replace("2.5,,", "2.5,relabel,"))
    corrections = read_corrections(file, dataset)
    assert corrections.relabeled == {"=a/=1+1.png": dataset.classes.index("<b>")}
    page = tmp_path / "suspects.html"
    write_suspects_page(page, [suspect], images, dataset.classes, data=folder)
    assert "<bdi>&lt;b&gt;</bdi>" in page.read_text(encoding="utf-8")
    assert "<bdi><b></bdi>" not in page.read_text(encoding="utf-8")


def test_an_image_that_is_gone_leaves_a_message(tmp_path):
    split = Split(tmp_path, ["a/1.png", "b/2.png"], np.array([0, 1], np.int32))
    images = Images(split, Preprocessing(32, 32))
    suspect = Suspect(index=0, label=0, suggested=1, score=3.0, neighbors=(1,))
    write_suspects_page(tmp_path / "page.html", [suspect], images, ("a", "b"), data="photos")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.count("the image is no longer available") == 2
