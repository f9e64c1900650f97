"""The evidence as tables in Markdown, for README.md and docs/evidence.md (``make docs``)."""

from collections.abc import Iterable, Sequence

from benchmarks.evidence.results import Run, first_reached, read_pace, read_runs
from benchmarks.evidence.summary import PARTS, SCRATCH, at_whole_budget, entries
from tools.report.evidence import HEAD, NEVER, NOTHING, per_cent, rows_of, sets, transfer

NAMES = {"confirmation": "patches of 4 pixels", "fine": "patches of 2 pixels"}


def headline() -> str:
    """Return the comparisons at the whole budget, an arm and a measure a row."""
    lines = []
    for part in PARTS:
        found = entries(read_runs(part), read_pace())
        for row in at_whole_budget(found):
            for dataset, _, *rest in rows_of(row):
                lines.append([f"{dataset}, {NAMES[part]}", *rest])
    return _table(["", *HEAD[2:]], lines)


def confirmation() -> str:
    """Return every entry of reports/evidence.json, a part of the matrix below the other."""
    pace, parts = read_pace(), []
    for part in PARTS:
        found = entries(read_runs(part), pace)
        lines = [line for row in found for line in rows_of(row)]
        parts.append(f"{NAMES[part].capitalize()}:\n\n{_table(HEAD, lines)}")
    return "\n\n".join(parts)


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
            best = min((run for run in own if run.cell.arm == SCRATCH), key=_end)
            found = [run for run in own if run.of == (dataset, arm, tuning, share)]
            row += _end_and_factor(found[0], best) if found else ["", ""]
        rows.append(row)
    rows.sort(key=lambda row: (row[0] != SCRATCH, min(filter(None, row[3::2]))))
    head = ["arm", "masked", "tuning"]
    head += [f"{dataset}{what}" for dataset in datasets for what in (": error", ": FLOPs")]
    return _table(head, rows)


def _end(run: Run) -> float:
    return run.curves["error"][-1][1]


def _end_and_factor(run: Run, best: Run) -> list[str]:
    target = _end(best)
    before, reached = (first_reached(one.curves["error"], target) for one in (best, run))
    return [f"{_end(run):.4f}", f"{before / reached:.2f}×" if before and reached else NEVER]


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
