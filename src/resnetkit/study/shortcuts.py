"""Table 3: kinds of shortcuts, their cost (counted) and their benefit (trained).

No shortcuts; identities padded with zeros (A); projections where shapes differ (B); projections
everywhere (C).
"""

from __future__ import annotations

from ..models import summarize
from ..models.skeleton import get_skeleton
from . import published
from .runs import Net
from .table import Row, Table

OPTIONS = ("none", "A", "B", "C")


def nets(model: str) -> list[Net]:
    """Return ``model`` without shortcuts, and with each kind of shortcut."""
    return [Net(f"{model}-{option}", model, {"shortcut": option}) for option in OPTIONS]


def costs(model: str, size: int) -> Table:
    """Return the parameters and multiply-adds of ``model`` with each option."""
    rows = []
    for option in OPTIONS:
        summary = summarize(get_skeleton(model, shortcut=option), size)
        rows.append(Row(f"{option}: parameters", summary.parameters))
        rows.append(Row(f"{option}: millions of multiply-adds", summary.macs / 1e6))
    return Table(f"{model} at {size} px: what the shortcuts cost", tuple(rows))


def published_errors() -> str:
    """Return table 3 as the paper prints it: ImageNet, ten crops. It is not reproduced here."""
    lines = [
        "Table 3, published: error in % on ImageNet, ten crops",
        "",
        " " * 12 + "  top-1  top-5",
    ]
    lines += [
        f"{net:12}  {top1:>5}  {top5:>5}" for net, (top1, top5) in published.TABLE3_ERRORS.items()
    ]
    return "\n".join(lines)
