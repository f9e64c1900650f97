"""The evidence as tables in Markdown, for README.md and docs/evidence.md (``make docs``)."""

from collections.abc import Iterable, Sequence

from benchmarks.evidence.results import Run, first_reached, read_pace, read_runs
from benchmarks.evidence.summary import MEASURES, PARTS, SCRATCH, entries
from benchmarks.report.evidence import HEAD, NEVER, NOTHING, cells_of, per_cent, sets, transfer

NAMES = {"confirmation": "patches of 4", "fine": "patches of 2"}


def headline() -> str:
    """Return the speed-ups at the whole budget: an arm a row."""
    rows = []
    for part in PARTS:
        found = entries(read_runs(part), read_pace())
        largest = max(row["budget_flops"] for row in found)
        for row in found:
            if row["arm"] != SCRATCH and row["budget_flops"] > 0.99 * largest:
                cells = cells_of(row)
                speedups = cells[5 : 5 + 2 * len(MEASURES)]
                rows.append([cells[0], NAMES[part], row["arm"], cells[3], *speedups])
    head = ["", "", "arm", "masked"]
    head += [f"{what} to {name}" for name in MEASURES for what in ("FLOPs", "time")]
    return _table(head, rows)


def confirmation() -> str:
    """Return every entry of reports/evidence.json, a part of the matrix below the other."""
    pace, found = read_pace(), []
    for part in PARTS:
        rows = [cells_of(row) for row in entries(read_runs(part), pace)]
        found.append(f"{NAMES[part].capitalize()} pixels:\n\n{_table(sum(HEAD, start=()), rows)}")
    return "\n\n".join(found)


def transferred() -> str:
    """Return the table of transfer."""
    found = transfer()
    assert found is not None
    return _table(found["head"], found["rows"])


def screening() -> str:
    """Return the cells of screening, best first, a dataset beside the other."""
    return _screened("screening")


def fine_screening() -> str:
    """Return the cells of the screening with patches of 2 pixels."""
    return _screened("fine-screening")


def _screened(part: str) -> str:
    """Return errors at the end, and how much less compute to the best from scratch."""
    runs = read_runs(part)
    datasets = sets(runs)
    settings = dict.fromkeys((run.cell.arm, run.cell.share, run.cell.tuning) for run in runs)
    rows = []
    for arm, share, tuning in settings:
        row = [arm, per_cent(share) if share else NOTHING, tuning]
        for dataset in datasets:
            own = [run for run in runs if run.cell.dataset == dataset]
            target = min(_end(run) for run in own if run.cell.arm == SCRATCH)
            found = [run for run in own if run.of == (dataset, arm, tuning, share)]
            row += _end_and_factor(found[0], target) if found else ["", ""]
        rows.append(row)
    rows.sort(key=lambda row: (row[0] != SCRATCH, min(filter(None, row[3::2]))))
    head = ["arm", "masked", "tuning"]
    head += [f"{dataset}{what}" for dataset in datasets for what in (": error", ": FLOPs")]
    return _table(head, rows)


def _end(run: Run) -> float:
    return run.curves["error"][-1][1]


def _end_and_factor(run: Run, target: float) -> list[str]:
    reached = first_reached(run.curves["error"], target)
    return [f"{_end(run):.4f}", f"{run.budget / reached:.2f}×" if reached else NEVER]


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
