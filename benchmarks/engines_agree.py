"""Compare the answers of each engine with those of the eager network in fp32, on real photos.

    python benchmarks/engines_agree.py MODEL.safetensors PHOTOS [ENGINE:PRECISION ...]

For every image under the folder PHOTOS: is the most probable class the same, and by how much, at
most, do the probabilities differ from the reference? An engine passes if it gives the same class on
99.9% of the images and no probability is off by more than 0.02. The exit code is 1 if an engine
fails.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch

from resnetkit import load
from resnetkit.data.paths import is_image
from resnetkit.data.transforms import normalize, stack
from resnetkit.inference import engines

BATCH = 32
KINDS = ["eager:bf16", "compile:fp32", "compile:bf16"]
KINDS += ["openvino:fp32", "openvino:bf16", "onnx:fp32"]


def main() -> None:
    predictor = load(sys.argv[1], "cpu")
    preset, side = predictor.preprocessing, predictor.preprocessing.crop_size
    files = sorted(path for path in Path(sys.argv[2]).rglob("*") if is_image(str(path)))
    images = stack([preset.crop(preset.pixels(path)) for path in files])  # (n, 3, S, S) uint8

    def run(name: str) -> tuple[torch.Tensor, str, int]:
        choice = engines.EngineChoice(*name.split(":"))
        engine = engines.start_engine(choice, predictor.model, side, predictor.device, BATCH)
        rows, ties = [], 0
        for part in images.split(BATCH):
            logits = engine(normalize(part, preset))[1]
            ties += len(engines._near_ties(logits))
            rows.append(torch.softmax(logits.double(), 1))
        return torch.cat(rows), str(engine), ties

    reference, name, _ = run("eager:fp32")
    sure = reference.max(1).values.mean()
    print(f"{predictor.header.architecture} at {side} px, {len(files)} photos, {name}; "
          f"mean probability of the class named {sure:.3f}")  # fmt: skip
    print("| engine | other class | same | largest difference | near ties | seconds | passes |")
    print("|---|---|---|---|---|---|---|")
    failed = False
    for name in sys.argv[3:] or KINDS:
        begun = time.perf_counter()
        found, _, ties = run(name)
        other = int((found.argmax(1) != reference.argmax(1)).sum())
        same, most = 1 - other / len(files), float((found - reference).abs().max())
        passes = same >= 0.999 and most <= 0.02
        failed |= not passes
        seconds = time.perf_counter() - begun
        row = [name, other, f"{same:.3%}", f"{most:.5f}", ties, f"{seconds:.0f}", passes]
        print(f"| {' | '.join(map(str, row))} |", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
