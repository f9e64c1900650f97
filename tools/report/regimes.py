"""The map of regimes as a picture: ``python -m tools.report.regimes`` writes reports/regimes.png.

Tokens of a whole image side by side, budgets to the right, factors upwards, an arm a mark.
"""

from pathlib import Path

from benchmarks.evidence.regimes import EXACT, LEAST, MOST, regimes
from maskdm.runtime.command import run
from maskdm.runtime.files import write_bytes
from tools.report.charts import regime_map

PICTURE = Path("reports/regimes.png")
SHAPES = {EXACT: "circle", LEAST: "triangle-up", MOST: "triangle-down"}


def main() -> None:
    """Draw the map from the runs that are there."""
    import vl_convert

    found = sorted(regimes(), key=lambda one: one.tokens)
    rows = [
        {
            "tokens": f"{one.tokens} tokens",
            "budget": float(f"{one.budget:.3g}"),
            "factor": one.factor,
            "bound": one.bound,
            "dataset": one.dataset.removesuffix("-tuning"),
            "seeds": "one" if one.seeds == 1 else "several",
        }
        for one in found
    ]
    shapes = {
        bound: shape for bound, shape in SHAPES.items() if any(bound == one.bound for one in found)
    }
    write_bytes(PICTURE, vl_convert.vegalite_to_png(regime_map(rows, shapes), scale=2))


if __name__ == "__main__":
    run(main)
