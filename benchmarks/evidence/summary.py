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
from maskdm.runtime.command import run
from maskdm.runtime.errors import UserError

EVIDENCE = ROOT / "reports/evidence.json"
TRANSFER = ROOT / "reports/transfer.json"
PARTS = ("confirmation", "fine")
MEASURES = ("error", "fd", "kid")
ENDS = ("error", "lowest_error", "fd", "kid")  # what transfer is measured by
SCRATCH = "scratch"

Pair = tuple[float | None, float | None]  # an arm's value and scratch's, of one seed


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
            row = {
                "dataset": dataset,
                "arm": arm,
                "tuning": tuning,
                "share": rounded(share * whole / budget),
                "seeds": sorted(both),
                "budget_flops": rounded(budget),
                "speedup": {
                    measure: None if arm == SCRATCH else speedup(both, measure, budget, pace)
                    for measure in MEASURES
                },
            }
            ends = {
                measure: [
                    (at_budget(one, measure, budget), at_budget(scratch, measure, budget))
                    for one, scratch in both.values()
                ]
                for measure in MEASURES
            }
            found.append(row | compared(ends, arm="final"))
    return found


def budgets(runs: Sequence[Run]) -> list[float]:
    """Return the budgets to compare at: where distances were measured, else half and whole."""
    first = runs[0]
    places = [place for place, _ in first.curves.get("fd", first.curves.get("kid", []))]
    end = first.curves["error"][-1][0]
    return (places[1:] or places) if places else [end / 2, end]


def at_whole_budget(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return those of the entries of a part of the matrix that are at all of its budget."""
    largest = max(row["budget_flops"] for row in rows)
    return [row for row in rows if row["budget_flops"] > 0.99 * largest]


def at_budget(run: Run, measure: str, budget: float) -> float | None:
    """Return what a run is at a budget, None if that was not measured."""
    return at(run.curves.get(measure, []), budget)


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
    flops: list[float | None] = []
    seconds: list[float | None] = []
    at_least = 0
    for arm, scratch in both.values():
        target = at_budget(scratch, measure, budget)
        if target is None:
            continue
        curve = arm.curves.get(measure, [])
        before, after = (first_reached(one, target) for one in (scratch.curves[measure], curve))
        if before is None or after is None:
            continue
        flops.append(before / after)
        at_least += after == curve[0][0]
        spent = scratch.seconds(pace, before), arm.seconds(pace, after)
        seconds.append(spent[0] / spent[1] if spent[0] and spent[1] else None)
    if not flops:
        return None
    return {
        axis: statistics(factors, reached=len(factors), at_least=at_least)
        for axis, factors in (("flops", flops), ("seconds", seconds))
    }


def compared(ends: Mapping[str, Sequence[Pair]], arm: str) -> dict[str, Any]:
    """Return by measure what an arm is, what scratch is, and the gap, over seeds.

    Args:
        ends: by measure and seed, the arm's value and scratch's.
        arm: the key of the arm's values.

    Returns:
        ``{arm: ..., "scratch": ..., "improvement_percent": ...}``; the last says by how many per
        cent of scratch's value the arm is better, seed by seed; below 0 it is worse.
    """
    return {
        arm: {name: statistics([end for end, _ in pairs]) for name, pairs in ends.items()},
        SCRATCH: {name: statistics([base for _, base in pairs]) for name, pairs in ends.items()},
        "improvement_percent": {
            name: statistics(
                [None if end is None or not base else 100 * (1 - end / base) for end, base in pairs]
            )
            for name, pairs in ends.items()
        },
    }


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
    is better after the same finetuning, seed by seed; below 0 it is worse. ``lowest_error`` is of
    the best step of the finetuning: of few images a network soon knows too much.
    """
    groups, found = by_seed(runs), []
    for (dataset, arm, tuning, share), seeds in groups.items():
        baseline = groups.get((dataset, SCRATCH, tuning, 0.0), {})
        both = [(one, baseline[seed]) for seed, one in seeds.items() if seed in baseline]
        if arm == SCRATCH or not both:
            continue
        about = {
            "dataset": dataset,
            "arm": arm,
            "seeds": sorted(set(seeds) & set(baseline)),
            "finetuning_flops": rounded(both[0][0].budget),
            "pretraining_flops": rounded(share * both[0][0].budget),
        }
        ends = {
            name: [(one.ends().get(name), base.ends().get(name)) for one, base in both]
            for name in ENDS
        }
        found.append(about | compared(ends, arm="pretrained"))
    return found


def rounded(value: float) -> float:
    """Return four significant digits."""
    return float(f"{value:.4g}")


if __name__ == "__main__":
    run(main)
