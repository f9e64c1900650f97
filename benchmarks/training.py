"""Training steps, as the pipeline makes them, against the best matrix multiply of the machine.

The loop is ``maskdm.training.train`` itself, on the batches it would get; only the pictures are
noise, since no time depends on them. FLOPs are those of the cost model: what the method needs, not
what the code happens to do.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.measuring import interleaved, timer
from benchmarks.rows import Row
from maskdm.backbones.registry import ModelParams, build_backbone
from maskdm.batches import Batches
from maskdm.compute import training_flops
from maskdm.data.sources import DataParams
from maskdm.devices import choose_device
from maskdm.diffusion import DiffusionParams
from maskdm.masking import Mask, MaskParams, make_mask, nothing_masked
from maskdm.params import read_section
from maskdm.phases import FinetuneParams, PhaseParams, PretrainParams
from maskdm.schedule import Leg, Schedule
from maskdm.training import State, train
from maskdm.validation import LOG_SNRS, Validation

IMAGES = 2048  # enough that batches are gathered from all over the array
FOREVER = 10**9  # steps
SPEED_UP = 3.3  # images/s at 75 % masked over whole images, the least to reach
SIDES = {"cpu": (1024, 2048), "cuda": (4096, 8192)}  # of square multiplies
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Work:
    """Something to time.

    Attributes:
        call: does it once.
        flops: what that costs.
        images: how many images that trains on.
    """

    call: Callable[[], object]
    flops: int
    images: int = 0


def training(preset: Path) -> list[Row]:
    """Time training steps on whole and on masked images, and multiplies, in turns."""
    device = choose_device()
    model = read_section(preset, "model", ModelParams)
    grid = read_section(preset, "data", DataParams).size // model.patch
    mask = make_mask(read_section(preset, "mask", MaskParams), grid)
    finetune = read_section(preset, "finetune", FinetuneParams)
    pretrain = read_section(preset, "pretrain", PretrainParams)
    steps = {
        "whole images": training_step(preset, nothing_masked(grid), finetune, device),
        f"{mask.rate:.0%} masked": training_step(preset, mask, pretrain, device),
    }
    multiplies = {
        "x".join(map(str, shape)): multiply(*shape, DTYPES[finetune.precision], device)
        for shape in (
            *((side, side, side) for side in SIDES.get(device.type, SIDES["cuda"])),
            (finetune.batch_size * grid**2, model.dim, 4 * model.dim),  # the MLP of whole images
        )
    }

    def finish() -> None:
        if device.type != "cpu":
            torch.accelerator.synchronize(device)

    timers = {name: timer(work.call, finish) for name, work in (steps | multiplies).items()}
    seconds = interleaved(timers, least=7, most=40)
    return training_rows(steps, multiplies, seconds)


def training_rows(
    steps: Mapping[str, Work], multiplies: Mapping[str, Work], seconds: Mapping[str, float]
) -> list[Row]:
    """Return the rows that follow from times.

    Args:
        steps: a training step on whole images, then one on masked images.
        multiplies: of which the fastest, in FLOP/s, is the limit.
        seconds: that each of them takes.
    """
    best = max(work.flops / seconds[name] for name, work in multiplies.items())
    rows = [
        Row(
            f"training step, {name}", work.flops / seconds[name] / 1e9, "GFLOP/s",
            best / 1e9, 0.65, True,
        )
        for name, work in steps.items()
    ]  # fmt: skip
    (whole, full), (masked, part) = steps.items()
    speed_up = (part.images / seconds[masked]) / (full.images / seconds[whole])
    computed = (full.flops / full.images) / (part.flops / part.images)
    name = f"images/s, {masked} ÷ {whole}"
    return [*rows, Row(name, speed_up, "×", computed, SPEED_UP / computed, True)]


def training_step(preset: Path, mask: Mask, params: PhaseParams, device: torch.device) -> Work:
    """Return the steps of one phase, warmed up to the first."""
    data = read_section(preset, "data", DataParams)
    model = read_section(preset, "model", ModelParams)
    diffusion = read_section(preset, "diffusion", DiffusionParams)
    shape = (IMAGES, data.size, data.size, data.channels)
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    backbone = build_backbone(model, data.size, data.channels, seed=0).to(device)
    leg = Leg(mask, FOREVER, params.batch_size, params.lr, params.warmup)
    batches = Batches(images, Schedule((leg,), FOREVER), model.patch, params.hflip, 0, "bench")
    endless = params.model_copy(update={"validate_every": FOREVER})
    validation = Validation(images[: len(LOG_SNRS)], model.patch, diffusion, device)
    reports = train(State.start(backbone, params), batches, validation, diffusion, endless, device)
    next(reports)  # the validation before the first step
    flops = training_flops(backbone, mask.visible, params.batch_size)
    return Work(partial(next, reports), flops, params.batch_size)


def multiply(rows: int, inner: int, columns: int, dtype: torch.dtype, device: torch.device) -> Work:
    """Return the product of a (rows, inner) and an (inner, columns) matrix."""
    a = torch.randn(rows, inner, device=device).to(dtype)
    b = torch.randn(inner, columns, device=device).to(dtype)
    out = torch.empty(rows, columns, dtype=dtype, device=device)
    return Work(partial(torch.mm, a, b, out=out), 2 * rows * inner * columns)
