"""The map of regimes: ``python -m tools.report.regimes`` writes it to reports/regimes.png.

Tokens of a whole image side by side, budgets to the right, factors upwards, an arm a mark.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.evidence.regimes import EXACT, LEAST, MIXED, MOST, Regime, regimes
from maskdm.runtime.command import run
from maskdm.runtime.files import write_bytes
from tools.report.charts import regime_map

PICTURE = Path("reports/regimes.png")
TESTED = ("decision-32", "decision-8", "decision-4")  # whose arms are named
TOUCH = 1.06  # times a factor: what is nearer is one name
SHAPES = {EXACT: "circle", LEAST: "triangle-up", MOST: "triangle-down", MIXED: "diamond"}


def rows() -> list[dict[str, Any]]:
    """Return the marks of the map from the runs that are there, fewest tokens first."""
    found = sorted(regimes(), key=lambda one: (one.tokens, -one.factor))
    labels = names(found)
    return [
        {
            "tokens": f"{one.tokens} tokens",
            "budget": float(f"{one.budget:.3g}"),
            "factor": one.factor,
            "bound": one.bound,
            "dataset": one.dataset.removesuffix("-tuning"),
            "seeds": "one" if len(one.seeds) == 1 else "several",
            # Drawings have their place to the right of glyphs.
            "before": "" if one.dataset.startswith("openmoji") else label,
            "after": label if one.dataset.startswith("openmoji") else "",
        }
        for one, label in zip(found, labels, strict=True)
    ]


def names(found: Sequence[Regime]) -> list[str]:
    """Return what stands beside each mark: the arm of a test, of marks that touch beside the first.

    Args:
        found: marks, the highest first.
    """
    labels = [one.arm[0] if one.part in TESTED else "" for one in found]
    for index, one in enumerate(found):
        for other in range(index):
            above = found[other]
            near = (above.part, above.dataset) == (one.part, one.dataset)
            if near and labels[index] and labels[other] and above.factor < TOUCH * one.factor:
                labels[other], labels[index] = f"{labels[other]}, {labels[index]}", ""
    return labels


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
