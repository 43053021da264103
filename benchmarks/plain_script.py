"""The peer: the training script of every tutorial, which uses nothing from resnetkit.

    python benchmarks/plain_script.py DATA --size 96 --out plain.json

DATA holds ``train/<class>/`` and ``val/<class>/``. The script trains torchvision's ResNet-34 from
random weights with Pillow transforms (random resized crop, flip), ImageFolder and DataLoader, Adam
at 1e-4, batch 128, 30 epochs, fp32, and keeps the best validation accuracy. After each epoch, it
writes the accuracy and the seconds since the start of the process.
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
from torchvision import datasets, models, transforms  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    normalize = transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    augment = [transforms.RandomResizedCrop(args.size), transforms.RandomHorizontalFlip()]
    preset = [transforms.Resize(round(args.size * 256 / 224)), transforms.CenterCrop(args.size)]
    finish = [transforms.ToTensor(), normalize]
    train = datasets.ImageFolder(args.data / "train", transforms.Compose(augment + finish))
    val = datasets.ImageFolder(args.data / "val", transforms.Compose(preset + finish))
    train_loader = DataLoader(train, batch_size=128, shuffle=True, num_workers=2)
    val_loader = DataLoader(val, batch_size=128, num_workers=2)

    model = models.resnet34(num_classes=len(train.classes))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    loss_function = nn.CrossEntropyLoss()
    best, rows = 0.0, []
    for epoch in range(args.epochs):
        model.train()
        for images, labels in train_loader:
            optimizer.zero_grad()
            loss_function(model(images), labels).backward()
            optimizer.step()
        model.eval()
        right = 0
        with torch.no_grad():
            for images, labels in val_loader:
                right += int((model(images).argmax(1) == labels).sum())
        accuracy = right / len(val)
        seconds = time.perf_counter() - START
        rows.append({"epoch": epoch + 1, "val_accuracy": accuracy, "seconds": seconds})
        print(f"epoch {epoch + 1}: val accuracy {accuracy:.4f} after {seconds:.0f} s", flush=True)
        if accuracy > best:
            best = accuracy
            torch.save(model.state_dict(), args.out.with_suffix(".pth"))
        versions = {"torch": torch.__version__, "threads": torch.get_num_threads()}
        args.out.write_text(json.dumps({"best": best, **versions, "epochs": rows}, indent=1))


if __name__ == "__main__":
    main()
