"""The seconds of every kind of step in the evidence: ``python -m benchmarks.evidence.step_times``.

Kinds take turns on an idle machine, so that their ratios hold even if its speed drifts. They are
written to reports/timing/step_times.json, on which only the seconds in reports/evidence.json
depend.
"""

import json
from dataclasses import asdict
from typing import Annotated

import typer

from benchmarks.evidence.results import STEP_TIMES, Kind, Result, read_results
from benchmarks.evidence.train import RUNS
from benchmarks.speed.machine import machine, versions
from benchmarks.speed.measuring import interleaved, timer
from benchmarks.speed.training import Work, training_step
from maskdm.diffusion.masking import MaskParams, make_mask, nothing_masked
from maskdm.runtime import command
from maskdm.runtime.devices import choose_device
from maskdm.runtime.files import write_json
from maskdm.runtime.params import validate
from maskdm.training.phases import FinetuneParams


def main(
    parts: Annotated[
        list[str] | None,
        typer.Option("--part", help="whose steps to time; by default all"),
    ] = None,
) -> None:
    """Time the kinds of steps that the runs which are there have made."""
    device = choose_device()
    names = parts or sorted(folder.name for folder in RUNS.iterdir() if folder.is_dir())
    kinds: dict[Kind, Result] = {}
    for result in (result for name in names for result in read_results(name)):
        for _, counts in result.steps():
            for kind in counts:
                kinds.setdefault(kind, result)
    works = {json.dumps(asdict(kind)): step(kind, result) for kind, result in kinds.items()}
    timers = {name: timer(work.call, device) for name, work in works.items()}
    seconds = interleaved(timers, least=5, most=9)
    rows = [
        asdict(kind) | {"seconds": float(f"{seconds[json.dumps(asdict(kind))]:.4g}")}
        for kind in kinds
    ]
    rows.sort(key=lambda row: (row["model"], row["channels"], row["batch_size"], row["visible"]))
    write_json(STEP_TIMES, {"machine": machine(), "versions": versions(), "kinds": rows})


def step(kind: Kind, result: Result) -> Work:
    """Return training steps of a kind, with the params of a run that made such steps."""
    grid = kind.resolution // result.params["model"]["patch"]
    mask = nothing_masked(grid)
    if kind.visible < grid**2:
        # The time depends on how many patches are hidden, not on which.
        rate = 1 - kind.visible / grid**2
        mask = make_mask(MaskParams(strategy="patch", rate=rate, block_size=1), grid)
    section = result.params["finetune"] | {"batch_size": kind.batch_size}
    params = validate(section, "finetune", FinetuneParams, where=str(result.path))
    return training_step(result.params, mask, params)


if __name__ == "__main__":
    command.run(main)
