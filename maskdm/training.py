"""The training loop, the same for both phases: masked pretraining and finetuning.

The phases differ in what is visible (the mask), in length and in learning rate, and in nothing
else. The loop is a generator: it computes one step at a time and reports it; files, progress bars
and clocks belong to whoever drives it.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from maskdm import ema
from maskdm.backbones.denoiser import Denoiser
from maskdm.batches import Batch
from maskdm.compilation import compiled
from maskdm.diffusion import DiffusionParams, denoising_loss, training_times
from maskdm.errors import UserError
from maskdm.phases import PhaseParams
from maskdm.schedule import Schedule


@dataclass
class State:
    """Everything that a step changes.

    Attributes:
        backbone: the network with its raw weights.
        averaged: the averaged weights, by parameter name.
        step: how many steps were made.
    """

    backbone: Denoiser
    averaged: dict[str, Tensor]
    step: int = 0

    @classmethod
    def start(cls, backbone: Denoiser) -> "State":
        """Return the state before the first step; the average starts at the weights given."""
        return cls(backbone, {n: p.detach().clone() for n, p in backbone.named_parameters()})


class StepBatches(Protocol):
    """The batch of every step: ``Batches``, or another source of token sets."""

    @property
    def schedule(self) -> Schedule:
        """How many steps, and the learning rate of each."""

    def at(self, step: int, device: torch.device) -> Batch:
        """Return the batch of step ``step`` (from 0) on ``device``."""


class Judge(Protocol):
    """What tells how good a network is: ``Validation``."""

    def errors(self, denoise: Callable[..., Tensor]) -> dict[str, float]:
        """Return errors by name; ``"mean"`` is the one that counts."""


@dataclass(frozen=True)
class Report:
    """One step, told. Curve values are None on steps that log or validate nothing.

    Attributes:
        step: steps made, from 1; 0 is the validation before the first.
        loss: mean training loss since the last row.
        gradient_norm: of this step, before clipping.
        lr: the learning rate of this step.
        validation: x0 errors by column name: ``raw`` and ``averaged``, and each per log-SNR.
    """

    step: int
    loss: float | None = None
    gradient_norm: float | None = None
    lr: float | None = None
    validation: dict[str, float] | None = None


def train(
    state: State,
    batches: StepBatches,
    validation: Judge,
    diffusion: DiffusionParams,
    params: PhaseParams,
    device: torch.device,
    micro_batch: int | None = None,
) -> Iterator[Report]:
    """Train ``state`` in place to the end of the batches' schedule, one report a step.

    Args:
        state: where to start; its tensors must be on ``device``.
        batches: the batch of every step.
        validation: the held-out images to validate on.
        diffusion: path, prediction and loss.
        params: the phase.
        device: where to compute.
        micro_batch: images in one forward pass, to bound memory; gradients are accumulated over
            the batch. Changes results by rounding only.

    Raises:
        UserError: if the loss is no longer finite.
    """
    backbone, parameters = state.backbone.train(), list(state.backbone.parameters())
    schedule = batches.schedule
    network = compiled(backbone, device)
    optimiser = torch.optim.AdamW(
        parameters,
        lr=params.lr,
        betas=params.betas,
        weight_decay=params.weight_decay,
        fused=device.type in ("cpu", "cuda"),
    )
    scaler = torch.amp.GradScaler(device.type, enabled=params.precision == "fp16")
    losses: list[Tensor] = []
    yield Report(state.step, validation=_validate(state, validation, params, device))

    while state.step < schedule.steps:
        lr = schedule.learning_rate(state.step)
        for group in optimiser.param_groups:
            group["lr"] = lr
        batch = batches.at(state.step, device)
        losses.append(_accumulate(network, batch, diffusion, params, device, scaler, micro_batch))
        scaler.unscale_(optimiser)
        norm = torch.nn.utils.clip_grad_norm_(parameters, params.clip or float("inf"))
        scaler.step(optimiser)
        scaler.update()
        optimiser.zero_grad(set_to_none=True)

        state.step += 1
        seen = schedule.images_before(state.step)
        beta = ema.decay(seen, len(batch.tokens), params.ema_images)
        ema.update(state.averaged.values(), parameters, beta)

        last = state.step == schedule.steps
        logs = state.step % params.log_every == 0 or last
        validates = state.step % params.validate_every == 0 or last
        loss = torch.stack(losses).mean().item() if logs else None
        if loss is not None:
            losses.clear()
            if not np.isfinite(loss):
                leg, _ = schedule.leg(state.step - 1)
                instead = "" if params.precision == "fp32" else ", or train in fp32"
                raise UserError(
                    f"The training loss is {loss} at step {state.step}. Lower the learning rate "
                    f"({leg.lr:g}) or lengthen the warm-up ({leg.warmup} steps){instead}."
                )
        yield Report(
            state.step,
            loss,
            norm.item() if logs else None,
            lr,
            _validate(state, validation, params, device) if validates else None,
        )


def _accumulate(
    network: Callable[..., Tensor],
    batch: Batch,
    diffusion: DiffusionParams,
    params: PhaseParams,
    device: torch.device,
    scaler: torch.amp.GradScaler,
    micro_batch: int | None,
) -> Tensor:
    """Add the gradients of one batch to the parameters; return its mean loss, detached."""
    length = len(batch.tokens)
    times = training_times(batch.uniform, diffusion)
    total = torch.zeros((), device=device)
    size = micro_batch or length
    for start in range(0, length, size):
        part = slice(start, start + size)
        positions = batch.positions[part]
        labels = None if batch.labels is None else batch.labels[part]
        with autocast(params.precision, device):
            per_image = denoising_loss(
                lambda x_t, t, p=positions, c=labels: network(x_t, p, t, c),  # type: ignore[misc]
                batch.tokens[part],
                batch.noise[part],
                times[part],
                diffusion,
            )
        loss = per_image.sum() / length
        scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        total += loss.detach()
    return total


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """Return the context in which a forward pass runs at ``precision``."""
    if precision == "fp32":
        return nullcontext()
    dtype = torch.bfloat16 if precision == "bf16" else torch.float16
    return torch.autocast(device.type, dtype)


def _validate(
    state: State, validation: Judge, params: PhaseParams, device: torch.device
) -> dict[str, float]:
    """Return the x0 errors of raw and averaged weights, by column name."""

    def averaged(*inputs: Tensor) -> Tensor:
        output: Tensor = torch.func.functional_call(state.backbone, state.averaged, inputs)
        return output

    with autocast(params.precision, device):
        by_weights = {
            "raw": validation.errors(state.backbone),
            "averaged": validation.errors(averaged),
        }
    return {
        weights if name == "mean" else f"{weights}[{name}]": value
        for weights, errors in by_weights.items()
        for name, value in errors.items()
    }
