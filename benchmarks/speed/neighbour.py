"""What a neighbour does to training: another program that takes one of the cores.

OpenMP's threads wait for each other awake, on the very core that the slower one needs; stages
bound that (``bound_spinning`` in ``maskdm/runtime/environment.py``). Measured here in processes of
their own, since OpenMP reads its variables when it is loaded; with other bounds, by hand:

    python -m benchmarks.speed.neighbour 1000 10000 100000 default
"""

import json
import os
import subprocess
import sys
from typing import Annotated

import typer

from benchmarks.speed.commands import ROOT
from benchmarks.speed.measuring import interleaved
from benchmarks.speed.results import Row
from maskdm.runtime import command
from maskdm.runtime.environment import SPINS
from maskdm.runtime.params import Params

STEPS = 60
# With one of two cores taken for half of the time, three quarters of the work could be done; a
# scheduler that moves threads between cores leaves less.
GOAL = 0.4
TIMED = """
import sys, time, stages
from benchmarks.presets import read_preset
from benchmarks.speed.training import training_step
from maskdm.backbones.registry import ModelParams
from maskdm.data.registry import DataParams
from maskdm.diffusion.masking import MaskParams, make_mask
from maskdm.runtime.params import read_section
from maskdm.training.phases import PretrainParams
preset = read_preset("laptop")
params = read_section(preset, "pretrain", PretrainParams)
model = read_section(preset, "model", ModelParams)
grid = read_section(preset, "data", DataParams).resolution // model.patch
mask = make_mask(read_section(preset, "mask", MaskParams), grid)
step = training_step(preset, mask, params).call
for _ in range(5):
    step()
started = time.perf_counter()
for _ in range(int(sys.argv[1])):
    step()
print((time.perf_counter() - started) / int(sys.argv[1]))
"""


def neighbour(preset: Params) -> list[Row]:
    """Time masked steps of the demo alone and beside a process that keeps one core busy."""
    seconds = interleaved(
        {
            "idle": lambda: step_seconds(SPINS, busy=False),
            "busy": lambda: step_seconds(SPINS, True),
        },
        least=3,
        most=5,
    )
    images = preset["pretrain"]["batch_size"]
    return [
        Row(
            "the demo's masked steps, one core busy ÷ idle",
            images / seconds["busy"], "images/s", images / seconds["idle"], GOAL, True,
        )
    ]  # fmt: skip


def step_seconds(spins: str, busy: bool, steps: int = STEPS) -> float:
    """Return the seconds of a step in a process of its own.

    Args:
        spins: rounds that its threads spin; ``default`` for OpenMP's own.
        busy: whether another process keeps a core busy meanwhile.
        steps: that are timed, after 5 that are not.
    """
    environment = {k: v for k, v in os.environ.items() if k != "GOMP_SPINCOUNT"}
    # An empty policy is one that was chosen: nothing is set then.
    environment |= {"OMP_WAIT_POLICY": ""} if spins == "default" else {"GOMP_SPINCOUNT": spins}
    beside = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if busy else None
    try:
        said = subprocess.run(
            [sys.executable, "-c", TIMED, str(steps)],
            cwd=ROOT, env=environment, check=True, capture_output=True, text=True,
        )  # fmt: skip
    finally:
        if beside is not None:
            beside.kill()
            beside.wait()
    return float(json.loads(said.stdout))


def main(
    spins: Annotated[list[str], typer.Argument(help="rounds, or default")],
    rounds: Annotated[int, typer.Option(help="times that each is measured")] = 3,
    steps: Annotated[int, typer.Option(help="steps that are timed")] = STEPS,
) -> None:
    """Print the milliseconds of a step with other bounds, idle and beside a busy process."""
    found = interleaved(
        {
            f"{count} {'busy' if busy else 'idle'}": lambda count=count, busy=busy: step_seconds(  # type: ignore[misc]
                count, busy, steps
            )
            for count in spins
            for busy in (False, True)
        },
        rounds,
        rounds,
    )
    for name, seconds in found.items():
        print(f"{name:16} {1000 * seconds:8.1f} ms")


if __name__ == "__main__":
    command.run(main)
