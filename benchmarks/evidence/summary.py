"""The headline: ``python -m benchmarks.evidence.summary`` writes reports/evidence.json.

For every arm, share and budget: how much less compute than training from scratch it needs to reach
what scratch reaches with that budget, how good it is with all of it, and by how many per cent of
scratch's value it is then better; mean and sample standard deviation over seeds, each seed compared
with scratch of the same seed. A run at budget B with a share s of it masked passes through the run
at budget B/2 with a share 2s, so one run gives an entry for every point at which it was measured
but the first, before which nothing is known.
"""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import geometric_mean, mean, stdev
from typing import Annotated, Any

import typer

from benchmarks.evidence.plan import ROOT
from benchmarks.evidence.results import (
    Kind,
    Result,
    at,
    first_reached,
    read_results,
    read_step_times,
)
from maskdm.runtime import command
from maskdm.runtime.errors import UserError
from maskdm.runtime.files import write_text

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
        typer.Option("--part", help="of the matrix; by default those of the README"),
    ] = None,
    out: Annotated[Path, typer.Option(help="the file to write")] = EVIDENCE,
) -> None:
    """Summarise the runs that are there."""
    if parts and out == EVIDENCE:
        raise UserError(f"{EVIDENCE.name} is of {', '.join(PARTS)}: name another file, --out.")
    step_times, found = read_step_times(), []
    for part in parts or PARTS:
        results = read_results(part)
        if any(result.run.of != 1 for result in results):
            raise UserError(
                f"{part} has runs of several budgets: python -m benchmarks.evidence.decided {part}."
            )
        if not results:
            raise UserError(
                f"There are no runs of {part}: python -m benchmarks.evidence.matrix {part}."
            )
        found += [{"part": part, **row} for row in entries(results, step_times)]
    write(out, found)
    transferred = read_results("transfer")
    if transferred and out == EVIDENCE:
        write(TRANSFER, transfers(transferred))


def write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a list, an entry a line, so that a diff shows which ones change."""
    lines = ",\n".join(json.dumps(row, allow_nan=False) for row in rows)
    write_text(path, f"[\n{lines}\n]\n")


def by_seed(results: Sequence[Result]) -> dict[tuple[str, str, str, float], dict[int, Result]]:
    """Return results grouped by all but the seed."""
    groups: dict[tuple[str, str, str, float], dict[int, Result]] = defaultdict(dict)
    for result in results:
        groups[result.group][result.run.seed] = result
    return dict(groups)


def entries(results: Sequence[Result], step_times: Mapping[Kind, float]) -> list[dict[str, Any]]:
    """Return the entries of reports/evidence.json.

    Args:
        results: those of one part of the matrix.
        step_times: seconds of every kind of step; a run with a kind that is not among them has no
            speed-up in seconds.
    """
    groups, found = by_seed(results), []
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
                    measure: None if arm == SCRATCH else speedup(both, measure, budget, step_times)
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


def budgets(results: Sequence[Result]) -> list[float]:
    """Return the budgets to compare at: where distances were measured, else half and whole."""
    first = results[0]
    measured = [flops for flops, _ in first.curves.get("fd", first.curves.get("kid", []))]
    end = first.curves["error"][-1][0]
    return (measured[1:] or measured) if measured else [end / 2, end]


def at_whole_budget(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the entries of a part of the matrix at its whole budget."""
    largest = max(row["budget_flops"] for row in rows)
    return [row for row in rows if row["budget_flops"] > 0.99 * largest]


def at_budget(result: Result, measure: str, budget: float) -> float | None:
    """Return the value of a measure at a budget, None if that was not measured."""
    return at(result.curves.get(measure, []), budget)


def speedup(
    both: Mapping[int, tuple[Result, Result]],
    measure: str,
    budget: float,
    step_times: Mapping[Kind, float],
) -> dict[str, Any] | None:
    """Return how many times less an arm needs to reach what scratch reaches at a budget.

    Both curves are noisy, and of both the first time that they reach it counts; of scratch that is
    the budget at the latest.

    Args:
        both: by seed, the arm's result and scratch's.
        measure: ``error``, ``fd`` or ``kid``.
        budget: training FLOPs.
        step_times: seconds of every kind of step, as for ``entries``.

    Returns:
        ``{"flops": {mean, values, reached, at_least}, "seconds": ... or None}``, the mean of
        factors geometric; None if no seed reached it. A run that reaches it only beyond the budget
        may have a factor below 1.
        ``at_least`` counts the seeds whose arm was there when it was first measured.
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
        spent = scratch.seconds(step_times, before), arm.seconds(step_times, after)
        seconds.append(spent[0] / spent[1] if spent[0] and spent[1] else None)
    if not flops:
        return None
    return {
        axis: ratios(factors, reached=len(factors), at_least=at_least)
        for axis, factors in (("flops", flops), ("seconds", seconds))
    }


def compared(ends: Mapping[str, Sequence[Pair]], arm: str) -> dict[str, Any]:
    """Return by measure the values of an arm and of scratch, and the gap, over seeds.

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


def ratios(values: Sequence[float | None], **more: int) -> dict[str, Any] | None:
    """Return the geometric mean of factors, and each; None if one is missing."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return None
    return {"mean": rounded(geometric_mean(known)), "values": list(map(rounded, known)), **more}


def statistics(values: Sequence[float | None]) -> dict[str, Any] | None:
    """Return the mean and the sample standard deviation (None of one value).

    Return None if a value is missing.
    """
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return None
    spread = rounded(stdev(known)) if len(known) > 1 else None
    return {"mean": rounded(mean(known)), "std": spread}


def transfers(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Return the entries of reports/transfer.json.

    Each says by how many per cent of scratch's value a network that was pretrained on another set
    is better after the same finetuning, seed by seed; below 0 it is worse. ``lowest_error`` is that
    of the best step of finetuning: on few images a network soon overfits.
    """
    groups, found = by_seed(results), []
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
    command.run(main)
