"""What a benchmark says: rows of a measured value against a limit, never a time alone.

``value`` and ``limit`` are in ``unit``; ``ratio`` = value / limit; ``goal`` is what the ratio
should be: at least that where ``higher_is_better``, at most that elsewhere. The limit is measured
in the same run where it belongs to the machine (its best matrix multiply), computed where it
follows from the method (a ratio of FLOPs), and otherwise a budget, whose goal is then 1.
"""

from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass(frozen=True)
class Row:
    """One line of the table; the columns are explained above."""

    name: str
    value: float
    unit: str
    limit: float
    goal: float
    higher_is_better: bool

    @property
    def ratio(self) -> float:
        """The value in limits."""
        return self.value / self.limit

    @property
    def meets_goal(self) -> bool:
        """Whether the ratio is as good as it should be."""
        return self.ratio >= self.goal if self.higher_is_better else self.ratio <= self.goal

    @classmethod
    def of(cls, record: dict[str, Any]) -> "Row":
        """Return the row of which ``record`` stands in a report."""
        return cls(**{field.name: record[field.name] for field in fields(cls)})

    def record(self) -> dict[str, Any]:
        """Return the row as it stands in the report, four significant digits a number."""
        record = asdict(self) | {"ratio": self.ratio}
        columns = ("name", "value", "unit", "limit", "ratio", "goal", "higher_is_better")
        return {
            column: float(f"{record[column]:.4g}")
            if isinstance(record[column], float)
            else record[column]
            for column in columns
        }


def table(rows: list[Row]) -> str:
    """Return the rows as text, one a line; a row that misses its goal says so."""
    cells = [("", "value", "limit", "unit", "ratio", "goal", "")]
    for row in rows:
        goal = f"{'≥' if row.higher_is_better else '≤'} {row.goal:.2f}"
        verdict = "" if row.meets_goal else "MISSED"
        value, limit = f"{row.value:.3g}", f"{row.limit:.3g}"
        cells.append((row.name, value, limit, row.unit, f"{row.ratio:.2f}", goal, verdict))
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    left = {0, 3, 6}  # words; numbers are set right
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    )
