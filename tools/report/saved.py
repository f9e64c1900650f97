"""The saved-compute curves: ``python -m tools.report.saved`` writes them to reports/saved.png.

A chart for each set of images and number of tokens, an arm a line: to the right its training FLOPs
so far, upwards what they have saved of scratch's.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.evidence.decision import SUFFIX
from benchmarks.evidence.results import NEAR
from benchmarks.evidence.saved import Course, courses
from maskdm.runtime.command import run
from maskdm.runtime.files import write_bytes
from tools.report.charts import saved_compute, side_by_side

PICTURE = Path("reports/saved.png")
FEW = 3  # points that make a curve
MARKS = "at least", "first phase", "on whole images"


def panels() -> dict[str, list[dict[str, Any]]]:
    """Return the rows of the charts by title, fewest tokens first."""
    drawn: dict[tuple[int, str], list[Course]] = {}
    for course in courses():
        if len(course.points) >= FEW:
            key = course.tokens, course.dataset.removesuffix(SUFFIX)
            drawn.setdefault(key, []).append(course)
    return {
        f"{dataset}, {tokens} tokens": [
            row
            for course, name in zip(found, names(found), strict=True)
            for row in rows_of(course, name)
        ]
        for (tokens, dataset), found in sorted(drawn.items())
    }


def names(drawn: Sequence[Course]) -> list[str]:
    """Return what the lines of a chart are called: the arm, and more where it has several."""
    counts = Counter(course.arm for course in drawn)
    return [
        course.arm
        if counts[course.arm] == 1
        else f"{course.arm}, {course.tuning}, {course.primed:.0e} first".replace("e+", "e")
        for course in drawn
    ]


def rows_of(course: Course, name: str) -> Iterator[dict[str, Any]]:
    """Yield the points of a line."""
    for point in course.points:
        # Where scratch's curves have ended all is a bound, and sinks with every FLOP.
        if course.last and not point.exact and point.saved < course.last.saved:
            continue
        first = point.flops <= (1 + NEAR) * course.primed
        yield {
            "arm": name,
            "flops": point.flops,
            "saved": point.saved,
            "mark": MARKS[0] if not point.exact else MARKS[1] if first else MARKS[2],
            "seeds": course.seeds,
        }


def main() -> None:
    """Draw the curves."""
    import vl_convert

    charts = {title: saved_compute(rows, MARKS) for title, rows in panels().items()}
    spec = side_by_side(charts, apart=["color"])  # each has arms of its own
    write_bytes(PICTURE, vl_convert.vegalite_to_png(spec, scale=1.5))


if __name__ == "__main__":
    run(main)
