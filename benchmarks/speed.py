"""How close the pipeline comes to this machine's limits: ``make bench``.

Model, mask, batches and precision are those of presets/laptop.yaml, and for MaskDM-small those of
presets/celeba64.yaml. A measurement is a function from a preset to rows (see ``rows.py`` for what
the columns mean), named in ``MEASUREMENTS``. On a busy machine the figures mean nothing.
"""

import json
import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path

import torch

from benchmarks.besides import besides
from benchmarks.commands import ROOT, repro, start_up
from benchmarks.evaluation import distance, features
from benchmarks.memory import memory
from benchmarks.preparing import prepare
from benchmarks.rows import Row, table
from benchmarks.saving import saving
from benchmarks.stage import stage
from benchmarks.training import training
from maskdm.devices import choose_device
from stages.command import run

PRESET = ROOT / "presets/laptop.yaml"
REPORT = ROOT / "reports/bench.json"
MEASUREMENTS = {
    "steps, samples and multiplies": training,
    "optimiser and the rest of a step": besides,
    "saving a state": saving,
    "a stage beside its loop": stage,
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
    rows: list[Row] = []
    for name, measurement in MEASUREMENTS.items():
        print(f"{name} …", file=sys.stderr)
        rows += measurement(PRESET)
    report = {
        "machine": machine(),
        "versions": versions(),
        "rows": [row.record() for row in rows],
    }
    REPORT.parent.mkdir(exist_ok=True)
    REPORT.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(table(rows))


def machine() -> dict[str, str | int]:
    """Return what was measured on."""
    device = choose_device()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "cpu": cpu(),
        "cores": os.cpu_count() or 1,
        "memory": f"{memory:.1f} GiB",
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
    }


def cpu() -> str:
    """Return the name of the processor, or of its architecture where no name is to be had."""
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text(encoding="utf-8").splitlines() if listing.exists() else []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def versions() -> dict[str, str]:
    """Return the versions of what the figures depend on."""
    packages = {name: version(name) for name in ("maskdm", "numpy", "dvc")}
    return {"python": platform.python_version(), "torch": torch.__version__, **packages}


if __name__ == "__main__":
    run(main)
