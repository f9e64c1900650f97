"""The README's picture of the evidence: ``python -m tools.report.figure`` (make docs).

The charts of the report, error above and Fréchet distance below, a dataset a column.
"""

from pathlib import Path

from benchmarks.evidence.results import read_pace, read_runs
from maskdm.runtime.command import run
from tools.report.charts import side_by_side
from tools.report.evidence import TITLES, lines, sets

PICTURE = Path("reports/evidence.png")


def main() -> None:
    """Draw the picture."""
    import vl_convert

    runs, pace = read_runs("confirmation"), read_pace()
    spec = side_by_side(
        {
            f"{dataset}: {TITLES[measure]}": lines(runs, dataset, measure, pace)
            for measure in ("error", "fd")
            for dataset in sets(runs)
        }
    )
    PICTURE.write_bytes(vl_convert.vegalite_to_png(spec, scale=2))


if __name__ == "__main__":
    run(main)
