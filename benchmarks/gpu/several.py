"""Several GPUs: the steps a second that they make of one batch, and the losses of one GPU's run.

``python -m benchmarks.gpu.several FILE`` is what each of the processes runs; ``compare`` starts
them, as a stage would, by ``MASKDM_PROCESSES``.
"""

import json
import os
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

from benchmarks.gpu.exactness import run as small_run
from benchmarks.gpu.steps import masked, measure
from benchmarks.presets import read_preset
from maskdm.runtime.command import run
from maskdm.runtime.environment import PROCESSES
from maskdm.runtime.execution import Execution
from maskdm.runtime.files import write_json
from maskdm.runtime.launch import on_all_processes


def compare(count: int, preset: str, rate: float) -> dict[str, float]:
    """Return what ``count`` processes make of what one makes: a GPU each, or CPUs together.

    Args:
        count: of processes.
        preset: whose steps are timed.
        rate: of masked patches.

    Returns:
        ``images/s``, ``of so many times one`` (1 is as many times faster as there are processes)
        and ``largest difference of a loss``, relative, over the steps of a small run in fp32.
    """
    one, several = on_processes(1, preset, rate), on_processes(count, preset, rate)
    differences = (
        abs(a - b) / abs(a) for a, b in zip(one["losses"], several["losses"], strict=True)
    )
    return {
        "images/s": several["images/s"],
        "of so many times one": several["images/s"] / one["images/s"] / count,
        "largest difference of a loss": max(differences),
    }


@cache
def on_processes(count: int, preset: str, rate: float) -> dict[str, Any]:
    """Return what ``main`` writes with so many processes.

    Raises:
        RuntimeError: with the end of what they said, if they fail.
    """
    with TemporaryDirectory() as folder:
        found = Path(folder) / "found.json"
        words = [str(found), "--preset", preset, "--rate", str(rate)]
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.gpu.several", *words],
            env=os.environ | {PROCESSES.name: str(count)},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            *_, last = done.stderr.strip().splitlines() or ["it says nothing"]
            raise RuntimeError(f"{count} processes failed: {last}")
        return dict(json.loads(found.read_text(encoding="utf-8")))


def main(
    found: Annotated[Path, typer.Argument(help="the file that is written")],
    preset: Annotated[str, typer.Option(help="whose steps are timed")] = "celeba64",
    rate: Annotated[float, typer.Option(help="of masked patches")] = 0.0,
) -> None:
    """Time steps on all processes together, and note the losses of a small run."""
    execution = Execution.from_environment()
    losses = small_run(execution)["history.losses"].tolist()
    mask, params = masked(read_preset(preset), rate)
    timed = replace(execution, precision=params.precision)
    rates = measure(read_preset(preset), mask, params, timed)
    if execution.processes.is_main:
        write_json(found, rates | {"losses": losses})


if __name__ == "__main__":
    run(on_all_processes(main))
