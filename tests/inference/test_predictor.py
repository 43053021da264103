from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import resnetkit
from resnetkit.errors import PictureError
from resnetkit.storage import sha256


@pytest.fixture
def predictor(trained):
    return resnetkit.load(trained / "model.safetensors")


@pytest.fixture
def paths(trained):
    return sorted((trained.parent / "data").rglob("*.png"))


def test_the_answers_are_those_of_evaluation(predictor, trained, paths):
    found = resnetkit.evaluate(trained / "model.safetensors", trained.parent / "data", "all")
    expected = torch.softmax(found.logits, 1)
    answers = predictor([found.part.path(i) for i in range(len(found.part))])
    for row, answer in zip(expected, answers, strict=True):
        assert answer.class_name == found.classes[int(row.argmax())]
        assert [p for _, p in answer.top] == pytest.approx(
            sorted(row.tolist(), reverse=True), abs=1e-5
        )


def test_a_picture_in_any_form_gives_the_same_answer(predictor, paths):
    reference = predictor(paths[0])
    with Image.open(paths[0]) as image:
        pixels = np.asarray(image.convert("RGB"))
        forms = [str(paths[0]), paths[0].read_bytes(), image, pixels]
        for form in forms:
            assert predictor(form).top == reference.top
    assert reference.source == str(paths[0])
    assert reference.probability == reference.top[0][1]
    assert sum(p for _, p in reference.top) == pytest.approx(1.0, abs=1e-6)


def test_order_batches_and_top_k(predictor, paths):
    alone = [predictor(path, top_k=2) for path in paths]
    together = list(predictor.stream(paths, top_k=2, batch_size=7, workers=3))
    assert [a.source for a in together] == [str(p) for p in paths]
    for a, b in zip(alone, together, strict=True):
        assert len(b.top) == 2
        assert a.class_name == b.class_name
        assert a.probability == pytest.approx(b.probability, abs=1e-5)


def test_a_broken_picture_disturbs_nobody(predictor, paths, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(paths[0].read_bytes()[:90])
    answers = predictor([paths[0], broken, tmp_path / "gone.png", paths[1]])
    assert [a.error is None for a in answers] == [True, False, False, True]
    assert "broken.png" in answers[1].error
    assert answers[1].class_name is None
    assert answers[0].class_name == predictor(paths[0]).class_name
    with pytest.raises(PictureError, match=r"gone\.png: No such file"):
        predictor(tmp_path / "gone.png")


def test_stream_reads_ahead_only_a_little(predictor, paths):
    taken = 0

    def endless():
        nonlocal taken
        while True:
            taken += 1
            yield paths[taken % len(paths)]

    answers = predictor.stream(endless(), batch_size=4, workers=2)
    for _ in range(8):
        next(answers)
    answers.close()
    assert taken <= 4 * (2 + 2 * 2 + 1)


def test_json(predictor, trained, paths):
    line = json.loads(json.dumps(predictor(paths[0]).to_dict()))
    assert list(line) == ["source", "class", "probability", "top", "model", "error"]
    assert line["model"] == sha256(trained / "model.safetensors")[:12]
    assert line["top"][0] == {"class": line["class"], "probability": line["probability"]}
    assert line["error"] is None


def test_the_model_file_alone_is_enough(trained, paths, tmp_path):
    copy = shutil.copy(trained / "model.safetensors", tmp_path / "m")
    assert resnetkit.load(copy)(paths[3]) == resnetkit.load(trained / "model.safetensors")(paths[3])
