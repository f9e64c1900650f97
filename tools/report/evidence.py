"""What the report says of the matrix: tables and rows for charts, from the cells that are there."""

import base64
from collections.abc import Mapping
from math import floor, log10
from typing import Any

from benchmarks.evidence.results import Kind, Run, read_pace, read_runs
from benchmarks.evidence.summary import (
    ENDS,
    MEASURES,
    SCRATCH,
    at_whole_budget,
    by_seed,
    entries,
    transfers,
)
from tools.report.charts import Spec, against_compute, dots

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
        full = at_whole_budget(rows)
        found.append(
            {
                "title": title,
                "head": HEAD,
                "full": [line for row in full for line in rows_of(row)],
                "smaller": [line for row in rows if row not in full for line in rows_of(row)],
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


def rows_of(row: Mapping[str, Any]) -> list[list[str]]:
    """Return an entry of evidence.json as rows of a table, a measure a row; none for scratch."""
    if row["arm"] == SCRATCH:
        return []
    place = [row["dataset"], f"{row['budget_flops']:.2g}", row["arm"], per_cent(row["share"])]
    return [
        [*place, measure, *gap(row, "final", measure), *factors(row, measure)]
        for measure in MEASURES
        if row["final"][measure]
    ]


def gap(row: Mapping[str, Any], arm: str, measure: str) -> list[str]:
    """Return what scratch is, what the arm is, and by how much it is better."""
    ends = [plus_minus(row[key][measure]) for key in (SCRATCH, arm)]
    return [*ends, f"{plus_minus(row['improvement_percent'][measure])} %"]


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
    if run.elsewhere:
        return f"{run.cell.arm}, pretrained on another set"
    share = f", {per_cent(run.cell.share)} masked" if run.cell.share else ""
    return f"{run.cell.arm}{share}"


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
            seconds = first.seconds(pace, row["flops"])
            place = {"flops": row["flops"], "seconds": seconds, "images": row["images"]}
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
    head = ["finetuned on", "measure", "scratch", "pretrained", "better by"]
    rows = [
        [row["dataset"], measure.replace("_", " "), *gap(row, "pretrained", measure)]
        for row in transfers(runs)
        for measure in ENDS
        if row["pretrained"][measure]
    ]
    pictures = {dataset: samples(runs, dataset) for dataset in sets(runs)}
    return {"head": head, "rows": rows, "samples": pictures}
