"""Reading images and writing answers works without PyTorch, which takes seconds to import."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from resnetkit.calibration import Calibration, Matrix

MODULES = [
    "cli.prediction_writer", "cli.sources",
    "data.check", "data.color", "data.corrections", "data.decode", "data.files", "data.folder",
    "data.folds", "data.gray", "data.manifest", "data.near_duplicates", "data.paths",
    "data.pixels", "data.preprocessing", "data.resize", "data.split", "data.tree",
    "data.value_range",
    "evaluation.calibration", "evaluation.conformal", "evaluation.intervals",
    "evaluation.label_errors", "evaluation.metrics", "evaluation.neighbors",
    "evaluation.strangeness",
    "inference.drawing", "inference.embeddings", "inference.images", "inference.notebook",
    "inference.prediction", "inference.rows", "inference.uncertainty",
    "calibration", "distribution", "errors", "limits", "prefetch", "processes", "progress",
    "randomness", "signals", "storage", "text",
]  # fmt: skip

WITHOUT_TORCH = """
import importlib, sys
from pathlib import Path

class Refusal:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torchvision"):
            raise ModuleNotFoundError(f"{name} is refused", name=name)

sys.meta_path.insert(0, Refusal())
"""

IMPORT = """
for name in sys.argv[1:]:
    importlib.import_module(f"resnetkit.{name}")
"""

DECODE = """
from resnetkit.data.decode import decode
from resnetkit.data.preprocessing import Preprocessing
from resnetkit.inference.images import full_pixels, is_image

for path in map(Path, sys.argv[1:]):
    pixels = decode(path)
    assert is_image(pixels) and (full_pixels(pixels) == pixels).all()
    working = Preprocessing(16, 16, decoder="full").pixels(path)
    print(*pixels.shape, *working.shape)
"""

UNCERTAINTY = """
import json
import numpy as np
from resnetkit.calibration import Calibration
from resnetkit.inference.uncertainty import resolve_uncertainty

stored = json.loads(Path(sys.argv[1]).read_text())
asked = resolve_uncertainty(
    tuple("abcde"), Calibration.from_dict(stored["calibration"]), "m.onnx",
    coverage=0.8, false_alarms=0.2, all_trained=False,
)
logits, features = (np.array(stored[name], np.float32) for name in ("logits", "features"))
strangeness = asked.features.strangeness(features, logits).tolist()
print(json.dumps([asked.answers(logits, features), strangeness]))
"""


def run_without_torch(code, *arguments):
    """Return what a program that cannot import PyTorch prints."""
    command = [sys.executable, "-c", WITHOUT_TORCH + code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_these_modules_import_without_torch():
    run_without_torch(IMPORT, *MODULES)


def test_full_pixels_are_decoded_without_torch(tmp_path):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8))
    image.save(tmp_path / "plain.jpg")
    image.save(tmp_path / "plain.png")
    exif = image.getexif()
    exif[0x0112] = 6  # to be shown rotated by 90 degrees
    image.save(tmp_path / "rotated.jpg", exif=exif)
    paths = [tmp_path / name for name in ("plain.jpg", "plain.png", "rotated.jpg")]
    shapes = run_without_torch(DECODE, *paths).splitlines()
    assert shapes == ["30 40 3 16 21 3", "30 40 3 16 21 3", "40 30 3 21 16 3"]


def test_sets_and_strangeness_without_torch_equal_those_of_torch_in_float64(tmp_path):
    rng = np.random.default_rng(0)
    logits, features, means, directions = (
        rng.normal(size=shape).astype(np.float32) for shape in ((40, 5), (40, 16), (5, 16), (3, 16))
    )
    logits = 2 * logits.round(1)
    logits[0] = (1, 3, 3, 1, 3)  # classes with equal logits keep their order
    directions = np.linalg.qr(directions.T)[0].T * np.float32(0.9)

    x, f, m, d = (
        torch.from_numpy(array).double() for array in (logits, features, means, directions)
    )
    offsets = f[:, None] - m
    metric = torch.eye(16, dtype=torch.float64) - d.T @ d
    distances = torch.einsum("nki,ij,nkj->nk", offsets, metric, offsets).amin(1).sqrt()
    strangeness = 0.75 * distances - torch.logsumexp(x, 1)
    known = np.linspace(float(strangeness.min()), float(strangeness.max()), 11)[1:-1]
    conformal = np.linspace(0.1, 2.0, 9).tolist()
    limit = conformal[7]  # the score with rank 0.8 * (9 + 1)
    sets = -torch.log_softmax(x, 1) <= limit

    calibration = Calibration(
        count=9,
        temperature=1.0,
        conformal=tuple(conformal),
        strangeness=tuple(known.tolist()),
        distance_scale=0.75,
        means=Matrix.from_array(means),
        directions=Matrix.from_array(directions),
    )
    stored = {
        "calibration": calibration.to_dict(),
        "logits": logits.tolist(),
        "features": features.tolist(),
    }
    (tmp_path / "stored.json").write_text(json.dumps(stored))
    answers, found = json.loads(run_without_torch(UNCERTAINTY, tmp_path / "stored.json"))
    assert found == pytest.approx(strangeness.tolist(), rel=0, abs=1e-9)
    for i, answer in enumerate(answers):
        best_first = sorted(range(5), key=lambda k: -x[i, k])
        members = [k for k in best_first if sets[i, k]] or best_first[:1]
        assert answer["class_set"] == ["abcde"[k] for k in members]
        assert answer["strangeness"] == pytest.approx((known < float(strangeness[i])).sum() / 10)
    assert answers[0]["class_set"] == list("bce")
    assert len({len(answer["class_set"]) for answer in answers}) > 2
