from __future__ import annotations

import copy
import gc
import io
import json
import multiprocessing
import pickle
import shutil
import weakref
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

import resnetkit
from resnetkit import runtime
from resnetkit.errors import ImageError
from resnetkit.models import get_model
from resnetkit.storage import sha256


@pytest.fixture
def predictor(trained):
    return resnetkit.load(trained / "model.safetensors")


@pytest.fixture
def paths(trained):
    return sorted((trained.parent / "data").rglob("*.png"))


def test_answers_equal_those_of_evaluation(predictor, trained, paths):
    found = resnetkit.evaluate(trained / "model.safetensors", trained.parent / "data", "all")
    expected = torch.softmax(found.logits, 1)
    answers = predictor([found.samples.path(i) for i in range(len(found.samples))])
    for row, answer in zip(expected, answers, strict=True):
        assert answer.class_name == found.classes[int(row.argmax())]
        assert [p for _, p in answer.top] == pytest.approx(
            sorted(row.tolist(), reverse=True), abs=1e-5
        )


def test_an_image_in_any_form_gives_the_same_answer(predictor, paths):
    reference = predictor(paths[0])
    with Image.open(paths[0]) as image:
        pixels = np.asarray(image.convert("RGB"))
        forms = [str(paths[0]), paths[0].read_bytes(), image, pixels]
        for form in forms:
            assert predictor(form).top == reference.top
    assert reference.source == str(paths[0])
    assert reference.probability == reference.top[0][1]
    assert sum(p for _, p in reference.top) == pytest.approx(1.0, abs=1e-6)


def test_order_batch_size_and_top_k(predictor, paths):
    alone = [predictor(path, top_k=2) for path in paths]
    together = list(predictor.stream(paths, top_k=2, batch_size=7, workers=3))
    assert [a.source for a in together] == [str(p) for p in paths]
    for a, b in zip(alone, together, strict=True):
        assert len(b.top) == 2
        assert a.class_name == b.class_name
        assert a.probability == pytest.approx(b.probability, abs=1e-5)


def test_a_broken_image_does_not_affect_others(predictor, paths, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(paths[0].read_bytes()[:90])
    answers = predictor([paths[0], broken, tmp_path / "gone.png", paths[1]])
    assert [a.error is None for a in answers] == [True, False, False, True]
    assert "broken.png" in answers[1].error
    assert answers[1].class_name is None
    assert answers[0].class_name == predictor(paths[0]).class_name
    with pytest.raises(ImageError, match=r"gone\.png: No such file"):
        predictor(tmp_path / "gone.png")


def test_a_model_whose_output_is_not_finite_gives_an_error(trained, paths):
    predictor = resnetkit.load(trained / "model.safetensors")
    predictor.model.fc.weight.data.fill_(3e38)
    settings = {"coverage": 0.8, "false_alarms": 0.2, "features": True}
    for answer in predictor.stream(paths[:2], **settings):
        assert (answer.class_name, answer.probability, answer.features) == (None, None, None)
        assert "the model's output for this image is NaN or infinite" in answer.error
        json.dumps(answer.to_dict(), allow_nan=False)
    with pytest.raises(ImageError, match=r"000\.png: the model's output"):
        predictor(paths[0])


def test_stream_prefetches_a_bounded_number(predictor, paths):
    taken = 0

    def endless_paths():
        nonlocal taken
        while True:
            taken += 1
            yield paths[taken % len(paths)]

    answers = predictor.stream(endless_paths(), batch_size=4, workers=2)
    for _ in range(8):
        next(answers)
    answers.close()
    assert taken <= 4 * (2 + 2 * 2 + 1)


def test_below_the_threshold_the_class_is_unknown(predictor, paths):
    answer = predictor(paths[0], threshold=1.0)
    plain = predictor(paths[0])
    assert plain.probability < 1.0
    assert (answer.class_name, answer.to_dict()["class"]) == ("unknown", "unknown")
    assert (answer.top, answer.probability) == (plain.top, plain.probability)
    assert predictor(paths[0], threshold=plain.probability).class_name == plain.class_name


def test_features_are_the_input_of_the_last_layer(predictor, paths):
    for answer in predictor.stream(paths[:5], features=True):
        with torch.no_grad():
            row = torch.softmax(predictor.model.fc(torch.from_numpy(answer.features)), 0)
        assert float(row.max()) == pytest.approx(answer.probability, abs=1e-6)
        assert predictor.classes[int(row.argmax())] == answer.class_name
    assert predictor(paths[0]).features is None


def test_arrays_tensors_and_iterators_of_images(predictor, paths):
    pixels = []
    for path in paths[:3]:
        with Image.open(path) as image:
            pixels.append(np.asarray(image.convert("RGB")))
    stack = np.stack(pixels)
    expected = [answer.top for answer in predictor(paths[:3])]
    tensor = torch.from_numpy(stack).permute(0, 3, 1, 2)
    for several in (stack, tensor, tensor / 255, pixels, iter(pixels), tuple(pixels), paths[:3]):
        assert [answer.top for answer in predictor(several)] == expected
    assert predictor([]) == []
    with pytest.raises(ImageError, match="got int"):
        predictor(5)
    mixed = predictor([paths[0], 5, None, tensor[1]])
    assert [answer.error is None for answer in mixed] == [True, False, False, True]


@pytest.mark.parametrize("first", [0, 8, 24])
def test_skipping_images_changes_no_bit(predictor, paths, first):
    whole = list(predictor.stream(paths, batch_size=8))
    assert list(predictor.stream(iter(paths), batch_size=8, first=first)) == whole[first:]


def test_auto_starts_with_the_reference_and_notes_its_engine(trained, paths, monkeypatch):
    from resnetkit.inference import engines, predictor

    notes = []
    monkeypatch.setattr(predictor, "FEW", 16)
    monkeypatch.setattr(engines, "find_spec", lambda name: None)  # nothing else is installed
    fast = runtime.Runtime(torch.device("cpu"), "bf16")
    monkeypatch.setattr(runtime, "pick", lambda device="auto", precision="auto": fast)
    one = predictor.Predictor(trained / "model.safetensors", "cpu", note=notes.append)
    one(paths[0])
    one(paths[:15])
    assert [text.split(" (")[0] for text in notes] == ["engine eager, fp32"]
    answers = list(one.stream(iter(paths), batch_size=8))
    assert [text.split(" (")[0] for text in notes[1:]] == ["engine eager, bf16"]
    reference = predictor.Predictor(trained / "model.safetensors", "cpu", "eager")
    reference = list(reference.stream(iter(paths), batch_size=8))  # uses the same kernels
    assert answers[:16] == reference[:16]  # the length of an iterator is unknown
    assert answers[16:] != reference[16:]
    known = one(paths)
    for a, b in zip(known, reference, strict=True):
        assert a.class_name == b.class_name
        assert a.probability == pytest.approx(b.probability, abs=0.02)
    assert (
        list(one.stream(iter(paths), first=16, total=60, batch_size=8))
        == list(one.stream(paths, batch_size=8))[16:]
    )


def test_to_dict_is_the_json_line(predictor, trained, paths):
    line = json.loads(json.dumps(predictor(paths[0]).to_dict()))
    assert list(line) == ["source", "class", "probability", "top", "model", "error"]
    assert line["model"] == sha256(trained / "model.safetensors")[:12]
    assert line["top"][0] == {"class": line["class"], "probability": line["probability"]}
    assert line["error"] is None


def test_the_model_file_alone_is_enough(trained, paths, tmp_path):
    copy = shutil.copy(trained / "model.safetensors", tmp_path / "m")
    assert resnetkit.load(copy)(paths[3]) == resnetkit.load(trained / "model.safetensors")(paths[3])


def test_answers_do_not_keep_the_images(predictor):
    """Collecting the answers for a stream of frames does not fill the memory."""
    given = []

    class Frame(np.ndarray):
        """An array that allows weak references, to count live frames."""

    def frames():
        for number in range(40):
            frame = np.full((60, 80, 3), number, np.uint8).view(Frame)
            given.append(weakref.ref(frame))
            yield frame

    def count_alive():
        gc.collect()
        count = sum(reference() is not None for reference in given)
        given.clear()
        return count

    answers = list(predictor.stream(frames(), batch_size=4, workers=1))
    assert (len(answers), count_alive()) == (40, 0)
    answers = predictor(frames())
    assert (len(answers), count_alive()) == (40, 0)
    answers = list(predictor.stream(frames(), batch_size=4, workers=1, keep_images=True))
    assert (len(answers), count_alive()) == (40, 40)


def test_a_single_answer_keeps_a_thumbnail_for_the_notebook(predictor, paths):
    large = np.random.default_rng(0).integers(0, 255, (1200, 1600, 3), np.uint8)
    for image in (large, Image.fromarray(large), torch.from_numpy(large).permute(2, 0, 1)):
        answer = predictor(image)
        assert len(pickle.dumps(answer)) < 40_000
        assert "<img" in answer._repr_html_()
        with Image.open(io.BytesIO(answer.image)) as shown:
            assert shown.size == (160, 120)
    answer = predictor(paths[0].read_bytes())
    assert "<img" in answer._repr_html_()
    assert predictor(paths[0]).image == paths[0]


def test_the_first_fifty_answers_of_a_list_keep_thumbnails(predictor, paths):
    image = np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8)
    answers = predictor(np.stack([image] * 52))
    page = answers._repr_html_()
    assert page.count("<img") == 50
    assert [answer.image is not None for answer in answers] == [True] * 50 + [False] * 2
    assert len(pickle.dumps(answers[0])) < 10_000
    mixed = predictor([paths[0], Image.fromarray(image), b"no image"])
    assert mixed._repr_html_().count("<img") == 2
    assert mixed[0].image == paths[0]
    assert mixed[2].error


def unpickle_and_predict(
    model_bytes: bytes, paths: list[str]
) -> tuple[bool, list[tuple[tuple[str, float], ...]]]:
    """Return the answers from a pickled predictor; runs in another process."""
    copied = pickle.loads(model_bytes)
    return copied.model.training, [answer.top for answer in copied(paths)]


def test_a_predictor_works_in_another_process_without_its_file(trained, paths, tmp_path):
    file = shutil.copy(trained / "model.safetensors", tmp_path / "m.safetensors")
    one = resnetkit.load(file)
    names = [str(path) for path in paths[:5]]
    expected = [answer.top for answer in one(names)]  # starts the engine
    (tmp_path / "m.safetensors").write_bytes(b"another file")
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        assert pool.submit(unpickle_and_predict, pickle.dumps(one), names).result() == (
            False,
            expected,
        )
        found = pool.submit(
            copy.copy(one).__call__, names
        ).result()  # pools pickle the bound method
    assert [answer.top for answer in found] == expected
    assert [answer.model for answer in found] == [one.digest] * 5
    assert [answer.top for answer in one(names)] == expected


def test_a_deep_copy_shares_nothing(predictor, paths):
    expected = predictor(paths[0])
    other = copy.deepcopy(predictor)
    assert other(paths[0]) == expected
    with torch.no_grad():
        for parameter in other.model.parameters():
            parameter.zero_()
    assert other(paths[0]).top != expected.top
    assert predictor(paths[0]) == expected
    shallow = copy.copy(predictor)
    assert shallow(paths[0]) == expected


def test_answers_evaluations_and_models_can_be_pickled(predictor, trained, paths):
    answers = predictor(paths[:3])
    again = pickle.loads(pickle.dumps(answers))
    assert again == answers
    assert type(again) is type(answers)
    settings = predictor.preprocessing
    assert pickle.loads(pickle.dumps(settings)) == settings
    found = resnetkit.evaluate(trained / "model.safetensors", trained.parent / "data", "all")
    other = pickle.loads(pickle.dumps(found))
    assert torch.equal(other.logits, found.logits)
    assert other.metrics == found.metrics
    assert [other.samples.path(i) for i in range(3)] == [found.samples.path(i) for i in range(3)]
    x = torch.randn(1, 3, 32, 32)
    for name in ("resnet18", "cifar_resnet20", "darknet53"):
        network = get_model(name, num_classes=2).eval()
        with torch.no_grad():
            assert torch.equal(pickle.loads(pickle.dumps(network))(x), network(x))
