"""The classes in ImageNet-1K: their published names, and the WordNet ids that name its folders."""

from __future__ import annotations

from pathlib import Path


def imagenet_classes() -> list[str]:
    """Return the 1000 class names of ImageNet-1K, in the order of the logits."""
    return _read_lines("imagenet_classes.txt")


def imagenet_ids() -> list[str]:
    """Return the 1000 WordNet ids of ImageNet-1K, in the order of the logits.

    ImageNet's folders have these names; the order of the logits is their sorted order.
    """
    return _read_lines("imagenet_ids.txt")


def _read_lines(name: str) -> list[str]:
    return (Path(__file__).parent / name).read_text(encoding="utf-8").splitlines()
