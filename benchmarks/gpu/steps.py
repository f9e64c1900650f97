"""Training steps on a GPU: steps, images and tokens a second, the use made of its multiplies.

The loop is ``maskdm.training.loop.train``, on batches as it gets them, made by the CPU meanwhile;
only the images are noise. Utilisation is the FLOPs of the cost model over those of the best large
multiply measured on the same device in the same run.
"""

import time
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from benchmarks.speed.measuring import finish
from benchmarks.speed.training import noise_batches
from maskdm.backbones.registry import ModelParams, build_backbone
from maskdm.data.registry import DataParams
from maskdm.diffusion.loss import DiffusionParams
from maskdm.diffusion.masking import Mask
from maskdm.runtime.execution import Execution
from maskdm.runtime.params import Params, read_section
from maskdm.training.flops import training_flops
from maskdm.training.loop import train
from maskdm.training.phases import PhaseParams
from maskdm.training.prefetch import PREFETCHED
from maskdm.training.state import State
from maskdm.training.validation import LOG_SNRS, HeldOutValidator

SIDE = 8192  # of the large multiply
FIRST = 6  # steps in which kernels are chosen, compiled and recorded
SECONDS = 1.5  # that steps are timed for, at least
FEW = 3  # steps that are timed, at least
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
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    steps = endless(preset, mask, params, execution)
    for _ in range(FIRST):
        next(steps)
    finish(device)
    first = time.perf_counter() - started
    count, began = 0, time.perf_counter()
    while count < FEW or time.perf_counter() - began < SECONDS:
        for _ in range(FEW):
            next(steps)
        finish(device)
        count += FEW
    seconds = (time.perf_counter() - began) / count
    steps.close()
    flops = step_flops(preset, mask, params)
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else None
    return {
        "images a step": params.batch_size,
        "visible": mask.visible,
        "steps/s": 1 / seconds,
        "images/s": params.batch_size / seconds,
        "tokens/s": params.batch_size * mask.visible / seconds,
        "FLOP/s": flops / seconds,
        "first steps, s": first,
        "peak memory, bytes": peak,
    }


def endless(
    preset: Params, mask: Mask, params: PhaseParams, execution: Execution
) -> Generator[int, None, None]:
    """Return steps of a phase, the validation before the first behind them."""
    data = read_section(preset, "data", DataParams)
    model = read_section(preset, "model", ModelParams)
    diffusion = read_section(preset, "diffusion", DiffusionParams)
    batches = noise_batches(preset, mask, params)
    network = build_backbone(model, data.resolution, data.channels, seed=0).to(execution.device)
    validator = HeldOutValidator(
        batches.images[: len(LOG_SNRS)], model.patch, diffusion, execution.device
    )
    rarely = params.model_copy(update={"validate_every": FOREVER, "preview_every": 0})
    steps = train(State.start(network, params), batches, validator, diffusion, rarely, execution)
    next(steps)
    return steps


def step_flops(preset: Params, mask: Mask, params: PhaseParams) -> int:
    """Return the training FLOPs of a step."""
    from benchmarks.speed.training import on_meta

    return training_flops(on_meta(preset), mask.shown, params.batch_size, mask.in_middle)


def batches_a_second(preset: Params, mask: Mask, params: PhaseParams) -> float:
    """Return how many batches a second the threads of one process make, the GPU left out."""
    batches = noise_batches(preset, mask, params)
    with ThreadPoolExecutor(PREFETCHED, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        count, began = 0, time.perf_counter()
        while time.perf_counter() - began < SECONDS:
            list(pool.map(batches.at, range(count, count + 4 * PREFETCHED)))
            count += 4 * PREFETCHED
        return count / (time.perf_counter() - began)
