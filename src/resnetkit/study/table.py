"""A table of the paper beside what the built networks say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Row:
    """One value: ``derived`` from built modules or measured, ``published`` as the paper prints it
    (None where it has no such number)."""

    what: str
    derived: float | str
    published: str | None = None

    @property
    def difference(self) -> float | None:
        """Derived less published; None where one of them is no number."""
        if isinstance(self.derived, str) or self.published is None:
            return None
        return self.derived - float(self.published)

    @property
    def agrees(self) -> bool | None:
        """Whether both are the same to the digits that the paper prints.

        >>> Row("GMACs", 3.858, "3.8").agrees, Row("GMACs", 7.57, "7.6").agrees
        (False, True)
        """
        if self.published is None:
            return None
        if isinstance(self.derived, str):
            return self.derived == self.published
        digits = len(self.published.partition(".")[2])
        return f"{self.derived:.{digits}f}" == self.published


@dataclass(frozen=True)
class Table:
    """Rows of one table or figure; ``digits`` behind the point are shown of derived numbers."""

    title: str
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    digits: int = 3

    def __str__(self) -> str:
        head = ("", "derived", "published", "difference", "same")
        cells = [head, *(self._cells(row) for row in self.rows)]
        widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
        lines = [self.title, ""]
        for row in cells:
            texts = [row[0].ljust(widths[0])]
            texts += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
            lines.append("  ".join(texts).rstrip())
        return "\n".join([*lines, *(f"Note: {note}" for note in self.notes)])

    def _cells(self, row: Row) -> tuple[str, ...]:
        derived = row.derived if isinstance(row.derived, str) else self._number(row.derived)
        digits = 0 if isinstance(row.derived, int) else self.digits
        difference = "" if row.difference is None else f"{row.difference:+,.{digits}f}"
        same = {None: "", True: "yes", False: "no"}[row.agrees]
        return row.what, derived, row.published or "", difference, same

    def _number(self, value: float) -> str:
        return f"{value:,}" if isinstance(value, int) else f"{value:,.{self.digits}f}"

    def to_dict(self) -> dict[str, Any]:
        """As JSON; numbers have all their digits."""
        rows = [
            {
                "what": row.what,
                "derived": row.derived,
                "published": row.published,
                "difference": row.difference,
                "same": row.agrees,
            }
            for row in self.rows
        ]
        return {"title": self.title, "rows": rows, "notes": list(self.notes)}
