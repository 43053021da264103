"""Table 3: no shortcuts, identities padded with zeros (A), projections where shapes differ (B), and
projections everywhere (C). What they cost is counted; what they bring is trained."""

from __future__ import annotations

from ..models import summarize
from ..models.registry import get_skeleton
from . import published
from .runs import Net
from .table import Row, Table

OPTIONS = ("none", "A", "B", "C")


def nets(model: str) -> list[Net]:
    """``model`` without shortcuts, and with each kind of them."""
    return [Net(f"{model}-{option}", model, {"shortcut": option}) for option in OPTIONS]


def costs(model: str, size: int) -> Table:
    """Parameters and multiply-adds of ``model`` with each option."""
    rows = []
    for option in OPTIONS:
        counted = summarize(get_skeleton(model, shortcut=option), size)
        rows.append(Row(f"{option}: parameters", counted.parameters))
        rows.append(Row(f"{option}: millions of multiply-adds", counted.macs / 1e6))
    return Table(f"{model} at {size} px: what the shortcuts cost", tuple(rows))


def published_errors() -> str:
    """Table 3 as the paper prints it: ImageNet, ten crops; nothing here repeats it."""
    lines = [
        "Table 3, published: error in % on ImageNet, ten crops",
        "",
        " " * 12 + "  top-1  top-5",
    ]
    lines += [
        f"{net:12}  {top1:>5}  {top5:>5}" for net, (top1, top5) in published.TABLE3_ERRORS.items()
    ]
    return "\n".join(lines)
