"""What the report says of the matrix: tables and rows for charts, from the cells that are there."""

import base64
from collections.abc import Mapping, Sequence
from math import floor, log10
from typing import Any

from benchmarks.evidence.results import Kind, Run, read_pace, read_runs
from benchmarks.evidence.summary import MEASURES, SCRATCH, by_seed, entries, transfers
from benchmarks.report.charts import Spec, against_compute, dots

TITLES = {
    "error": "x0 error on held-out images",
    "fd": "Fréchet distance to training images",
    "kid": "kernel distance to training images",
}
COMPARED = {  # parts of the matrix → headings; first what one has computed oneself
    "reduced": "Does masked pretraining pay? An answer in a quarter of an hour",
    "confirmation": "Does masked pretraining pay at equal compute?",
    "fine": "With patches of 2 pixels: four times as many tokens",
}
SCREENED = {"screening": "", "fine-screening": ", patches of 2 pixels"}  # parts → what to add
NEVER = "never"
NOTHING = "–"


def comparisons() -> list[dict[str, Any]]:
    """Return a section for every part of the matrix with samples of which there are cells.

    Each has ``title``, ``head``, ``full`` and ``smaller`` (rows of the headline table at the whole
    budget and below it), ``charts`` by dataset and measure, and ``samples`` by dataset.
    """
    pace = read_pace()
    found = []
    for part, title in COMPARED.items():
        runs = read_runs(part)
        if not runs:
            continue
        rows = entries(runs, pace)
        largest: dict[str, float] = {}
        for row in rows:
            name = row["dataset"]
            largest[name] = max(largest.get(name, 0.0), row["budget_flops"])
        full = [row for row in rows if row["budget_flops"] > 0.99 * largest[row["dataset"]]]
        found.append(
            {
                "title": title,
                "head": HEAD,
                "full": [line for row in full for line in rows_of(row, rows)],
                "smaller": [line for row in rows if row not in full for line in rows_of(row, rows)],
                "charts": {
                    dataset: {
                        measure: against_compute(rows_of_lines, TITLES[measure])
                        for measure in MEASURES
                        if (rows_of_lines := lines(runs, dataset, measure, pace))
                    }
                    for dataset in sets(runs)
                },
                "samples": {dataset: samples(runs, dataset) for dataset in sets(runs)},
            }
        )
    return found


HEAD = (
    *("dataset", "budget", "arm", "masked", "measure", "scratch", "arm's", "better by"),
    *("less compute", "less time"),
)


def rows_of(row: Mapping[str, Any], found: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Return an entry of evidence.json as rows of a table, a measure a row; none for scratch.

    Args:
        row: the entry.
        found: all entries of its part, scratch's among them.
    """
    same = ("dataset", "tuning", "budget_flops")
    if row["arm"] == SCRATCH:
        return []
    (scratch,) = (
        other
        for other in found
        if other["arm"] == SCRATCH and all(other[key] == row[key] for key in same)
    )
    place = [row["dataset"], f"{row['budget_flops']:.2g}", row["arm"], per_cent(row["share"])]
    rows = []
    for measure in MEASURES:
        if row["final"][measure] is None:
            continue
        ends = [plus_minus(entry["final"][measure]) for entry in (scratch, row)]
        gain = f"{plus_minus(row['improvement_percent'][measure])} %"
        rows.append([*place, measure, *ends, gain, *factors(row, measure)])
    return rows


def factors(row: Mapping[str, Any], measure: str) -> list[str]:
    """Return how many times less compute and less time.

    A mean over those seeds alone that get there would flatter the arm: then they are counted.
    """
    found, seeds = row["speedup"][measure], len(row["seeds"])
    if found is None:
        return [NEVER, NEVER]
    if found["flops"]["reached"] < seeds:
        return [f"on {found['flops']['reached']} of {seeds} seeds"] * 2
    return [
        f"{'≥ ' if value['at_least'] else ''}{plus_minus(value)}×" if value else NOTHING
        for value in (found["flops"], found["seconds"])
    ]


def plus_minus(value: Mapping[str, Any] | None) -> str:
    """Return a mean and its deviation, three digits of the larger."""
    if value is None:
        return NOTHING
    numbers = [number for number in (value["mean"], value["std"]) if number is not None]
    largest = max(abs(number) for number in numbers) or 1.0
    decimals = max(0, 2 - floor(log10(largest)))
    return " ± ".join(f"{number:.{decimals}f}" for number in numbers)


def sets(runs: list[Run]) -> list[str]:
    """Return the datasets of runs, in their order."""
    return list(dict.fromkeys(run.cell.dataset for run in runs))


def per_cent(share: float) -> str:
    """Return a share as text."""
    return f"{100 * share:.3g} %"


def label(run: Run) -> str:
    """Return what the line of a run is called."""
    share = run.cell.share
    if share >= 1:  # beside the budget
        return f"{run.cell.arm}, pretrained on another set"
    return f"{run.cell.arm}, {per_cent(share)} masked" if share else run.cell.arm


def lines(
    runs: list[Run], dataset: str, measure: str, pace: Mapping[Kind, float]
) -> list[dict[str, Any]]:
    """Return rows for a chart: the mean over seeds, and from the least to the largest as band."""
    found = []
    for seeds in by_seed([run for run in runs if run.cell.dataset == dataset]).values():
        first = next(iter(seeds.values()))
        measured = first.about["curve" if measure == "error" else "points"]
        values = zip(*(run.curves.get(measure, []) for run in seeds.values()), strict=False)
        for row, points in zip(measured, values, strict=False):
            heights = [value for _, value in points]
            place = {"flops": row["flops"], "images": row["images"]}
            place["seconds"] = first.seconds(pace, row["flops"])
            spread = {"low": min(heights), "high": max(heights)} if len(seeds) > 1 else {}
            mean = sum(heights) / len(heights)
            found.append({"line": label(first), **place, "value": mean, **spread})
    return found


def samples(runs: list[Run], dataset: str) -> list[tuple[str, str]]:
    """Return pictures of samples of one seed, an arm each, all from the same noise."""
    chosen = [run for run in runs if run.cell.dataset == dataset]
    seed = min(run.cell.seed for run in chosen)
    found = []
    for run in chosen:
        picture = run.path.with_suffix(".png")
        if run.cell.seed == seed and picture.exists():
            found.append((label(run), inline(picture.read_bytes())))
    return found


def inline(png: bytes) -> str:
    """Return a picture as an address that holds it."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def screening() -> dict[str, Spec]:
    """Return a chart of the errors at the ends of the cells of screening, by dataset."""
    found: dict[str, Spec] = {}
    for part, what in SCREENED.items():
        runs = read_runs(part)
        found |= {f"{dataset}{what}": ends(runs, dataset) for dataset in sets(runs)}
    return found


def ends(runs: list[Run], dataset: str) -> Spec:
    """Return a chart of the errors at the ends of runs."""
    rows = [
        {
            "name": f"{label(run)}, {run.cell.tuning}",
            "kind": run.cell.arm,
            "value": run.curves["error"][-1][1],
        }
        for run in runs
        if run.cell.dataset == dataset
    ]
    return dots(rows, TITLES["error"])


def transfer() -> dict[str, Any] | None:
    """Return the table of transfer and its samples, None if there are no cells."""
    runs = read_runs("transfer")
    if not runs:
        return None
    head = ["finetuned on", "seeds"]
    head += [f"{name}: {what}" for name in MEASURES for what in ("scratch", "pretrained", "gain")]
    rows = []
    for row in transfers(runs):
        cells = [row["dataset"], f"{len(row['seeds'])}"]
        for name in MEASURES:
            gain = row["improvement_percent"].get(name)
            cells += [plus_minus(row[kind].get(name)) for kind in (SCRATCH, "pretrained")]
            cells.append(f"{plus_minus(gain)} %" if gain else NOTHING)
        rows.append(cells)
    pictures = {dataset: samples(runs, dataset) for dataset in sets(runs)}
    return {"head": head, "rows": rows, "samples": pictures}
