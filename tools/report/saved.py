"""The saved-compute curves: ``python -m tools.report.saved`` writes them to reports/saved.png.

A chart for each set of images and number of tokens, an arm a line: to the right its training FLOPs
so far, upwards what they have saved of scratch's.
"""

from pathlib import Path
from typing import Any

from benchmarks.evidence.results import NEAR
from benchmarks.evidence.saved import courses
from maskdm.runtime.command import run
from maskdm.runtime.files import write_bytes
from tools.report.charts import saved_compute, side_by_side

PICTURE = Path("reports/saved.png")
FEW = 3  # points that make a curve
MARKS = "at least", "first phase", "on whole images"


def panels() -> dict[str, list[dict[str, Any]]]:
    """Return the rows of the charts by title, fewest tokens first."""
    found: dict[tuple[int, str], list[dict[str, Any]]] = {}
    for course in courses():
        if len(course.points) < FEW:
            continue
        dataset = course.dataset.removesuffix("-tuning")
        rows = found.setdefault((course.tokens, dataset), [])
        for point in course.points:
            # Where scratch's curves have ended all is a bound, and sinks with every FLOP.
            if course.last and not point.exact and point.saved < course.last.saved:
                continue
            first = point.flops <= (1 + NEAR) * course.primed
            rows.append(
                {
                    "arm": course.arm,
                    "flops": point.flops,
                    "saved": point.saved,
                    "mark": MARKS[0] if not point.exact else MARKS[1] if first else MARKS[2],
                    "seeds": course.seeds,
                }
            )
    return {
        f"{dataset}, {tokens} tokens": found[tokens, dataset] for tokens, dataset in sorted(found)
    }


def main() -> None:
    """Draw the curves."""
    import vl_convert

    charts = {title: saved_compute(rows, MARKS) for title, rows in panels().items()}
    spec = side_by_side(charts, apart=["color"])  # each has arms of its own
    write_bytes(PICTURE, vl_convert.vegalite_to_png(spec, scale=1.5))


if __name__ == "__main__":
    run(main)
