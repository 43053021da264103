"""Make the file of starter weights that ships with the package, from a run on Tiny-ImageNet.

    python benchmarks/starter.py RUN/model.safetensors TINY_IMAGENET

RUN is the second of the two runs in the model card, ``models/weights/starter/README.md``.

TINY_IMAGENET has ``train/<WordNet id>/`` with 100,000 images and ``val/<WordNet id>/`` with 10,000.
The script halves the precision of convolutions and head, names the classes, and leaves out the
digests of the images. It writes the file into the package, under a name that contains the first 8
digits of its SHA-256, and prints what `Starter_Weights` and the model card must say about it.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from resnetkit import evaluate
from resnetkit.models.weights import imagenet_classes, imagenet_ids, modelfile
from resnetkit.storage import sha256

FOLDER = Path(modelfile.__file__).parent / "starter"


def main() -> None:
    source, images = sys.argv[1:]
    network, header = modelfile.read(source)
    # Norms stay in full precision: they are few, and their variances can exceed half's range.
    tensors = {
        name: tensor.half() if tensor.ndim > 1 else tensor
        for name, tensor in network.state_dict().items()
    }
    name_of = dict(zip(imagenet_ids(), imagenet_classes(), strict=True))
    classes = tuple(name_of[wordnet_id] for wordnet_id in header.classes)
    parts = {
        split: {"count": facts["count"], "digests": []}
        for split, facts in header.data["parts"].items()
    }
    data = {"name": "tiny-imagenet-200", "parts": parts}
    made = FOLDER / "new.safetensors"
    # The classes are still WordNet ids here, like the folders of ``images``.
    modelfile.write(made, tensors, replace(header, data=data, metrics={}))
    measured = evaluate(made, images, "val").metrics
    metrics = {key: measured[key] for key in ("accuracy", "top5_accuracy", "pictures")}
    modelfile.write(made, tensors, replace(header, classes=classes, data=data, metrics=metrics))
    for old in FOLDER.glob("resnet18_starter-*.safetensors"):
        old.unlink()
    path = made.rename(FOLDER / f"resnet18_starter-{sha256(made)[:8]}.safetensors")
    print(f"{path.name}: {path.stat().st_size / 2**20:.3f} MiB")
    print(f"SHA-256 {sha256(path)}")
    print(metrics)


if __name__ == "__main__":
    main()
