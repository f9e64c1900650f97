"""Training steps on a GPU: steps, images and tokens a second, the use made of its multiplies.

The loop is ``maskdm.training.loop.train``, on batches as it gets them, made by the CPU meanwhile;
only the images are noise. Utilisation is the FLOPs of the cost model over those of the best large
multiply measured on the same device in the same run.
"""

import gc
import time
from collections.abc import Generator
from functools import partial
from typing import Any

import torch

from benchmarks.speed.measuring import finish, timer
from benchmarks.speed.training import noise_batches, noise_images
from maskdm.backbones.registry import ModelParams, build_backbone
from maskdm.data.registry import DataParams
from maskdm.diffusion.loss import DiffusionParams
from maskdm.diffusion.masking import Mask, MaskParams, make_mask, nothing_masked
from maskdm.runtime.execution import Execution
from maskdm.runtime.params import Params, read_section
from maskdm.training.batches import Batch
from maskdm.training.flops import training_flops
from maskdm.training.loop import train
from maskdm.training.phases import FinetuneParams, PhaseParams
from maskdm.training.prefetch import PREFETCHED, prefetched
from maskdm.training.state import State
from maskdm.training.validation import HALF_LOG_SNRS, HeldOutValidator

SIDE = 8192  # of the large multiply
FIRST = 6  # steps in which kernels are chosen, compiled and recorded
SECONDS = 1.5  # that steps are timed for, at least
WINDOW = 0.25  # of these, seconds between two waits for the device
FOREVER = 10**9


def best_multiply(device: torch.device, precision: str) -> float:
    """Return the FLOP/s of a large matrix product of random numbers."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    side = SIDE if device.type != "cpu" else SIDE // 8
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    best = 0.0
    for _ in range(5):
        finish(device)
        started = time.perf_counter()
        for _ in range(5):
            torch.mm(a, b, out=out)
        finish(device)
        best = max(best, 5 * 2 * side**3 / (time.perf_counter() - started))
    return best


def measure(
    preset: Params, mask: Mask, params: PhaseParams, execution: Execution
) -> dict[str, Any]:
    """Time the steps of a phase.

    Args:
        preset: all sections.
        mask: what is visible.
        params: the phase: batch size, precision.
        execution: where and how.

    Returns:
        Figures by name: rates, FLOP/s, seconds of the first steps, memory at the peak.
    """
    device = execution.device
    if device.type == "cuda":
        gc.collect()  # a graph of before, and all that it holds
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    steps = endless(preset, mask, params, execution)

    def make(count: int) -> float:
        began = time.perf_counter()
        for _ in range(count):
            next(steps)
        finish(device)
        return time.perf_counter() - began

    first = make(FIRST)
    # No batch is left then that was made while the first steps took long.
    ahead = 1 if device.type == "cpu" else 2 * PREFETCHED
    # All processes make as many steps, or they would wait for each other.
    window = execution.processes.broadcast_object(max(1, round(WINDOW * ahead / make(ahead))))
    count, began, going_on = 0, time.perf_counter(), True
    while going_on:
        make(window)
        count += window
        (going_on,) = execution.processes.any(time.perf_counter() - began < SECONDS)
    seconds = (time.perf_counter() - began) / count
    steps.close()
    flops = step_flops(preset, mask, params)
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    # Also what graphs hold, and what the allocator keeps in between.
    reserved = torch.cuda.max_memory_reserved(device) if device.type == "cuda" else None
    return {
        "images a step": params.batch_size,
        "visible": mask.visible,
        "steps/s": 1 / seconds,
        "images/s": params.batch_size / seconds,
        "tokens/s": params.batch_size * mask.visible / seconds,
        "FLOP/s": flops / seconds,
        "first steps, s": first,
        "peak memory, bytes": peak,
        "peak reserved, bytes": reserved,
    }


def autocast_and_bf16(
    preset: Params, mask: Mask, params: PhaseParams, device: torch.device
) -> dict[str, float]:
    """Return how long forward and backward take by autocast, and with weights that are bf16.

    So one sees what weights in bf16, beside their masters in fp32, could save at most.
    """
    data, model = (
        read_section(preset, "data", DataParams),
        read_section(preset, "model", ModelParams),
    )
    batch = noise_batches(preset, mask, params, device).at(0, device=device)
    network = build_backbone(model, data.resolution, data.channels, seed=0).to(device)

    def once(tokens: torch.Tensor) -> None:
        network(tokens, batch.positions, batch.uniform).float().square().mean().backward()
        network.zero_grad()

    def by_autocast() -> None:
        with torch.autocast(device.type, torch.bfloat16):
            once(batch.tokens)

    found = {"autocast, s": timer(by_autocast, device)()}
    network.bfloat16()
    return found | {"bf16, s": timer(partial(once, batch.tokens.bfloat16()), device)()}


def masked(preset: Params, rate: float) -> tuple[Mask, FinetuneParams]:
    """Return a mask, and a phase whose batches have as many tokens as whole images have, in bf16.

    Args:
        preset: all sections.
        rate: of single patches.
    """
    grid = (
        read_section(preset, "data", DataParams).resolution
        // read_section(preset, "model", ModelParams).patch
    )
    mask = nothing_masked(grid)
    if rate:
        mask = make_mask(MaskParams(strategy="patch", rate=rate, block_size=1), grid)
    params = read_section(preset, "finetune", FinetuneParams)
    images = round(params.batch_size * grid**2 / mask.visible)
    return mask, params.model_copy(update={"batch_size": images, "precision": "bf16"})


def endless(
    preset: Params, mask: Mask, params: PhaseParams, execution: Execution
) -> Generator[int, None, None]:
    """Return steps of a phase, the validation before the first behind them."""
    data = read_section(preset, "data", DataParams)
    model = read_section(preset, "model", ModelParams)
    diffusion = read_section(preset, "diffusion", DiffusionParams)
    batches = noise_batches(preset, mask, params, execution.device)
    network = build_backbone(model, data.resolution, data.channels, seed=0).to(execution.device)
    validator = HeldOutValidator(
        noise_images(preset, len(HALF_LOG_SNRS)), model.patch, diffusion, execution.device
    )
    rarely = params.model_copy(update={"validate_every": FOREVER, "preview_every": 0})
    steps = train(State.start(network, params), batches, validator, diffusion, rarely, execution)
    next(steps)
    return steps


def step_flops(preset: Params, mask: Mask, params: PhaseParams) -> int:
    """Return the training FLOPs of a step."""
    from benchmarks.speed.training import on_meta

    return training_flops(on_meta(preset), mask.shown, params.batch_size, mask.in_middle)


def batches_a_second(
    preset: Params, mask: Mask, params: PhaseParams, device: torch.device
) -> float:
    """Return how many batches a second come to a device that does nothing but take them."""
    batches = noise_batches(preset, mask, params, device)

    def make(step: int, where: torch.device) -> Batch:
        return batches.at(step, device=where)

    with prefetched(make, FOREVER, device) as batch_of:
        for step in range(FIRST):
            batch_of(step)
        finish(device)
        count, began = 0, time.perf_counter()
        while time.perf_counter() - began < SECONDS:
            batch_of(FIRST + count)
            count += 1
        finish(device)
        return count / (time.perf_counter() - began)
