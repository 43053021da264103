"""What `/predict` answers."""

from __future__ import annotations

import base64
import io
import json
import re
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from resnetkit.export.export import export
from resnetkit.export.predictor import ExportedPredictor
from resnetkit.inference.predictor import Predictor
from resnetkit.serving.served import open_served

from .conftest import FakeServed, form, png, running, wait_for


def photo(seed: int, size: tuple[int, int] = (50, 40), kind: str = "PNG") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize(size).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM"])
def test_one_image_is_answered_with_the_line_of_predict(server, exported, kind):
    contents = photo(1, kind=kind)
    reply = server.request(body=contents)
    assert reply.status == 200
    expected = ExportedPredictor(exported)(contents).to_dict()
    assert reply.json == expected
    assert expected["error"] is None
    assert reply.headers["content-type"] == "application/json"


def test_several_images_are_answered_with_an_array(server, exported):
    body, kind = form(("a.png", photo(1)), ("b.txt", b"no image"), ("c.jpg", photo(2, kind="JPEG")))
    reply = server.request(path="/predict?top_k=2", body=body, Content_Type=kind)
    assert reply.status == 200
    first, second, third = reply.json
    assert [row["source"] for row in reply.json] == ["a.png", "b.txt", "c.jpg"]
    assert (second["class"], second["top"]) == (None, [])
    assert "holds text, not an image" in second["error"]
    assert len(first["top"]) == len(third["top"]) == 2
    alone = ExportedPredictor(exported)(photo(1), top_k=2).to_dict()
    # The two images may have been computed in one batch: equal within 1e-4, not to the last bit.
    tops = zip(first["top"], alone["top"], strict=True)
    assert all(one["class"] == other["class"] for one, other in tops)
    probabilities = [one["probability"] for one in first["top"]]
    assert probabilities == pytest.approx([one["probability"] for one in alone["top"]], abs=1e-4)
    same = {"source": "a.png", "probability": pytest.approx(alone["probability"], abs=1e-4)}
    assert {**first, "top": alone["top"]} == {**alone, **same}


def test_a_form_with_one_image_is_answered_with_an_object(server):
    body, kind = form(("花.png", photo(1)))
    reply = server.request(body=body, Content_Type=kind)
    assert reply.json["source"] == "花.png"


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("top_k=0", "top_k must be at least 1"),
        ("top_k=x", "top_k must be a whole number"),
        ("coverage=half", "coverage and false_alarms must be numbers"),
        ("coverage=0.9", "has no calibration data for coverage"),
        ("coverage=nan", "above 0 and below 1"),
        ("false_alarms=0.1", "has no calibration data for false_alarms"),
        ("false_alarms=2", "false_alarms must be above 0 and below 1"),
        ("explain=true", "has no gradients"),
        ("explain=maybe", "explain must be true or false"),
        ("topk=3", "Did you mean 'top_k'?"),
        ("url=http://127.0.0.1/x.png", "Unknown parameter"),
    ],
)
def test_a_wrong_parameter_is_named(server, query, message):
    reply = server.request(path=f"/predict?{query}", body=photo(1))
    assert (reply.status, reply.json["reason"]) == (400, "bad_parameter")
    assert message in reply.json["error"]


@pytest.mark.parametrize("kind", ["model file", "exported file"])
def test_strange_photos_are_unknown(trained, tmp_path, kind):
    model = trained / "model.safetensors"
    data = trained.parent / "data"
    if kind == "exported file":
        model = export(model, "onnx", tmp_path / "model.onnx", data=data).path
    predictor = (ExportedPredictor if kind == "exported file" else Predictor)(model)
    red = next((data / "red").iterdir()).read_bytes()
    buffer = io.BytesIO()
    Image.effect_mandelbrot((40, 36), (-2, -1, 1, 1), 9).convert("RGB").save(buffer, "PNG")
    engine = "eager" if kind == "model file" else "auto"
    with running(open_served(model, engine=engine), batch_images=2) as server:
        for contents in (red, buffer.getvalue()):
            row = server.request(path="/predict?false_alarms=0.2", body=contents).json
            expected = predictor(contents, false_alarms=0.2).to_dict()
            assert row["class"] == expected["class"]
            assert row["strangeness"] == pytest.approx(expected["strangeness"], abs=1e-6)
            assert row["top"][0]["class"] == expected["top"][0]["class"]
        rows = [predictor(contents, false_alarms=0.2) for contents in (red, buffer.getvalue())]
        assert [row.class_name for row in rows] == ["red", "unknown"]
        assert "strangeness" not in server.request(body=red).json


def test_coverage_adds_a_set_of_classes(trained):
    model = trained / "model.safetensors"
    image = next((trained.parent / "data" / "red").iterdir()).read_bytes()
    with running(open_served(model, engine="eager"), batch_images=2) as server:
        reply = server.request(path="/predict?coverage=0.7", body=image)
        expected = Predictor(model)(image, coverage=0.7).to_dict()
        assert reply.json["set"] == expected["set"] != []
        refused = server.request(path="/predict?coverage=0.999", body=image)
        assert refused.status == 400
        assert "coverage 0.999 needs at least" in refused.json["error"]
        explained = server.request(path="/predict?explain=true", body=image).json
        assert explained["class"] == expected["class"]
        url = explained["explanation"]
        assert url.startswith("data:image/png;base64,")
        overlay = Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))
        assert overlay.size == (256, 256)


def test_an_image_is_answered_alike_whatever_it_is_batched_with(exported):
    """Compare a photo's answer alone with its answer in batches of 2 to 8 photos of its size."""
    photos = [photo(seed) for seed in range(8)]
    expected = {n: ExportedPredictor(exported)(one).to_dict() for n, one in enumerate(photos)}
    with running(open_served(exported)) as server:
        differences = []
        for count in range(2, 9):
            body, kind = form(*((str(n), photos[n]) for n in range(count)))
            rows = server.request(path="/predict?top_k=3", body=body, Content_Type=kind).json
            for n, row in enumerate(rows):
                mine = {one["class"]: one["probability"] for one in row["top"]}
                alone = {one["class"]: one["probability"] for one in expected[n]["top"]}
                differences += [abs(mine[name] - alone[name]) for name in alone]
        assert max(differences) < 1e-4
        total = server.metric("resnetkit_batch_images_sum")
        assert total > server.metric("resnetkit_batch_images_count")  # images shared batches


def test_what_waits_while_the_engine_is_busy_is_one_batch():
    fake = FakeServed()
    with running(fake) as server:
        fake.blocked.clear()
        threads = [threading.Thread(target=server.request, kwargs={"body": png()})]
        threads[0].start()
        wait_for(lambda: fake.batches == [1])
        threads += [
            threading.Thread(target=server.request, kwargs={"body": png()}) for _ in "12345"
        ]
        for thread in threads[1:]:
            thread.start()
        wait_for(lambda: len(server.server.queue._decoded) == 5)
        fake.blocked.set()
        for thread in threads:
            thread.join()
        assert fake.batches == [1, 5]


def test_what_the_model_says(server, exported):
    assert server.request("GET", "/classes").json == {"classes": ["blue", "green", "red"]}
    model = server.request("GET", "/model").json
    assert (model["file"], model["runtime"], model["classes"]) == (exported.name, "onnx", 3)
    assert model["limits"]["body_bytes"] == server.server.bounds.body_bytes
    assert server.request("GET", "/live").json == {"live": True}
    assert server.request("GET", "/ready").json == {"ready": True}


def test_metrics_count_what_happens(server):
    before = server.metric("resnetkit_requests_total", path="/predict", status="200")
    server.request(body=photo(1))
    server.request(body=b"no image")
    server.request("GET", "/nonsense")
    text = server.request("GET", "/metrics").body.decode()
    assert server.metric("resnetkit_requests_total", path="/predict", status="200") == before + 1
    for line in (
        'resnetkit_refusals_total{reason="not_an_image"}',
        'resnetkit_requests_total{path="other",status="404"}',
        'resnetkit_stage_seconds_bucket{le="0.001",stage="decode"}',
        "resnetkit_batch_images_count",
        "resnetkit_queue_images 0.0",
        "resnetkit_ready 1.0",
    ):
        assert line in text
    assert "nonsense" not in text


def test_log_lines_are_json_and_hold_no_contents(server):
    body, kind = form(("my-secret-name.png", photo(3)))
    server.request(body=body, Content_Type=kind, X_Request_Id="abc-1")
    server.request(body=b"secret contents", X_Request_Id='no"id')
    wait_for(lambda: '"request": "abc-1"' in server.log.getvalue())
    text = server.log.getvalue()
    lines = [json.loads(line) for line in text.splitlines()]
    line = next(line for line in lines if line.get("request") == "abc-1")
    assert (line["event"], line["status"], line["images"]) == ("request", 200, 1)
    assert "secret" not in text
    assert 'no\\"id' not in text


def test_the_page_and_its_files(server):
    page = server.request("GET", "/")
    assert page.headers["content-type"].startswith("text/html")
    for reply in (page, server.request("GET", "/docs")):
        text = reply.body.decode()
        assert "default-src 'none'" in reply.headers["content-security-policy"]
        assert "<style" not in text
        assert " style=" not in text
        assert "http" not in text.replace("http-equiv", "")  # nothing is loaded from elsewhere
        files = re.findall(r'(?:href|src)="/?(page/[^"]+)"', text)
        assert files
        for name in files:
            assert server.request("GET", f"/{name}").status == 200
    assert server.request("GET", "/page/../app.py").status == 404
    assert server.request("GET", "/page/%2e%2e/app.py").status == 404


def test_serving_needs_no_torch(exported):
    from tests.test_imports_without_torch import run_without_torch

    code = """
import io
import importlib
for name in ("server", "app", "served", "token"):
    importlib.import_module(f"resnetkit.serving.{name}")
import resnetkit.cli.serve
from resnetkit.serving.served import open_served
served = open_served(Path(sys.argv[1]))
assert served.verify() == "17 golden images agree"
compute = served.start()
print([float(one["probabilities"].sum()) for one in compute([served.example()] * 2)])
"""
    assert json.loads(run_without_torch(code, exported)) == pytest.approx([1, 1], abs=1e-5)


def test_a_file_that_changed_is_not_loaded_again(exported, tmp_path):
    from resnetkit.errors import ArtefactError

    path = tmp_path / Path(exported).name
    path.write_bytes(exported.read_bytes())
    served = open_served(path)
    served.start()
    path.write_bytes(exported.read_bytes() + b"\0")
    with pytest.raises(ArtefactError, match="has changed"):
        served.start()
