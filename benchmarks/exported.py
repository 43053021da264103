"""Compare exported files with eager PyTorch: answers on real photos, and speed by precision.

    python benchmarks/exported.py MODEL PHOTOS FOLDER --count 1000
    python benchmarks/exported.py MODEL PHOTOS FOLDER --speed --int8 DATA

The first form exports the model to every runtime. Each answers the photos in batches; the reference
is the eager network in fp32 on the same fully decoded pixels, resized by Pillow. A near tie is an
image whose two largest probabilities differ by less than 0.004.

The second form measures images per second at batch sizes 1 and 8 from pixels in memory: eager fp32,
OpenVINO in bf16 if the processor supports it, and the exported files in fp32 and int8. The
measurements take turns, and the median of three is shown.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import torch

from resnetkit import load
from resnetkit.data.transforms import normalize
from resnetkit.errors import ArtefactError
from resnetkit.evaluation.metrics import probabilities
from resnetkit.export.bench import measure_exported
from resnetkit.export.export import export
from resnetkit.export.predictor import ExportedPredictor
from resnetkit.export.preparation import decode_for, to_crop
from resnetkit.inference.bench import measure_model

TARGETS = {"onnx": ".onnx", "openvino": ".xml", "torch": ".pt2"}
NEAR_TIE = 0.004


def exported(model: Path, folder: Path, to: str, entrance: str, **settings: Any) -> Path:
    """Return an exported file; create it if it does not exist."""
    name = f"{entrance}{'-int8' if settings else ''}{TARGETS[to]}"
    path = folder / name
    if not path.exists():
        export(model, to, path, entrance=entrance, **settings)
    return path


def reference(model: Path, file: Path, photos: list[Path]) -> np.ndarray:
    """Return the probabilities of the eager network, ``(n, classes)``."""
    network = load(model).model
    manifest = ExportedPredictor(file).manifest
    rows = []
    with torch.inference_mode():
        for photo in photos:
            crop = to_crop(decode_for(manifest, photo), manifest.preprocessing)
            image = torch.from_numpy(crop).permute(2, 0, 1)[None]
            rows.append(probabilities(network(normalize(image, manifest.preprocessing)))[0].numpy())
    return np.stack(rows)


def compare_answers(model: Path, photos: list[Path], folder: Path) -> None:
    print("| runtime | input | images | largest difference | other class | near ties among them |")
    print("|---|---|---|---|---|---|")
    expected: np.ndarray | None = None
    for to in TARGETS:
        for entrance in ("image", "crop"):
            file = exported(model, folder, to, entrance)
            expected = reference(model, file, photos) if expected is None else expected
            answers = ExportedPredictor(file).outputs(photos)
            found = np.stack([row["probabilities"] for row in answers])  # type: ignore[index]
            differs = found.argmax(1) != expected.argmax(1)
            best = np.sort(expected, axis=1)[:, -2:]
            ties = best[:, 1] - best[:, 0] < NEAR_TIE
            print(
                f"| {to} | {entrance} | {len(photos)} | {np.abs(found - expected).max():.1e} | "
                f"{differs.sum()} | {(differs & ties).sum()} |",
                flush=True,
            )


def compare_speed(model: Path, data: Path, folder: Path, seconds: float) -> None:
    files: dict[str, Path] = {}
    for to in ("onnx", "openvino"):
        files[f"{to} fp32"] = exported(model, folder, to, "crop")
        try:
            files[f"{to} int8"] = exported(model, folder, to, "crop", int8=data)
        except ArtefactError as error:
            print(f"{to} int8 was refused: {error}")
            files[f"{to} int8"] = folder / f"crop-int8-worse{TARGETS[to]}"
    speeds: dict[str, list[list[float]]] = {}
    for _ in range(3):
        found = measure_model(model, ["eager", "openvino"], [1, 8], seconds)
        rows = found["throughput"]
        for row in rows:
            name = f"engine {row['engine']} {row['precision']}"
            speeds.setdefault(name, [[], []])[row["batch_size"] > 1].append(
                row["pictures_per_second"]
            )
        for name, file in files.items():
            rows = measure_exported(file, [1, 8], seconds)["throughput"]
            for column, row in enumerate(rows):
                speeds.setdefault(name, [[], []])[column].append(row["pictures_per_second"])
    print("| | batch 1, images/s | batch 8, images/s |\n|---|---|---|")
    for name, columns in speeds.items():
        shown = " | ".join(f"{statistics.median(values):.1f}" for values in columns)
        print(f"| {name} | {shown} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("photos", type=Path, help="a folder")
    parser.add_argument("folder", type=Path, help="where the exported files are written")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--int8", type=Path, help="photos with known classes")
    parser.add_argument("--seconds", type=float, default=3.0)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    if args.speed:
        compare_speed(args.model, args.int8, args.folder, args.seconds)
        return
    endings = (".jpg", ".jpeg", ".png", ".JPG")
    photos = sorted(path for path in args.photos.rglob("*") if path.suffix in endings)
    step = max(1, len(photos) // args.count)
    compare_answers(args.model, photos[::step][: args.count], args.folder)


if __name__ == "__main__":
    main()
