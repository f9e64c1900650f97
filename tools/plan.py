"""A plan: how large a network and how many steps a budget of minutes or FLOPs is best spent on."""

import time
from collections.abc import Callable
from itertools import islice
from math import isfinite
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from torch import Tensor

from benchmarks.scaling.planning import MASKED, seen, size_for, spend, step_flops
from maskdm.backbones.registry import ModelParams, build_backbone
from maskdm.data.registry import DataParams
from maskdm.diffusion.loss import DiffusionParams
from maskdm.diffusion.masking import MaskParams
from maskdm.runtime.command import run
from maskdm.runtime.errors import UserError
from maskdm.runtime.execution import Execution
from maskdm.runtime.numerics import choose_kernels
from maskdm.runtime.params import Params, merge, read_params, read_section
from maskdm.training.batches import Batches
from maskdm.training.history import Errors
from maskdm.training.loop import train
from maskdm.training.phases import (
    FinetuneParams,
    PhaseParams,
    PretrainParams,
    finetuning_schedule,
    pretraining_schedule,
)
from maskdm.training.schedule import Schedule
from maskdm.training.state import State

PARAMS = Path("params.yaml")
WARM, TIMED = 3, 4.0  # steps before the clock starts, and the seconds that it runs
ROUNDS = 3  # of asking how fast a size is: the size depends on the FLOPs, and they on the size
IMAGES = 512  # of noise, to time steps with
FOREVER = 10**9  # steps


def main(
    minutes: Annotated[
        float | None, typer.Option(min=0, help="of training on this machine, as it is now")
    ] = None,
    flops: Annotated[float | None, typer.Option(min=0, help="of training, such as 1e17")] = None,
    keep_size: Annotated[
        bool,
        typer.Option("--keep-size", help="plan steps alone, for params.yaml's size and batches"),
    ] = False,
) -> None:
    """Print the overrides that spend a budget on params.yaml's images and recipe.

    Half of the training FLOPs are masked. Size, batches and learning rate are those that
    docs/scaling.md has for the budget, and it says what they stand on; minutes are turned into
    FLOPs by a short timing of both phases. Nothing is written. Sampling and scoring are not
    counted. For example:

    python -m tools.plan --minutes 10

    python -m tools.plan --flops 1e15
    """
    if (minutes is None) == (flops is None):
        raise UserError("Give one budget, --minutes or --flops.")
    if not all(isfinite(budget) for budget in (minutes, flops) if budget is not None):
        raise UserError("The budget is no number: give it as 10 or 1e15.")
    params: Params = read_params(PARAMS)
    if flops is not None:
        planned = plan_flops(params, flops, keep_size)
    else:
        assert minutes is not None
        planned, flops = plan_minutes(params, minutes, keep_size)
    words = [
        f"-S {section}.{key}={value}"
        for section, changes in planned.items()
        for key, value in changes.items()
    ]
    print(f"# {flops:.2g} training FLOPs, {MASKED:.0%} of them masked")
    if not keep_size:
        print(f"# this width stands on: {size_for(flops).stands_on}")
    print("dvc exp run \\\n  " + " \\\n  ".join(words))


def plan_flops(params: Params, flops: float, keep_size: bool) -> dict[str, dict[str, Any]]:
    """Return the overrides that spend a budget of training FLOPs."""
    return spend_on({} if keep_size else size_for(flops).sections(), params, flops)


def spend_on(
    size: dict[str, dict[str, Any]], params: Params, flops: float
) -> dict[str, dict[str, Any]]:
    """Return a size and the steps that spend a budget on it; it draws whenever it validates."""
    sized = merge(params, size)
    steps = spend(sized, flops)
    for phase, section in steps.items():
        if sized[phase]["preview_every"]:
            section["preview_every"] = section["validate_every"]
    return merge(size, steps)


def plan_minutes(
    params: Params, minutes: float, keep_size: bool
) -> tuple[dict[str, dict[str, Any]], float]:
    """Return the overrides that spend minutes on this machine, and the FLOPs that these are."""
    choose_kernels()
    sized, size, flops = params, {}, 0.0
    for _ in range(ROUNDS):
        flops = 60 * minutes / seconds_per_flop(sized)
        size = {} if keep_size else size_for(flops).sections()
        before, sized = sized, merge(params, size)
        if sized == before:
            break
    return spend_on(size, params, flops), flops


def seconds_per_flop(params: Params) -> float:
    """Return the seconds that a training FLOP takes here, on average over both phases."""
    masked_flops, whole_flops = step_flops(params)
    model = read_section(params, "model", ModelParams)
    data = read_section(params, "data", DataParams)
    pretrain = read_section(params, "pretrain", PretrainParams)
    finetune = read_section(params, "finetune", FinetuneParams)
    grid = seen(data)[0] // model.patch
    mask = read_section(params, "mask", MaskParams)
    endless = {"steps": FOREVER, "validate_every": FOREVER, "preview_every": 0}
    masked = pretraining_schedule(pretrain.model_copy(update=endless), mask, grid)
    whole = finetuning_schedule(finetune.model_copy(update=endless), grid)
    print("timing steps …", flush=True)
    masked_seconds = _seconds_a_step(params, pretrain.model_copy(update=endless), masked)
    whole_seconds = _seconds_a_step(params, finetune.model_copy(update=endless), whole)
    return MASKED * masked_seconds / masked_flops + (1 - MASKED) * whole_seconds / whole_flops


class _NoValidator:
    """Measures nothing: the steps alone are timed."""

    def errors(self, denoise: Callable[..., Tensor]) -> Errors:
        return {"mean": 0.0}


def _seconds_a_step(params: Params, phase: PhaseParams, schedule: Schedule) -> float:
    """Return how long a step takes here, on images of noise, on which no time depends."""
    data = read_section(params, "data", DataParams)
    model = read_section(params, "model", ModelParams)
    execution = Execution.from_environment(phase.precision)
    (size, channels), classes = seen(data), int(data.classes)  # a label is a token, of any class
    backbone = build_backbone(model, size, channels, 0, classes).to(execution.device)
    labels = np.zeros(IMAGES, np.int64) if data.classes else None
    shape = (IMAGES, size, size, channels)
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    batches = Batches(
        *(images, schedule, model.patch, phase.hflip, 0, "plan"),
        *(labels, classes, phase.label_dropout),
    )
    diffusion = read_section(params, "diffusion", DiffusionParams)
    state = State.start(backbone, phase)
    steps = train(state, batches, _NoValidator(), diffusion, phase, execution)
    for _ in islice(steps, 1 + WARM):
        pass
    began, first = time.perf_counter(), state.step
    while time.perf_counter() - began < TIMED:
        next(steps)
    seconds = (time.perf_counter() - began) / (state.step - first)
    steps.close()
    return seconds


if __name__ == "__main__":
    run(main)
