"""The headline: ``python -m benchmarks.evidence.summary`` writes reports/evidence.json.

For every arm, share and budget: how much less compute than training from scratch it needs to reach
what scratch reaches with that budget, how good it is with all of it, and by how many per cent of
scratch's value it is then better; mean and sample standard deviation over seeds, each seed compared
with scratch of the same seed. A run at budget B with a share s of it masked passes through the run
at budget B/2 with a share 2s, so one cell gives an entry for every point at which it was measured
but the first, before which it was not looked at.
"""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Annotated, Any

import typer

from benchmarks.evidence.plan import ROOT
from benchmarks.evidence.results import (
    Kind,
    Run,
    at,
    first_reached,
    read_pace,
    read_runs,
)
from maskdm.errors import UserError
from stages.command import run

EVIDENCE = ROOT / "reports/evidence.json"
TRANSFER = ROOT / "reports/transfer.json"
PARTS = ("confirmation", "fine")
MEASURES = ("error", "fd", "kid")
SCRATCH = "scratch"


def main(
    parts: Annotated[
        list[str] | None,
        typer.Option("--part", help="of the matrix; by default those that the README speaks of"),
    ] = None,
    out: Annotated[Path, typer.Option(help="the file to write")] = EVIDENCE,
) -> None:
    """Sum up the cells that are there."""
    pace, found = read_pace(), []
    for part in parts or PARTS:
        runs = read_runs(part)
        if not runs:
            raise UserError(f"There are no cells: python -m benchmarks.evidence.run {part}.")
        found += [{"part": part, **row} for row in entries(runs, pace)]
    write(out, found)
    transferred = read_runs("transfer")
    if transferred and out == EVIDENCE:
        write(TRANSFER, transfers(transferred))


def write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a list, an entry a line: what changes is seen in a diff."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps(row) for row in rows)
    path.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def by_seed(runs: Sequence[Run]) -> dict[tuple[str, str, str, float], dict[int, Run]]:
    """Return runs that differ in nothing but the seed together."""
    groups: dict[tuple[str, str, str, float], dict[int, Run]] = defaultdict(dict)
    for found in runs:
        groups[found.of][found.cell.seed] = found
    return dict(groups)


def entries(runs: Sequence[Run], pace: Mapping[Kind, float]) -> list[dict[str, Any]]:
    """Return the entries of reports/evidence.json.

    Args:
        runs: cells of one part of the matrix.
        pace: seconds of every kind of step; without some of a run's it has no speed-up in seconds.
    """
    groups, found = by_seed(runs), []
    for (dataset, arm, tuning, share), seeds in groups.items():
        baseline = groups.get((dataset, SCRATCH, tuning, 0.0), {})
        both = {seed: (one, baseline[seed]) for seed, one in seeds.items() if seed in baseline}
        if not both:
            continue
        for budget in budgets([scratch for _, scratch in both.values()]):
            whole = next(iter(seeds.values())).budget
            if share * whole / budget > 0.99:  # nothing of it on whole images
                continue
            row: dict[str, Any] = {
                "dataset": dataset,
                "arm": arm,
                "tuning": tuning,
                "share": rounded(share * whole / budget),
                "seeds": sorted(both),
                "budget_flops": rounded(budget),
                "speedup": {},
                "final": {},
                "improvement_percent": {},
            }
            for measure in MEASURES:
                ends = [
                    (value(one, measure, budget), value(scratch, measure, budget))
                    for one, scratch in both.values()
                ]
                row["final"][measure] = statistics([end for end, _ in ends])
                if arm == SCRATCH:
                    row["speedup"][measure] = row["improvement_percent"][measure] = None
                else:
                    row["speedup"][measure] = speedup(both, measure, budget, pace)
                    row["improvement_percent"][measure] = statistics(gains(ends))
            found.append(row)
    return found


def budgets(runs: Sequence[Run]) -> list[float]:
    """Return the budgets to compare at: where distances were measured, else half and whole."""
    first = runs[0]
    places = [place for place, _ in first.curves.get("fd", first.curves.get("kid", []))]
    end = first.curves["error"][-1][0]
    return (places[1:] or places) if places else [end / 2, end]


def value(one: Run, measure: str, budget: float) -> float | None:
    """Return what a run is at a budget, None if that was not measured."""
    return at(one.curves.get(measure, []), budget)


def speedup(
    both: Mapping[int, tuple[Run, Run]], measure: str, budget: float, pace: Mapping[Kind, float]
) -> dict[str, Any] | None:
    """Return how many times less an arm needs to reach what scratch reaches at a budget.

    Both curves are noisy and of both counts where they are there first; where scratch was not there
    before, that is the budget.

    Args:
        both: by seed, the arm's run and scratch's.
        measure: ``error``, ``fd`` or ``kid``.
        budget: training FLOPs.
        pace: seconds of every kind of step; without some of a run's it has no speed-up in seconds.

    Returns:
        ``{"flops": {mean, std, reached, at_least}, "seconds": ... or None}``; None if no seed
        reached it. A run that reaches it only beyond the budget may have a factor below 1.
        ``at_least`` counts the seeds of which the arm was there when it was first looked at.
    """
    flops, seconds, at_least = [], [], 0
    for arm, scratch in both.values():
        curve, target = arm.curves.get(measure, []), value(scratch, measure, budget)
        if target is None:
            continue
        reached, before = (
            first_reached(curve, target),
            first_reached(scratch.curves[measure], target),
        )
        if reached is None or before is None:
            continue
        at_least += reached == curve[0][0]
        flops.append(before / reached)
        spent = scratch.seconds(pace, before), arm.seconds(pace, reached)
        if spent[0] and spent[1]:
            seconds.append(spent[0] / spent[1])
    if not flops:
        return None
    return {
        "flops": statistics(flops, reached=len(flops), at_least=at_least),
        "seconds": statistics(seconds, reached=len(seconds), at_least=at_least)
        if seconds
        else None,
    }


def gains(ends: Sequence[tuple[float | None, float | None]]) -> list[float | None]:
    """Return by how many per cent of scratch's value an arm is better, seed by seed."""
    return [
        None if end is None or not scratch else 100 * (1 - end / scratch) for end, scratch in ends
    ]


def statistics(values: Sequence[float | None], **more: int) -> dict[str, Any] | None:
    """Return the mean and the sample standard deviation, which one value alone has not.

    None if a value is missing.
    """
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return None
    spread = rounded(stdev(known)) if len(known) > 1 else None
    return {"mean": rounded(mean(known)), "std": spread, **more}


def transfers(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return the entries of reports/transfer.json.

    Each says by how many per cent of scratch's value a network that was pretrained on another set
    is better after the same finetuning, seed by seed; below 0 it is worse.
    """
    groups, found = by_seed(runs), []
    for (dataset, arm, tuning, share), seeds in groups.items():
        baseline = groups.get((dataset, SCRATCH, tuning, 0.0), {})
        both = [(one, baseline[seed]) for seed, one in seeds.items() if seed in baseline]
        if arm == SCRATCH or not both:
            continue
        result: dict[str, Any] = {
            "dataset": dataset,
            "arm": arm,
            "seeds": sorted(set(seeds) & set(baseline)),
            "finetuning_flops": rounded(both[0][0].budget),
            "pretraining_flops": rounded(share * both[0][0].budget),
        }
        for name in ("improvement_percent", "pretrained", SCRATCH):
            result[name] = {}
        for measure in MEASURES:
            if not all(measure in one.curves for pair in both for one in pair):
                continue
            ends = [(arm.curves[measure][-1][1], base.curves[measure][-1][1]) for arm, base in both]
            result["improvement_percent"][measure] = statistics(gains(ends))
            result["pretrained"][measure] = statistics([end for end, _ in ends])
            result[SCRATCH][measure] = statistics([base for _, base in ends])
        found.append(result)
    return found


def rounded(value: float) -> float:
    """Return four significant digits."""
    return float(f"{value:.4g}")


if __name__ == "__main__":
    run(main)
