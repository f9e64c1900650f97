"""What a training step costs besides forward and backward: the optimiser, and all the rest.

Optimiser and average can be no faster than memory delivers the bytes that they must touch. The
rest (a batch with its masks and noise, the average, the history, asking whether a checkpoint is
due) should vanish beside the step.
"""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from benchmarks.presets import read_preset
from benchmarks.speed.measuring import interleaved, timer
from benchmarks.speed.results import Row
from benchmarks.speed.training import SMALL, noise_batches, training_step
from maskdm.backbones.registry import ModelParams, build_backbone
from maskdm.data.registry import DataParams
from maskdm.diffusion.masking import Mask, MaskParams, make_mask, nothing_masked
from maskdm.runtime.devices import choose_device
from maskdm.runtime.distributed import ALONE
from maskdm.runtime.execution import Execution
from maskdm.runtime.numerics import numerics
from maskdm.runtime.params import Params, read_section
from maskdm.training import ema
from maskdm.training.checkpoints.checkpointer import Checkpointer
from maskdm.training.checkpoints.store import CheckpointStore
from maskdm.training.history import History
from maskdm.training.optimiser import clipping
from maskdm.training.phases import FinetuneParams, PhaseParams, PretrainParams
from maskdm.training.state import State

BYTES = 36  # of a parameter: weight, moments and average read and written, gradient read; 4 each
STREAMED = 2**26  # numbers in each of three arrays that no cache holds together
BANDWIDTH, REST = 0.6, 0.03  # goals


def overhead(preset: Params) -> list[Row]:
    """Time the optimiser with the average, and all that is neither it nor the network."""
    return [*optimiser(preset), *rest(preset)]


def optimiser(preset: Params) -> list[Row]:
    """Time AdamW, the gradients' norm and the average against memory, for two sizes."""
    device = choose_device()
    a, b, c = (torch.rand(STREAMED, device=device) for _ in range(3))
    calls: dict[str, Callable[[], object]] = {"memory": lambda: torch.add(a, b, out=c)}
    touched = {"memory": 3 * 4 * STREAMED}
    for size, of in (("demo", preset), ("MaskDM-small", read_preset(SMALL))):
        state = started(of, device)
        calls[size] = updating(state)
        touched[size] = BYTES * sum(p.numel() for p in state.backbone.parameters())
    timers = {name: timer(call, device) for name, call in calls.items()}
    seconds = interleaved(timers, least=7, most=30)
    rates = {name: touched[name] / seconds[name] / 1e9 for name in calls}
    memory = rates.pop("memory")
    return [
        Row(f"optimiser and average, {size}", rate, "GB/s", memory, BANDWIDTH, True)
        for size, rate in rates.items()
    ]


def started(preset: Params, device: torch.device) -> State:
    """Return the state of a preset's network before the first step."""
    model = read_section(preset, "model", ModelParams)
    data = read_section(preset, "data", DataParams)
    params = read_section(preset, "finetune", FinetuneParams)
    params = params.model_copy(update={"precision": "fp32"})
    backbone = build_backbone(model, data.resolution, data.channels, seed=0).to(device)
    return State.start(backbone, params)


def updating(state: State) -> Callable[[], None]:
    """Return what changes the weights in a step, gradients given."""
    parameters = list(state.backbone.parameters())
    gradients = [torch.rand_like(p) * 1e-3 for p in parameters]
    never = torch.zeros((), dtype=torch.bool, device=parameters[0].device)

    def update() -> None:
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        norm = torch.nn.utils.get_total_norm(gradients)
        state.optimiser.step(1e-3, clipping(norm, 1.0), never)
        ema.update(state.averaged.values(), parameters, 0.001)

    return update


def rest(preset: Params) -> list[Row]:
    """Time what surrounds the demo's steps in both phases against these steps."""
    device = choose_device()
    model = read_section(preset, "model", ModelParams)
    grid = read_section(preset, "data", DataParams).resolution // model.patch
    mask = make_mask(read_section(preset, "mask", MaskParams), grid)
    phases: dict[str, tuple[Mask, PhaseParams]] = {
        "whole images": (nothing_masked(grid), read_section(preset, "finetune", FinetuneParams)),
        f"{mask.rate:.0%} masked": (mask, read_section(preset, "pretrain", PretrainParams)),
    }
    state = started(preset, device)
    calls: dict[str, Callable[[], object]] = {}
    with TemporaryDirectory() as folder:
        for name, (shown, params) in phases.items():
            calls[name] = training_step(preset, shown, params).call
            calls[f"rest of {name}"] = surrounding(preset, shown, params, state, Path(folder))
        timers = {name: timer(call, device) for name, call in calls.items()}
        seconds = interleaved(timers, least=7, most=30)
    return [
        Row(
            f"step without forward, backward, optimiser; demo, {name}",
            1e3 * seconds[f"rest of {name}"], "ms", 1e3 * seconds[name], REST, False,
        )
        for name in phases
    ]  # fmt: skip


def surrounding(
    preset: Params, mask: Mask, params: PhaseParams, state: State, folder: Path
) -> Callable[[], None]:
    """Return all that a step of ``train`` does but forward, backward and optimiser."""
    device = next(state.backbone.parameters()).device
    batches = noise_batches(preset, mask, params, device)
    parameters = list(state.backbone.parameters())
    history, step = History(), 0
    store = CheckpointStore(folder, "bench", "step {:d}".format)
    about = numerics(Execution(device))
    checkpointer = Checkpointer(store, state, batches.schedule.steps, [], about, ALONE)
    outcome = torch.zeros(2, device=device)

    def surround() -> None:
        nonlocal step
        batches.at(step, device=device)
        ema.update(state.averaged.values(), parameters, 0.001)
        history.add(outcome)
        step += 1
        if step % params.log_every == 0:
            history.failing()
            history.row(step, params.log_every)
        checkpointer.after_step()

    return surround
