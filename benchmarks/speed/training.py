"""Training steps and sampling, as the pipeline makes them, against the best matrix multiplies.

The loop is ``maskdm.training.loop.train`` itself, on the batches it would get; only the images are
noise, since no time depends on them. FLOPs are those of the cost model: what the method needs, not
what the code happens to do. Masked batches hold as many more images as patches are hidden, so that
all steps of a size have about as many tokens (as the paper's batches do); the masked phase of the
preset is also timed with its own batch.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from benchmarks.presets import read_preset
from benchmarks.speed.measuring import interleaved, timer
from benchmarks.speed.multiplies import Product, Products, best_rates, multiplies, products
from benchmarks.speed.results import Row
from maskdm.backbones.denoiser import Denoiser
from maskdm.backbones.registry import ModelParams, backbone_without_weights, build_backbone
from maskdm.data.registry import DataParams
from maskdm.diffusion.loss import DiffusionParams
from maskdm.diffusion.masking import Mask, MaskParams, make_mask, nothing_masked
from maskdm.runtime.devices import choose_device
from maskdm.runtime.execution import Execution
from maskdm.runtime.params import Params, read_section
from maskdm.sampling.sampler import SampleParams, estimates
from maskdm.training.batches import Batches
from maskdm.training.flops import training_flops
from maskdm.training.loop import train
from maskdm.training.phases import FinetuneParams, PhaseParams, PretrainParams
from maskdm.training.resident import resident
from maskdm.training.schedule import Leg, Schedule
from maskdm.training.state import State
from maskdm.training.validation import HALF_LOG_SNRS, HeldOutValidator

IMAGES = 2048  # enough that batches are gathered from all over the array
FOREVER = 10**9  # steps
RATES = (0.5, 0.75, 0.9)
SMALL = "celeba64"  # the preset of MaskDM-small at 64 pixels
MOST_TOKENS = {"cpu": 2048}  # in a batch of whole images; elsewhere the preset's batch counts
DRAWN, EVALUATIONS = 32, 4  # images that are sampled at once, network evaluations of each
# FLOP/s of dense 16-bit multiplies, from the makers' data sheets
PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12}
UTILISATION = 0.4  # a goal that large transformers reach
RATE, SHARE = 0.85, 0.95  # goals: of the best multiplies; of what the cost model promises
CPU = torch.device("cpu")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Work:
    """Something to time.

    Attributes:
        call: does it once.
        products: what it multiplies, and its FLOPs.
        images: how many images that trains on or draws.
        tokens: how many visible patches these have.
    """

    call: Callable[[], object]
    products: Products
    images: int
    tokens: int


def training(preset: Params) -> list[Row]:
    """Time steps of the demo's network and of MaskDM-small, sampling, and multiplies, in turns."""
    return [*_of_size("demo", preset), *_of_size("MaskDM-small, 64 px", read_preset(SMALL))]


def _of_size(size: str, preset: Params) -> list[Row]:
    device = choose_device()
    model = read_section(preset, "model", ModelParams)
    data = read_section(preset, "data", DataParams)
    finetune = read_section(preset, "finetune", FinetuneParams)
    if device.type == "cpu":  # a preset for GPUs in the precision that CPUs train in
        finetune = finetune.model_copy(update={"precision": "fp32"})
    grid = data.resolution // model.patch
    most = MOST_TOKENS.get(device.type, FOREVER) // grid**2
    images = min(finetune.batch_size, most)
    steps = {"whole images": training_step(preset, nothing_masked(grid), _of(finetune, images))}
    for rate in RATES:
        mask = make_mask(MaskParams(strategy="patch", rate=rate, block_size=1), grid)
        batch = round(images * grid**2 / mask.visible)
        steps[f"{rate:.0%} masked"] = training_step(preset, mask, _of(finetune, batch))
    if images == finetune.batch_size:
        pretrain = read_section(preset, "pretrain", PretrainParams)
        mask = make_mask(read_section(preset, "mask", MaskParams), grid)
        own = f"{mask.rate:.0%} masked as the preset has it"
        steps[own] = training_step(preset, mask, pretrain)
    works = {f"training step, {size}, {name}": work for name, work in steps.items()}
    works[f"sampling, {size}"] = sampling(preset, device)
    whole = next(iter(works.values())).products.linear
    rows = images * grid**2
    calls = multiplies(whole, rows, DTYPES[finetune.precision], device)
    timers = {name: timer(work.call, device) for name, work in works.items()}
    timers |= {name: timer(call, device) for name, call in calls.items()}
    seconds = interleaved(timers, least=5, most=9)
    rates = best_rates(whole, rows, seconds)
    found = rows_of(works, seconds, rates, size)
    if device.type == "cuda":
        found += gpu_rows(works, seconds, rates, torch.cuda.get_device_name(device))
    return found


def _of(params: FinetuneParams, batch_size: int) -> FinetuneParams:
    return params.model_copy(update={"batch_size": batch_size})


def rows_of(
    works: Mapping[str, Work],
    seconds: Mapping[str, float],
    rates: Mapping[Product, float],
    size: str,
) -> list[Row]:
    """Return the rows that follow from times.

    Args:
        works: a training step on whole images, then others, by name.
        seconds: that each of them takes.
        rates: the best FLOP/s of every product.
        size: what the network is called.
    """
    rows = []
    for name, work in works.items():
        limit = work.products.best_rate(rates)
        rate = work.products.flops / seconds[name]
        rows.append(Row(name, rate / 1e9, "GFLOP/s", limit / 1e9, RATE, True))
    whole, full = next(iter(works.items()))
    for name, part in list(works.items())[1:]:
        if name.startswith("training"):
            speed_up = (part.images / seconds[name]) / (full.images / seconds[whole])
            computed = (full.products.flops / full.images) / (part.products.flops / part.images)
            masked = name.removeprefix(f"training step, {size}, ")
            label = f"images/s, {size}, {masked} ÷ whole images"
            rows.append(Row(label, speed_up, "×", computed, SHARE, True))
    return rows


def gpu_rows(
    works: Mapping[str, Work],
    seconds: Mapping[str, float],
    rates: Mapping[Product, float],
    gpu: str,
) -> list[Row]:
    """Return what people ask of a GPU: tokens a second, and the use made of its nominal peak.

    Args:
        works: training steps and others, by name.
        seconds: that each of them takes.
        rates: the best FLOP/s of every product.
        gpu: the device's name; the second kind of row is left out for one that is not in ``PEAKS``.
    """
    rows = []
    peak = next((peak for name, peak in PEAKS.items() if name in gpu), None)
    for name, work in works.items():
        a_token = work.products.flops / work.tokens
        best = work.products.best_rate(rates) / a_token
        rows.append(Row(f"{name}: tokens/s", work.tokens / seconds[name], "1/s", best, RATE, True))
        if peak:
            reached = work.products.flops / seconds[name]
            label = f"{name}: model-FLOPs utilisation"
            rows.append(Row(label, reached / 1e12, "TFLOP/s", peak / 1e12, UTILISATION, True))
    return rows


def training_step(preset: Params, mask: Mask, params: PhaseParams) -> Work:
    """Return the steps of one phase, warmed up to the first, on the device that is there."""
    device = choose_device()
    data = read_section(preset, "data", DataParams)
    model = read_section(preset, "model", ModelParams)
    diffusion = read_section(preset, "diffusion", DiffusionParams)
    backbone = build_backbone(model, data.resolution, data.channels, seed=0).to(device)
    batches = noise_batches(preset, mask, params, device)
    endless = params.model_copy(update={"validate_every": FOREVER})
    heldout = noise_images(preset, len(HALF_LOG_SNRS))
    validator = HeldOutValidator(heldout, model.patch, diffusion, device)
    execution = Execution.from_environment(params.precision)
    state = State.start(backbone, params)
    steps = train(state, batches, validator, diffusion, endless, execution)
    next(steps)  # the validation before the first step
    flops = training_flops(backbone, mask.visible, params.batch_size)
    multiplied = products(on_meta(preset), mask.visible, params.batch_size, flops, step=True)
    tokens = params.batch_size * mask.visible
    return Work(partial(next, steps), multiplied, params.batch_size, tokens)


def noise_batches(
    preset: Params, mask: Mask, params: PhaseParams, device: torch.device = CPU
) -> Batches:
    """Return endless batches of noise in the shape of a preset's images, for steps on a device."""
    model = read_section(preset, "model", ModelParams)
    images = resident(noise_images(preset, IMAGES), device)
    leg = Leg(mask, FOREVER, params.batch_size, params.lr, params.warmup)
    return Batches(images, Schedule((leg,), FOREVER), model.patch, params.hflip, 0, "bench")


def noise_images(preset: Params, count: int) -> np.ndarray:
    """Return noise in the shape of a preset's images, uint8 ``(count, H, W, C)``."""
    data = read_section(preset, "data", DataParams)
    shape = (count, data.resolution, data.resolution, data.channels)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def sampling(preset: Params, device: torch.device) -> Work:
    """Return the drawing of some images by the preset's solver."""
    data = read_section(preset, "data", DataParams)
    model = read_section(preset, "model", ModelParams)
    diffusion = read_section(preset, "diffusion", DiffusionParams)
    params = read_section(preset, "sample", SampleParams)
    params = params.model_copy(update={"nfe": EVALUATIONS})
    backbone = build_backbone(model, data.resolution, data.channels, seed=0).to(device)
    shape = ((data.resolution // model.patch) ** 2, model.patch**2 * data.channels)

    def draw() -> None:
        for _ in estimates(backbone, diffusion, params, shape, range(DRAWN), device):
            pass

    flops = EVALUATIONS * DRAWN * backbone.forward_flops(shape[0])
    multiplied = products(on_meta(preset), shape[0], DRAWN, flops // EVALUATIONS, step=False)
    linear = {product: EVALUATIONS * count for product, count in multiplied.linear.items()}
    return Work(draw, Products(linear, flops), DRAWN, DRAWN * shape[0])


def on_meta(preset: Params) -> Denoiser:
    """Return the network of a preset, without values."""
    data = read_section(preset, "data", DataParams)
    model = read_section(preset, "model", ModelParams)
    return backbone_without_weights(model, data.resolution, data.channels)
