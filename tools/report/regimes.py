"""The map of regimes: ``python -m tools.report.regimes`` writes it to reports/regimes.png.

Tokens of a whole image side by side, budgets to the right, factors upwards, an arm a mark.
"""

from pathlib import Path
from typing import Any

from benchmarks.evidence.regimes import EXACT, LEAST, MIXED, MOST, regimes
from maskdm.runtime.command import run
from maskdm.runtime.files import write_bytes
from tools.report.charts import regime_map

PICTURE = Path("reports/regimes.png")
SHAPES = {EXACT: "circle", LEAST: "triangle-up", MOST: "triangle-down", MIXED: "diamond"}


def rows() -> list[dict[str, Any]]:
    """Return the marks of the map from the runs that are there, fewest tokens first."""
    return [
        {
            "tokens": f"{one.tokens} tokens",
            "budget": float(f"{one.budget:.3g}"),
            "factor": one.factor,
            "bound": one.bound,
            "dataset": one.dataset.removesuffix("-tuning"),
            "seeds": "one" if one.seeds == 1 else "several",
        }
        for one in sorted(regimes(), key=lambda one: one.tokens)
    ]


def shapes(marks: list[dict[str, Any]]) -> dict[str, str]:
    """Return the shapes of the bounds that there are."""
    return {
        bound: shape
        for bound, shape in SHAPES.items()
        if any(bound == one["bound"] for one in marks)
    }


def main() -> None:
    """Draw the map."""
    import vl_convert

    marks = rows()
    spec = regime_map(marks, shapes(marks))
    write_bytes(PICTURE, vl_convert.vegalite_to_png(spec, scale=2))


if __name__ == "__main__":
    run(main)
