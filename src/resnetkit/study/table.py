"""A table from the paper next to values derived from built networks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Row:
    """One value, derived and published.

    Args:
        what: name of the value.
        derived: from built modules, or measured.
        published: as printed in the paper; None if the paper does not have it.
    """

    what: str
    derived: float | str
    published: str | None = None

    @property
    def difference(self) -> float | None:
        """Derived minus published; None if either is not a number."""
        if isinstance(self.derived, str) or self.published is None:
            return None
        return self.derived - float(self.published)

    @property
    def agrees(self) -> bool | None:
        """Whether both agree to the digits that the paper prints; None if it prints no such value.

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
    """Rows of one table or figure; derived numbers are shown with ``digits`` decimals."""

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
        """Return the table as JSON data, with numbers in full precision."""
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
