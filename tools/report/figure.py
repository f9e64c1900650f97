"""The picture of the evidence in the README: ``python -m tools.report.figure`` (``make docs``).

The charts of the report, error above and Fréchet distance below, a dataset a column.
"""

from pathlib import Path

from benchmarks.evidence.results import read_results, read_step_times
from maskdm.runtime.command import run
from maskdm.runtime.files import write_bytes
from tools.report.charts import against_compute, side_by_side
from tools.report.evidence import TITLES, lines, sets

PICTURE = Path("reports/evidence.png")


def main() -> None:
    """Draw the picture."""
    import vl_convert

    results, step_times = read_results("confirmation"), read_step_times()
    spec = side_by_side(
        {
            f"{dataset}: {TITLES[measure]}": against_compute(
                lines(results, dataset, measure, step_times), ""
            )
            for measure in ("error", "fd")
            for dataset in sets(results)
        }
    )
    write_bytes(PICTURE, vl_convert.vegalite_to_png(spec, scale=2))


if __name__ == "__main__":
    run(main)
