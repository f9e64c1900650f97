"""The seconds of every kind of step in the evidence: ``python -m benchmarks.evidence.pace``.

Kinds take turns on an idle machine, so that their ratios hold whatever the machine's day is like.
Written to reports/timing/pace.json, on which only the seconds in reports/evidence.json depend.
"""

import json
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from benchmarks.evidence.cell import CELLS
from benchmarks.evidence.results import PACE, Kind, Run, read_runs
from benchmarks.speed.machine import machine, versions
from benchmarks.speed.measuring import interleaved, timer
from benchmarks.speed.training import Work, training_step
from maskdm.diffusion.masking import MaskParams, make_mask, nothing_masked
from maskdm.runtime.command import run
from maskdm.runtime.devices import choose_device
from maskdm.runtime.files import write_json
from maskdm.runtime.params import validate
from maskdm.training.phases import FinetuneParams


def main(
    parts: Annotated[
        list[str] | None, typer.Option("--part", help="whose steps; by default every part's")
    ] = None,
) -> None:
    """Time the kinds of steps that the cells which are there have made."""
    device = choose_device()
    names = parts or sorted(folder.name for folder in CELLS.iterdir() if folder.is_dir())
    kinds: dict[Kind, Run] = {}
    for found in (found for name in names for found in read_runs(name)):
        for _, counts in found.steps():
            for kind in counts:
                kinds.setdefault(kind, found)
    works = {json.dumps(asdict(kind)): step(kind, found) for kind, found in kinds.items()}
    timers = {name: timer(work.call, device) for name, work in works.items()}
    seconds = interleaved(timers, least=5, most=9)
    rows = [
        asdict(kind) | {"seconds": float(f"{seconds[json.dumps(asdict(kind))]:.4g}")}
        for kind in kinds
    ]
    rows.sort(key=lambda row: (row["model"], row["channels"], row["batch_size"], row["visible"]))
    write_json(PACE, {"machine": machine(), "versions": versions(), "kinds": rows})


def step(kind: Kind, found: Run) -> Work:
    """Return training steps of a kind, as a run that made some of it has them."""
    grid = kind.size // found.params["model"]["patch"]
    mask = nothing_masked(grid)
    if kind.visible < grid**2:
        # Which patches are hidden makes no difference to the time, only how many.
        rate = 1 - kind.visible / grid**2
        mask = make_mask(MaskParams(strategy="patch", rate=rate, block_size=1), grid)
    section = found.params["finetune"] | {"batch_size": kind.batch_size}
    params = validate(section, "finetune", FinetuneParams, where=str(found.path))
    with TemporaryDirectory() as folder:
        path = Path(folder) / "params.yaml"
        path.write_text(json.dumps(found.params), encoding="utf-8")
        return training_step(path, mask, params)


if __name__ == "__main__":
    run(main)
