"""The rows of the plan that put a recipe into words."""

from __future__ import annotations

from .recipe import Recipe


def augmentation(recipe: Recipe) -> str:
    """
    >>> augmentation(Recipe(crop_scale=(0.5, 1.0)))
    'crops of 50% to 100% of the area, mirrored at random'
    """
    if recipe.crop_padding is not None:
        crop = f"squares at random of the picture with {recipe.crop_padding} px of black around it"
    elif recipe.scale_jitter is not None:
        least, most = recipe.scale_jitter
        crop = (
            f"squares at random of the picture scaled to {least:.2f} to {most:.2f} times their side"
        )
    else:
        crop = f"crops of {recipe.crop_scale[0]:.0%} to {recipe.crop_scale[1]:.0%} of the area"
    words = [crop, "mirrored at random" if recipe.flip else "not mirrored"]
    if recipe.trivial_augment:
        words.append("TrivialAugment")
    if recipe.erasing:
        words.append(f"a box erased in {recipe.erasing:.0%}")
    if recipe.mixup:
        words.append(f"MixUp {recipe.mixup:g}")
    if recipe.cutmix:
        words.append(f"CutMix {recipe.cutmix:g}")
    return ", ".join(words)


def training(recipe: Recipe, images: int) -> str:
    """
    >>> training(Recipe(epochs=3, batch_size=32), pictures=100)
    '3 epoch(s) of 3 step(s) of 32 pictures'
    """
    assert recipe.batch_size is not None
    batch = min(recipe.batch_size, images)
    length = f"{recipe.epochs} epoch(s) of {max(1, images // recipe.batch_size)} step(s)"
    if recipe.steps is not None:
        length = f"{recipe.steps:,} step(s) in {recipe.epochs} epoch(s)"
    copies = f", {recipe.repeats} copies of each" if recipe.repeats > 1 else ""
    classes = ", every class equally often" if recipe.sampling == "balanced" else ""
    share = recipe.shallow_share
    depth = f", the first {share:.0%} with one block a stage" if share else ""
    return f"{length} of {batch} pictures{copies}{classes}{depth}"


def optimiser(recipe: Recipe) -> str:
    """
    >>> optimiser(Recipe(optimizer="sgd", lr=0.1, weight_decay=0, schedule="steps"))
    'sgd, learning rate 0.1 (steps), label smoothing 0.1'
    """
    words = [recipe.optimizer, f"learning rate {recipe.lr:g} ({recipe.schedule})"]
    if recipe.weight_decay:
        words.append(f"weight decay {recipe.weight_decay:g}")
    words.append(f"label smoothing {recipe.label_smoothing:g}")
    if recipe.ema:
        every = f" every {recipe.ema_every} steps" if recipe.ema_every > 1 else ""
        words.append(f"weights averaged by {recipe.ema:g}{every}")
    return ", ".join(words)
