"""Exactness on a GPU: which of the promises of docs/running.md hold there, to which digit.

Small runs of the training loop itself, on noise. "The same" is a comparison of every bit of every
tensor that a checkpoint holds; everything else is the largest difference of a loss, relative.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from maskdm.backbones.registry import ModelParams, build_backbone
from maskdm.diffusion.loss import DiffusionParams
from maskdm.diffusion.masking import MaskParams, make_mask, nothing_masked
from maskdm.runtime.execution import Execution
from maskdm.training.batches import Batches
from maskdm.training.loop import train
from maskdm.training.phases import PhaseParams
from maskdm.training.schedule import Leg, Schedule
from maskdm.training.state import State
from maskdm.training.validation import HeldOutValidator

STEPS, STOP, PATCH, HEAD = 16, 9, 4, 64
DIFFUSION = DiffusionParams(
    path="flow", prediction="x0", loss="velocity", times="logit-normal", times_mean=0, times_std=1
)

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Case:
    """What is trained. A GPU's library chooses its kernels, and with them the order of sums, by it.

    Attributes:
        grid: side of the images in patches.
        batch: images a step.
        dim: width of the network.
    """

    grid: int = 8
    batch: int = 16
    dim: int = 128


USUAL = Case()
MANY_TOKENS = Case(grid=32)
# As of the hero and of MaskDM-small: from some thousand tokens a step on, of few positions, the
# backward pass of the embedding of positions adds up with atomics, in no order.
LARGE = Case(grid=16, batch=64, dim=384)


def exactness(execution: Execution, case: Case = USUAL) -> dict[str, Any]:
    """Return what holds on the device of ``execution``, at its precision.

    Args:
        execution: as training has it there: compiled, replayed.
        case: what is trained.
    """
    plain = run(replace(execution, compiles=False, replays=False), case)
    whole = run(execution, case)
    losses = whole["history.losses"]
    parts = replace(execution, micro_batch=case.batch * 3 // 8)
    return {
        "two runs the same": same(whole, run(execution, case)),
        "stopped and gone on the same": same(whole, run(execution, case, stop=STOP)),
        "losses finite": bool(losses.isfinite().all()),
        "micro-batches": difference(losses, run(parts, case)),
        "against launched and not compiled": difference(losses, plain),
        "averages against launched": distance(averages(whole), averages(plain)),
    }


def same(one: Tensors, other: Tensors) -> bool:
    """Return whether two states are equal to the last bit."""
    return all(torch.equal(one[name], other[name]) for name in one)


def difference(losses: torch.Tensor, other: Tensors) -> float:
    """Return the largest relative difference between the losses of two runs."""
    found = other["history.losses"]
    return float(((found - losses).abs() / losses.abs()).max())


def averages(state: Tensors) -> torch.Tensor:
    """Return all averaged weights in a row."""
    found = [tensor.flatten() for name, tensor in state.items() if name.startswith("averaged.")]
    return torch.cat(found).double()


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """Return the length of the difference of two vectors, relative to the second."""
    return float((one - other).norm() / other.norm())


def run(execution: Execution, case: Case = USUAL, stop: int | None = None) -> Tensors:
    """Train a small network: some masked steps, then some on whole images; return its state.

    Args:
        execution: where and how.
        case: what is trained.
        stop: saves the state after so many steps and goes on from it with another network.
    """
    grid, batch, size = case.grid, case.batch, case.grid * PATCH
    model = ModelParams(
        backbone="uvit", patch=PATCH, dim=case.dim, depth=5, heads=case.dim // HEAD, init="spatial"
    )
    images = np.random.default_rng(0).integers(0, 256, (4 * batch, size, size, 3), dtype=np.uint8)
    params = PhaseParams(
        steps=STEPS, batch_size=batch, lr=1e-3, warmup=2, cooldown=4, betas=(0.9, 0.99),
        weight_decay=0.03, clip=1.0, hflip=0.5, ema_images=64, precision=execution.precision,
        log_every=4, validate_every=100, label_dropout=0.0,
    )  # fmt: skip
    mask = make_mask(MaskParams(strategy="patch", rate=0.5, block_size=1), grid)
    legs = (Leg(mask, 8, batch, 1e-3, 2), Leg(nothing_masked(grid), 8, batch, 1e-3, 2))
    schedule = Schedule(legs, STEPS, params.cooldown)
    device = execution.device
    batches = Batches(images, schedule, PATCH, params.hflip, 0, "exactness")
    validator = HeldOutValidator(images[:14], PATCH, DIFFUSION, device)

    def start(seed: int) -> State:
        return State.start(build_backbone(model, size, 3, seed).to(device), params)

    def steps(state: State) -> Any:
        return train(state, batches, validator, DIFFUSION, params, execution)

    state = start(0)
    for made in steps(state):
        if made == stop:
            saved = {name: tensor.cpu().clone() for name, tensor in state.tensors().items()}
            state = gone_on(start(1), made, saved, state.metadata())
            for _ in steps(state):
                pass
            break
    return {name: tensor.cpu().clone() for name, tensor in state.tensors().items()}


def gone_on(state: State, step: int, saved: Tensors, metadata: dict[str, Any]) -> State:
    """Return ``state`` with what was saved of another."""

    def load(name: str, into: torch.Tensor) -> object:
        return into.copy_(saved[name])

    state.restore(step, metadata, load)
    return state
