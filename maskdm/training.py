"""The training loop, the same for both phases: masked pretraining and finetuning.

The phases differ in what is visible (the mask), in length and in learning rate, and in nothing
else. The loop is a generator: it computes one step at a time and reports it; files, progress bars
and clocks belong to whoever drives it.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field, Strict
from torch import Tensor

from maskdm import ema
from maskdm.backbones.denoiser import Denoiser
from maskdm.batches import Batch, Batches
from maskdm.compilation import compiled
from maskdm.diffusion import DiffusionParams, denoising_loss, training_times
from maskdm.errors import UserError
from maskdm.params import Section
from maskdm.validation import Validation


class PhaseParams(Section):
    """What both training sections, ``pretrain`` and ``finetune``, hold."""

    steps: int = Field(ge=0, description="optimiser steps, a whole number >= 0")
    batch_size: int = Field(ge=1, description="images a step, a whole number >= 1")
    lr: float = Field(gt=0, description="peak learning rate of AdamW, > 0")
    warmup: int = Field(ge=0, description="steps of linear warm-up, >= 0")
    cooldown: int = Field(ge=0, description="last steps, over which the rate falls to 0, >= 0")
    betas: Annotated[tuple[float, float], Strict(False)] = Field(
        description="AdamW's two decay rates, a list of two numbers"
    )
    weight_decay: float = Field(ge=0, description="AdamW's weight decay, >= 0")
    clip: float | None = Field(gt=0, description="largest gradient norm, > 0, or null for none")
    hflip: float = Field(ge=0, le=1, description="probability of mirroring an image, 0 to 1")
    ema_images: int = Field(ge=1, description="horizon of the weight average in images, >= 1")
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        description="fp32, or autocast to bf16 or fp16"
    )
    log_every: int = Field(ge=1, description="steps between rows of the training curve, >= 1")
    validate_every: int = Field(ge=1, description="steps between validations, >= 1")


class PretrainParams(PhaseParams):
    """The section ``pretrain``: masked pretraining; ``steps: 0`` is training from scratch."""


class FinetuneParams(PhaseParams):
    """The section ``finetune``: whole images, from a model folder."""

    init: str = Field(description="the model folder to start from, such as models/pretrain")
    init_weights: Literal["averaged", "raw"] = Field(
        description="which of its weights to start from: averaged or raw"
    )


def learning_rate(step: int, params: PhaseParams) -> float:
    """Return the rate of step ``step`` (from 0): warm-up, constant, linear cool-down to 0."""
    rising = min(1.0, (step + 1) / (params.warmup + 1))
    falling = min(1.0, (params.steps - step) / (params.cooldown + 1))
    return params.lr * min(rising, falling)


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
    batches: Batches,
    heldout: np.ndarray,
    diffusion: DiffusionParams,
    params: PhaseParams,
    device: torch.device,
    micro_batch: int | None = None,
) -> Iterator[Report]:
    """Train ``state`` in place up to ``params.steps``, one report a step.

    Args:
        state: where to start; its tensors must be on ``device``.
        batches: the batch of every step.
        heldout: uint8 images to validate on, ``(count, H, W, C)``.
        diffusion: path, prediction and loss.
        params: the phase.
        device: where to compute.
        micro_batch: images in one forward pass, to bound memory; gradients are accumulated over
            the batch. Changes results by rounding only.

    Raises:
        UserError: if the loss is no longer finite.
    """
    backbone, parameters = state.backbone.train(), list(state.backbone.parameters())
    network = compiled(backbone, device)
    optimiser = torch.optim.AdamW(
        parameters,
        lr=params.lr,
        betas=params.betas,
        weight_decay=params.weight_decay,
        fused=device.type in ("cpu", "cuda"),
    )
    scaler = torch.amp.GradScaler(device.type, enabled=params.precision == "fp16")
    validation = Validation(heldout, batches.patch, diffusion, device)
    losses: list[Tensor] = []
    yield Report(state.step, validation=_validate(state, validation, params, device))

    while state.step < params.steps:
        lr = learning_rate(state.step, params)
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
        seen = state.step * params.batch_size
        beta = ema.decay(seen, params.batch_size, params.ema_images)
        ema.update(state.averaged.values(), parameters, beta)

        last = state.step == params.steps
        logs = state.step % params.log_every == 0 or last
        validates = state.step % params.validate_every == 0 or last
        loss = torch.stack(losses).mean().item() if logs else None
        if loss is not None:
            losses.clear()
            if not np.isfinite(loss):
                raise UserError(
                    f"The training loss is {loss} at step {state.step}. Lower the learning rate "
                    f"({params.lr:g}), lengthen the warm-up ({params.warmup} steps), or train in "
                    f"fp32 instead of {params.precision}."
                    if params.precision != "fp32"
                    else f"The training loss is {loss} at step {state.step}. Lower the learning "
                    f"rate ({params.lr:g}) or lengthen the warm-up ({params.warmup} steps)."
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
        with autocast(params.precision, device):
            per_image = denoising_loss(
                lambda x_t, t, positions=positions: network(x_t, positions, t),  # type: ignore[misc]
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
    state: State, validation: Validation, params: PhaseParams, device: torch.device
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
