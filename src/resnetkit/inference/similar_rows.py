"""Similar photos as rows of a table, JSON Lines or CSV."""

from __future__ import annotations

import json

from ..storage import csv_line
from ..text import printable
from .similar import Neighbor, SimilarPhotos

COLUMNS = ("source", "rank", "similarity", "path", "label", "copy", "model", "error")


def format_similar_header(format: str) -> str:
    """Return the header line of a format; only CSV has one."""
    return ",".join(COLUMNS) + "\n" if format == "csv" else ""


def format_similar(answer: SimilarPhotos, format: str) -> str:
    """Return the rows of one query.

    JSON Lines has one line for each query. CSV has one for each photo. The table has the query,
    then an indented line for each photo: its rank, similarity and path.
    """
    if format == "jsonl":
        return json.dumps(answer.to_dict(), ensure_ascii=False) + "\n"
    if format == "csv":
        rows: list[tuple[int | float | str, ...]] = [
            (rank, n.similarity, n.path, n.label, int(n.is_copy))
            for rank, n in enumerate(answer.neighbors, 1)
        ]
        return "".join(
            csv_line((answer.source, *row, answer.model, answer.error))
            for row in rows or [("",) * 5]
        )
    if answer.error is not None:
        return f"{printable(answer.source)}  ERROR  {printable(answer.error)}\n"
    lines = [
        f"  {rank:2}  {n.similarity:7.4f}  {_name(n)}\n"
        for rank, n in enumerate(answer.neighbors, 1)
    ]
    return f"{printable(answer.source)}\n{''.join(lines)}"


def _name(neighbor: Neighbor) -> str:
    return printable(neighbor.path) + ("  (the same bytes)" if neighbor.is_copy else "")
