"""The plan of a run, as text that is shown before the first step."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from ..data.folder import Split
from ..data.paths import shown
from ..runtime import Runtime
from ..text import display_width, pad_to_width, pluralize, printable
from .preparation import PreparedData
from .recipe import Recipe

FEW_IMAGES = 30
"""Training images per class below which a note asks for more."""

SMALL_BATCH = 8
"""Number of images per forward pass below which batch norm estimates mean and variance poorly."""


def describe_plan(
    prepared: PreparedData,
    recipe: Recipe,
    runtime: Runtime,
    *,
    model: nn.Module,
    workers: int,
    seconds: float,
) -> str:
    """Return the plan of a run.

    Args:
        prepared: the images.
        recipe: the resolved recipe.
        runtime: device, precision and ranks.
        model: the network.
        workers: threads that read images.
        seconds: the expected duration of the run.
    """
    dataset = prepared.dataset
    train = prepared.train.split
    val = prepared.val.split
    assert recipe.epochs is not None
    lines = [
        f"{printable(shown(dataset.root))}: {len(train):,} training + {len(val):,} validation "
        f"images, {len(dataset.classes):,} classes",
        "",
        *_class_table(dataset.classes, train, val),
        "",
        *_notes_on_data(prepared, recipe),
        *_note_on_batch_norm(recipe, runtime, model),
    ]

    parameters = sum(p.numel() for p in model.parameters())
    options = "".join(f", {key} {value}" for key, value in recipe.model_options.items())
    first_size = recipe.train_size(0)
    last_size = recipe.train_size(recipe.epochs - 1)
    size = f"{first_size} growing to {last_size}" if first_size != last_size else f"{first_size}"
    processes = f"{runtime.world_size} processes of " if runtime.world_size > 1 else ""
    threads = pluralize(recipe.threads or torch.get_num_threads(), "compute thread")
    readers = pluralize(workers, "thread")
    time = f"{seconds / 60:.1f} minutes" if seconds >= 60 else f"{seconds:.0f} seconds"
    rows = {
        "network": f"{recipe.model}{options}, {parameters:,} parameters, {_describe_start(recipe)}",
        "images": f"trained at {size} px, evaluated at {recipe.image_size} px (center crop; "
        f"shorter side {recipe.resize_size} px)",
        "augmentation": describe_augmentation(recipe),
        "training": describe_training(recipe, len(train)),
        "optimizer": describe_optimizer(recipe),
        "machine": f"{runtime.device}, {runtime.precision}, {processes}{threads}, {readers} to "
        "read images",
        "expected": f"{time} (from a few measured steps)",
    }
    lines += [f"{name:14}{text}" for name, text in rows.items()]
    return "\n".join(lines)


def _describe_start(recipe: Recipe) -> str:
    """Describe what the network starts from."""
    if recipe.weights == "none":
        return "random weights"
    text = f"weights of {printable(Path(recipe.weights).name)}"
    if recipe.freeze:
        text += f", {', '.join(recipe.freeze)} frozen"
    if recipe.head_share:
        text += f", only the head for the first {recipe.head_share:.0%}"
    return text


def describe_augmentation(recipe: Recipe) -> str:
    """Describe the augmentation of a recipe.

    >>> describe_augmentation(Recipe(crop_scale=(0.5, 1.0)))
    'crops of 50% to 100% of the area, mirrored at random'
    """
    if recipe.crop_padding is not None:
        crop = f"random squares from the image with {recipe.crop_padding} px of black around it"
    elif recipe.scale_jitter is not None:
        least, most = recipe.scale_jitter
        crop = f"random squares from the image scaled to {least:.2f} to {most:.2f} times their side"
    else:
        crop = f"crops of {recipe.crop_scale[0]:.0%} to {recipe.crop_scale[1]:.0%} of the area"
    words = [crop, "mirrored at random" if recipe.flip else "not mirrored"]
    if recipe.trivial_augment is True:
        words.append("TrivialAugment")
    if recipe.erasing:
        words.append(f"a box erased in {recipe.erasing:.0%} of images")
    if recipe.mixup:
        words.append(f"MixUp {recipe.mixup:g}")
    if recipe.cutmix:
        words.append(f"CutMix {recipe.cutmix:g}")
    return ", ".join(words)


def describe_training(recipe: Recipe, images: int) -> str:
    """Describe the length of a run on this many training images, and its batches.

    >>> describe_training(Recipe(epochs=3, batch_size=32), images=100)
    '3 epochs of 3 steps of 32 images'
    """
    assert recipe.epochs is not None
    assert recipe.batch_size is not None
    epochs = pluralize(recipe.epochs, "epoch")
    if recipe.steps is not None:
        length = f"{pluralize(recipe.steps, 'step')} in {epochs}"
    else:
        length = f"{epochs} of {pluralize(max(1, images // recipe.batch_size), 'step')}"
    batch = pluralize(min(recipe.batch_size, images), "image")
    copies = f", {recipe.repeats} copies of each" if recipe.repeats > 1 else ""
    classes = ", every class equally often" if recipe.sampling == "balanced" else ""
    share = recipe.shallow_share
    depth = f", one block per stage for the first {share:.0%}" if share else ""
    return f"{length} of {batch}{copies}{classes}{depth}"


def describe_optimizer(recipe: Recipe) -> str:
    """Describe optimizer, learning rate, regularization and EMA of a recipe.

    >>> describe_optimizer(Recipe(optimizer="sgd", lr=0.1, weight_decay=0, schedule="steps"))
    'sgd, learning rate 0.1 (steps), label smoothing 0.1'
    """
    words = [recipe.optimizer, f"learning rate {recipe.lr:g} ({recipe.schedule})"]
    if recipe.weight_decay:
        words.append(f"weight decay {recipe.weight_decay:g}")
    words.append(f"label smoothing {recipe.label_smoothing:g}")
    if recipe.ema:
        every = f" every {recipe.ema_every} steps" if recipe.ema_every > 1 else ""
        words.append(f"EMA of the weights {recipe.ema:g}{every}")
    return ", ".join(words)


def _notes_on_data(prepared: PreparedData, recipe: Recipe) -> list[str]:
    """Return notes on what the user should know about the images before training on them."""
    dataset = prepared.dataset
    train = prepared.train.split
    lines = []
    if recipe.fold is not None:
        number, count = recipe.fold
        lines.append(
            f"Fold {number} of {count} is set aside for validation (listed in split.csv; exact and "
            "near duplicates stay together)."
        )
    elif not len(prepared.val):
        lines.append(
            "All images are used for training and none for validation, so the last epoch is kept."
        )
    elif prepared.made_split:
        lines.append(
            f"There is no validation split, so {recipe.val_split:.0%} of each class was set aside "
            "for validation (listed in split.csv; exact duplicates stay together)."
        )
    if prepared.corrections is not None:
        corrections = prepared.corrections
        lines.append(f"Corrected: {corrections.describe()} ({corrections.file}).")
    lines += [f"Left out: {line}." for line in dataset.left_out.lines()]
    lines += [f"Note: {note}." for note in dataset.notes]
    lines += [f"Note: {note}." for note in prepared.notes]
    lines += [f"Skipped, because it cannot be read: {text}" for text in prepared.skipped]
    if recipe.value_range is not None:
        low, high = recipe.value_range
        lines.append(
            f"In images with more than 8 bits, {low:,g} becomes black and {high:,g} becomes "
            f"white, here and wherever the model is used (--set value_range=[{low:g},{high:g}])."
        )
    if prepared.conflicting:
        count = len(prepared.conflicting)
        verb = "is" if count == 1 else "are"
        lines.append(
            f"Note: {pluralize(count, 'image')} {verb} in more than one class: "
            f"{', '.join(prepared.conflicting[:5])}."
        )
    if recipe.flip and _names_may_be_mirrored(dataset.classes):
        lines.append(
            "Note: images are mirrored at random. The class names suggest that a mirrored image "
            "may belong to another class. If so, add --set flip=false."
        )
    if len(train) < FEW_IMAGES * len(dataset.classes):
        lines.append(
            f"Note: only {len(train) / len(dataset.classes):.0f} training images per class. "
            "More images will help more than anything else."
        )
    return [printable(line) for line in lines]


def _note_on_batch_norm(recipe: Recipe, runtime: Runtime, model: nn.Module) -> list[str]:
    """Return a note if each process has too few images for batch norm, else an empty list."""
    ranks = runtime.world_size
    count = recipe.micro_batch_size(ranks)
    has_local_norms = any(  # SyncBatchNorm is not a BatchNorm2d
        isinstance(module, nn.BatchNorm2d) for module in model.modules()
    )
    if ranks == 1 or count >= SMALL_BATCH or not has_local_norms:
        return []
    larger = SMALL_BATCH * ranks * recipe.accumulate
    return [
        f"Note: batch norm sees {pluralize(count, 'image')} at once in each of {ranks} processes, "
        f"which makes its statistics noisy: add --batch-size {larger}, or on CUDA GPUs "
        "--set sync_bn=true."
    ]


def _names_may_be_mirrored(classes: tuple[str, ...]) -> bool:
    """Return whether mirroring an image may change its class, judging by the class names.

    It may if a name contains the word "left" or "right", or if all names are single letters or
    numbers.
    """
    words = {word for name in classes for word in re.split(r"[\W_]+", name.lower())}
    return bool(words & {"left", "right"}) or all(re.fullmatch(r"[A-Za-z]|\d+", n) for n in classes)


def _class_table(classes: tuple[str, ...], train: Split, val: Split, most: int = 30) -> list[str]:
    """Return a table of images per class. If there are many classes, show only the smallest."""
    counts = list(zip(classes, train.counts(len(classes)), val.counts(len(classes)), strict=True))
    shown = counts if len(counts) <= most else sorted(counts, key=lambda row: row[1])[:most]
    width = max(len("class"), *(display_width(name) for name, _, _ in shown))
    lines = [f"  {'class':{width}}  train    val"]
    lines += [f"  {pad_to_width(name, width)}  {n:5}  {m:5}" for name, n, m in shown]
    if len(counts) > most:
        rest = sorted(counts, key=lambda row: row[1])[most:]
        trained = _range_text([count for _, count, _ in rest])
        validated = _range_text([count for _, _, count in rest])
        lines.append(
            f"  ... the {most} smallest of {len(counts):,} classes; the other {len(rest):,} have "
            f"{trained} images for training and {validated} for validation"
        )
    return lines


def _range_text(counts: Sequence[int]) -> str:
    low = min(counts)
    high = max(counts)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
