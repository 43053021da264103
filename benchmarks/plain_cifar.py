"""The peer on CIFAR-10: a plain script that uses nothing from resnetkit. `gpu.py` starts it.

    python benchmarks/plain_cifar.py DATA --device cuda --precision bf16

DATA holds ``train/<class>/`` and ``val/<class>/``. The script trains torchvision's ResNet-18 with a
3x3 stem and no pooling after it, random crop (padding 4) and flip, ImageFolder and DataLoader with
worker processes, SGD with Nesterov momentum and a one-cycle learning rate. The precision is fp32
with PyTorch's defaults (on NVIDIA GPUs, convolutions compute in TF32), or bf16 or fp16 by autocast,
fp16 with a scaled loss. The script prints the accuracy after each epoch.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision import datasets, models, transforms


def loaders(data: Path, batch_size: int, workers: int) -> tuple[DataLoader, DataLoader]:
    finish = [
        transforms.ToTensor(),
        transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    ]
    augment = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()]
    train = datasets.ImageFolder(data / "train", transforms.Compose(augment + finish))
    val = datasets.ImageFolder(data / "val", transforms.Compose(finish))
    more = {"num_workers": workers, "pin_memory": True, "persistent_workers": workers > 0}
    return (
        DataLoader(train, batch_size, shuffle=True, drop_last=True, **more),
        DataLoader(val, 512, **more),
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="bf16")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    train, val = loaders(args.data, args.batch_size, args.workers)
    model = models.resnet18(num_classes=10)
    model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    model.maxpool = nn.Identity()
    model = model.to(args.device)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.2, momentum=0.9, nesterov=True, weight_decay=5e-4
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 0.2, args.epochs * len(train), pct_start=0.25, cycle_momentum=False
    )
    kind = torch.float16 if args.precision == "fp16" else torch.bfloat16
    autocast = torch.autocast(args.device, kind, enabled=args.precision != "fp32")
    scaler = torch.amp.GradScaler(args.device, enabled=args.precision == "fp16")
    for epoch in range(args.epochs):
        model.train()
        for images, labels in train:
            images = images.to(args.device, non_blocking=True)
            labels = labels.to(args.device, non_blocking=True)
            with autocast:
                loss = nn.functional.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            schedule.step()
        model.eval()
        right = 0
        with torch.no_grad(), autocast:
            for images, labels in val:
                answers = model(images.to(args.device)).argmax(1)
                right += int((answers == labels.to(args.device)).sum())
        accuracy = right / len(val.dataset)
        print(f"epoch {epoch + 1}/{args.epochs}  val accuracy {accuracy:7.2%}", flush=True)


if __name__ == "__main__":
    main()
