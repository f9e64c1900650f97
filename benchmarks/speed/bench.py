"""How close the pipeline comes to this machine's limits: ``make bench``.

Model, mask, batches and precision are those of the preset laptop, and for MaskDM-small those of
celeba64. A measurement is a function from a preset to rows (see ``results.py`` for what the columns
mean), named in ``MEASUREMENTS``. On a busy machine the figures mean nothing.
"""

import sys

from benchmarks.presets import read_preset
from benchmarks.speed.batches import batches
from benchmarks.speed.checkpointing import checkpointing
from benchmarks.speed.commands import ROOT, repro, start_up
from benchmarks.speed.evaluation import distance, features
from benchmarks.speed.machine import machine, versions
from benchmarks.speed.memory import memory
from benchmarks.speed.neighbour import neighbour
from benchmarks.speed.overhead import overhead
from benchmarks.speed.precision import precision
from benchmarks.speed.preparing import prepare
from benchmarks.speed.results import Row, table
from benchmarks.speed.stage import stage
from benchmarks.speed.training import training
from maskdm.runtime.command import run
from maskdm.runtime.files import write_json

PRESET = "laptop"
REPORT = ROOT / "reports/bench.json"
MEASUREMENTS = {
    "steps, samples and multiplies": training,
    "bf16 against fp32": precision,
    "optimiser and the rest of a step": overhead,
    "batches": batches,
    "saving a checkpoint": checkpointing,
    "a stage beside its loop": stage,
    "beside a busy neighbour": neighbour,
    "features": features,
    "distance": distance,
    "prepare": prepare,
    "start-up": start_up,
    "memory": memory,
    "dvc repro": repro,
}


def main() -> None:
    """Measure speed and memory; print a table and write reports/bench.json.

    Takes about eleven minutes on two idle cores. A goal that is missed is marked in the table and
    is no failure.
    """
    preset = read_preset(PRESET)
    rows: list[Row] = []
    for name, measurement in MEASUREMENTS.items():
        print(f"{name} …", file=sys.stderr)
        rows += measurement(preset)
    report = {
        "machine": machine(),
        "versions": versions(),
        "rows": [row.record() for row in rows],
    }
    write_json(REPORT, report)
    print(table(rows))


if __name__ == "__main__":
    run(main)
