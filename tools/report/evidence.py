"""The report's part on the matrix: tables, and rows for charts, from the runs that are there."""

import base64
from collections.abc import Mapping
from math import floor, log10
from typing import Any

from benchmarks.evidence import decided
from benchmarks.evidence.results import Kind, Result, read_results, read_step_times
from benchmarks.evidence.summary import (
    ENDS,
    MEASURES,
    SCRATCH,
    at_whole_budget,
    by_seed,
    entries,
    transfers,
)
from tools.report import definitions, regimes, saved
from tools.report.charts import Spec, against_compute, dots, regime_charts, saved_compute
from tools.tables import decision

TITLES = {
    "error": "x0 error on held-out images",
    "fd": "Fréchet distance to training images",
    "kid": "kernel distance to training images",
}
COMPARED = {  # parts of the matrix → headings; the user's own runs first
    "reduced": "The quick comparison of make evidence: masking at half the compute",
    "confirmation": "At equal compute, patches of 4 pixels",
    "fine": "At equal compute, patches of 2 pixels",
}
DECIDED = ("reduced",)  # of these, compared as the deciding experiment is
SCREENED = {"screening": "", "fine-screening": ", patches of 2 pixels"}  # parts → what to add
NEVER = "never"
NOTHING = "–"


def comparisons() -> list[dict[str, Any]]:
    """Return a section for every compared part of the matrix of which there are runs.

    Each has ``name``, ``title``, ``decided`` (whether it is compared as the deciding experiment
    is), ``head``, ``full`` and ``smaller`` (rows of the headline table at the whole budget and
    below it), ``arms`` with what they do, ``charts`` by dataset and measure, and ``samples`` by
    dataset.
    """
    step_times = read_step_times()
    found = []
    for part, title in COMPARED.items():
        results = read_results(part)
        if not results:
            continue
        found.append(
            {
                "name": part,
                "title": title,
                "decided": part in DECIDED,
                "arms": definitions.arms(result.run.arm for result in results),
                **(decisions(results) if part in DECIDED else speed_ups(results, step_times)),
                "charts": {
                    dataset: {
                        measure: against_compute(rows_of_lines, TITLES[measure])
                        for measure in MEASURES
                        if (rows_of_lines := lines(results, dataset, measure, step_times))
                    }
                    for dataset in sets(results)
                },
                "samples": {dataset: samples(results, dataset) for dataset in sets(results)},
            }
        )
    return found


def decisions(results: list[Result]) -> dict[str, Any]:
    """Return the table of differences to scratch of the whole budget, with their intervals."""
    rows = decision.rows_of(decided.comparisons(results))
    return {"head": decision.HEAD, "full": rows, "smaller": []}


def deciding() -> dict[str, Any] | None:
    """Return the deciding experiment's table and what its names mean, None if it was not made."""
    if not decision.REPORT.exists():
        return None
    found = decision.read()["comparisons"]
    marks = regimes.rows()
    return {
        "head": decision.HEAD,
        "rows": decision.rows_of(found),
        "summary": decision.headline_rows(),
        "summary_head": decision.HEADLINE,
        "arms": definitions.arms(row["arm"] for row in found),
        "tunings": definitions.tunings(row["against"] for row in found),
        "map": regime_charts(marks, regimes.shapes(marks)),
        "saved": {
            title: saved_compute(rows, saved.MARKS) for title, rows in saved.panels().items()
        },
    }


def speed_ups(results: list[Result], step_times: Mapping[Kind, float]) -> dict[str, Any]:
    """Return the tables of how much less compute the arms need."""
    rows = entries(results, step_times)
    full = at_whole_budget(rows)
    return {
        "head": HEAD,
        "full": [line for row in full for line in rows_of(row)],
        "smaller": [line for row in rows if row not in full for line in rows_of(row)],
    }


HEAD = (
    *("dataset", "budget", "arm", "masked", "measure", "scratch", "arm's", "better by"),
    *("less compute", "less time"),
)


def rows_of(row: Mapping[str, Any]) -> list[list[str]]:
    """Return an entry of evidence.json as rows of a table, a measure a row; none for scratch."""
    if row["arm"] == SCRATCH:
        return []
    about = [row["dataset"], f"{row['budget_flops']:.2g}", row["arm"], per_cent(row["share"])]
    return [
        [*about, measure, *gap(row, "final", measure), *factors(row, measure)]
        for measure in MEASURES
        if row["final"][measure]
    ]


def gap(row: Mapping[str, Any], arm: str, measure: str) -> list[str]:
    """Return scratch's value, the arm's, and by how much that is better."""
    ends = [plus_minus(row[key][measure]) for key in (SCRATCH, arm)]
    return [*ends, f"{plus_minus(row['improvement_percent'][measure])} %"]


def factors(row: Mapping[str, Any], measure: str) -> list[str]:
    """Return how many times less compute and less time: the geometric mean, and each seed's.

    Where not all seeds get there, a mean over the others would flatter the arm: they are counted.
    None for distances: three measurements an octave apart do not carry a factor.
    """
    if measure != "error":
        return [NOTHING, NOTHING]
    found, seeds = row["speedup"][measure], len(row["seeds"])
    if found is None:
        return [NEVER, NEVER]
    if found["flops"]["reached"] < seeds:
        return [f"on {found['flops']['reached']} of {seeds} seeds"] * 2
    return [
        f"{'≥ ' if value['at_least'] else ''}{value['mean']:.2f}× "
        f"({', '.join(f'{factor:.2f}' for factor in value['values'])})"
        if value
        else NOTHING
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


def sets(results: list[Result]) -> list[str]:
    """Return the datasets of results, in their order."""
    return list(dict.fromkeys(result.run.dataset for result in results))


def per_cent(share: float) -> str:
    """Return a share as text."""
    return f"{100 * share:.3g} %"


def label(result: Result) -> str:
    """Return the name of a result's line."""
    run = result.run
    if result.pretrained_elsewhere:
        return f"{run.arm}, pretrained on another set"
    share = f", {per_cent(run.share)} masked" if run.share else ""
    return f"{run.arm}{share}"


def lines(
    results: list[Result], dataset: str, measure: str, step_times: Mapping[Kind, float]
) -> list[dict[str, Any]]:
    """Return rows for a chart: the mean over seeds, with a band from the least to the largest."""
    found = []
    for seeds in by_seed([one for one in results if one.run.dataset == dataset]).values():
        first = next(iter(seeds.values()))
        measured = first.about["curve" if measure == "error" else "points"]
        values = zip(*(one.curves.get(measure, []) for one in seeds.values()), strict=False)
        for row, points in zip(measured, values, strict=False):
            heights = [value for _, value in points]
            seconds = first.seconds(step_times, row["flops"])
            compute = {"flops": row["flops"], "seconds": seconds, "images": row["images"]}
            spread = {"low": min(heights), "high": max(heights)} if len(seeds) > 1 else {}
            mean = sum(heights) / len(heights)
            found.append({"line": label(first), **compute, "value": mean, **spread})
    return found


def samples(results: list[Result], dataset: str) -> list[tuple[str, str]]:
    """Return pictures of samples of one seed, an arm each, all from the same noise."""
    chosen = [one for one in results if one.run.dataset == dataset]
    seed = min(one.run.seed for one in chosen)
    found = []
    for one in chosen:
        picture = one.path.with_suffix(".png")
        if one.run.seed == seed and picture.exists():
            found.append((label(one), inline(picture.read_bytes())))
    return found


def inline(png: bytes) -> str:
    """Return a picture as a data URL."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def screening() -> dict[str, Any]:
    """Return charts of the final errors of screening by dataset, and what their names mean."""
    charts: dict[str, Spec] = {}
    results: list[Result] = []
    for part, what in SCREENED.items():
        found = read_results(part)
        charts |= {f"{dataset}{what}": ends(found, dataset) for dataset in sets(found)}
        results += found
    return {
        "charts": charts,
        "arms": definitions.arms(one.run.arm for one in results),
        "tunings": definitions.tunings(one.run.tuning for one in results),
    }


def ends(results: list[Result], dataset: str) -> Spec:
    """Return a chart of the final errors of the runs on a dataset."""
    rows = [
        {
            "name": f"{label(one)}, {one.run.tuning}",
            "kind": one.run.arm,
            "value": one.curves["error"][-1][1],
        }
        for one in results
        if one.run.dataset == dataset
    ]
    return dots(rows, TITLES["error"])


def transfer() -> dict[str, Any] | None:
    """Return the table of transfer and its samples, None if there are no runs."""
    results = read_results("transfer")
    if not results:
        return None
    head = ["finetuned on", "measure", "scratch", "pretrained", "better by"]
    rows = [
        [row["dataset"], measure.replace("_", " "), *gap(row, "pretrained", measure)]
        for row in transfers(results)
        for measure in ENDS
        if row["pretrained"][measure]
    ]
    pictures = {dataset: samples(results, dataset) for dataset in sets(results)}
    return {"head": head, "rows": rows, "samples": pictures}
