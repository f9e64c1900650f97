"""The older comparison as tables in Markdown, for docs/evidence-more.md (``make docs``)."""

from collections.abc import Iterable, Sequence

from benchmarks.evidence.results import Result, first_reached, read_results, read_step_times
from benchmarks.evidence.summary import PARTS, SCRATCH, entries
from tools.report.evidence import HEAD, NEVER, NOTHING, per_cent, rows_of, sets, transfer

NAMES = {"confirmation": "patches of 4 pixels", "fine": "patches of 2 pixels"}


def confirmation() -> str:
    """Return every entry of reports/evidence.json, part by part."""
    step_times, parts = read_step_times(), []
    for part in PARTS:
        found = entries(read_results(part), step_times)
        lines = [line for row in found for line in rows_of(row)]
        parts.append(f"{NAMES[part].capitalize()}:\n\n{_table(HEAD, lines)}")
    return "\n\n".join(parts)


def transferred() -> str:
    """Return the table of transfer."""
    found = transfer()
    assert found is not None
    return _table(found["head"], found["rows"])


def screening() -> str:
    """Return the runs of screening, best first, datasets side by side."""
    return _screened("screening")


def fine_screening() -> str:
    """Return the runs of the screening with patches of 2 pixels."""
    return _screened("fine-screening")


def _screened(part: str) -> str:
    """Return final errors, and how many times less compute to the best run from scratch's."""
    results = read_results(part)
    datasets = sets(results)
    settings = dict.fromkeys((one.run.arm, one.run.share, one.run.tuning) for one in results)
    rows = []
    for arm, share, tuning in settings:
        row = [arm, per_cent(share) if share else NOTHING, tuning]
        for dataset in datasets:
            own = [one for one in results if one.run.dataset == dataset]
            best = min((one for one in own if one.run.arm == SCRATCH), key=_end)
            found = [one for one in own if one.group == (dataset, arm, tuning, share)]
            row += _end_and_factor(found[0], best) if found else ["", ""]
        rows.append(row)
    rows.sort(key=lambda row: (row[0] != SCRATCH, min(filter(None, row[3::2]))))
    head = ["arm", "masked", "tuning"]
    head += [f"{dataset}{what}" for dataset in datasets for what in (": error", ": FLOPs")]
    return _table(head, rows)


def _end(result: Result) -> float:
    return result.curves["error"][-1][1]


def _end_and_factor(result: Result, best: Result) -> list[str]:
    target = _end(best)
    before, reached = (first_reached(one.curves["error"], target) for one in (best, result))
    return [f"{_end(result):.4f}", f"{before / reached:.2f}×" if before and reached else NEVER]


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
