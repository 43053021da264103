"""The peer for large datasets: torchvision's reference recipe for ResNets, within a time budget.

    python benchmarks/reference_recipe.py DATA --size 64 --minutes 10 --out reference.json

DATA holds ``train/<class>/`` and ``val/<class>/``. The script trains ResNet-18 from random weights
with the defaults of ``references/classification/train.py``: SGD at 0.1 with momentum 0.9 and weight
decay 1e-4, random resized crop, flip, and a learning rate that falls to a tenth after each third of
the training. That recipe has 90 epochs; here, the thirds are thirds of the minutes, so that the
last accuracy is what the recipe can reach in that time. Batches have 128 images; the network
computes in bf16 and channels_last.

Only the network comes from resnetkit, in the width that `resnet train` uses.
"""

from __future__ import annotations

import time

START = time.perf_counter()

import argparse  # noqa: E402
import json  # noqa: E402
from pathlib import Path  # noqa: E402

import torch  # noqa: E402
from torch import nn  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402
from torchvision import datasets, transforms  # noqa: E402

from resnetkit.models import resnet18  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    torch.set_num_threads(1)
    normalize = transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    augment = [transforms.RandomResizedCrop(args.size), transforms.RandomHorizontalFlip()]
    preset = [transforms.Resize(args.size), transforms.CenterCrop(args.size)]
    finish = [transforms.ToTensor(), normalize]
    train = datasets.ImageFolder(args.data / "train", transforms.Compose(augment + finish))
    val = datasets.ImageFolder(args.data / "val", transforms.Compose(preset + finish))
    train_loader = DataLoader(
        train, batch_size=128, shuffle=True, drop_last=True, num_workers=args.workers
    )
    val_loader = DataLoader(val, batch_size=128, num_workers=args.workers)

    model = resnet18(num_classes=len(train.classes), width=args.width)
    model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    loss_function = nn.CrossEntropyLoss()
    rows, images_seen = [], 0

    def validate() -> None:
        model.eval()
        right = 0
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            for images, labels in val_loader:
                right += int((model(images).argmax(1) == labels).sum())
        model.train()
        seconds, accuracy = time.perf_counter() - START, right / len(val)
        rows.append({"images": images_seen, "val_accuracy": accuracy, "seconds": seconds})
        print(f"{images_seen} images, {seconds:.0f} s: val accuracy {accuracy:.4f}", flush=True)
        args.out.write_text(json.dumps({"torch": torch.__version__, "rows": rows}, indent=1))

    model.train()
    while True:
        for images, labels in train_loader:
            share = (time.perf_counter() - START) / (60 * args.minutes)
            if share >= 1:
                validate()
                return
            for group in optimizer.param_groups:
                group["lr"] = 0.1 * 0.1 ** int(3 * share)
            images = images.contiguous(memory_format=torch.channels_last)
            with torch.autocast("cpu", torch.bfloat16):
                loss = loss_function(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            images_seen += len(images)
        validate()


if __name__ == "__main__":
    main()
