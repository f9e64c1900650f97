"""The training loop, the same for both phases: masked pretraining and finetuning.

The phases differ in what is visible (the mask), in length and in learning rate, and in nothing
else. The loop is a generator: it computes one step at a time and reports it; files, progress bars
and clocks belong to whoever drives it. Between two reports ``State`` is all that the steps to come
depend on, besides the batches, which are a function of the step: so a state that was saved and
restored goes on to the same bits.
"""

from array import array
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import pairwise
from math import ceil
from typing import Any, Protocol

import torch
from torch import Tensor

from maskdm import ema
from maskdm.ahead import made_ahead
from maskdm.backbones.denoiser import Denoiser
from maskdm.batches import Batch
from maskdm.compilation import compiled
from maskdm.diffusion import DiffusionParams, denoising_loss, training_times
from maskdm.errors import UserError
from maskdm.history import History
from maskdm.optimiser import AdamW, LossScale, clipping
from maskdm.phases import PhaseParams
from maskdm.processes import ALONE, Processes
from maskdm.schedule import Schedule

MOST_SKIPPED = 20  # steps in a row without a finite loss and gradient before a run stops


@dataclass
class State:
    """Everything that a step changes.

    Attributes:
        backbone: the network with its raw weights.
        averaged: the averaged weights, by parameter name.
        optimiser: AdamW with its moments.
        scale: of the loss in fp16; None in other precisions.
        step: how many steps were made.
        history: what they were like.
    """

    backbone: Denoiser
    averaged: dict[str, Tensor]
    optimiser: AdamW
    scale: LossScale | None
    step: int = 0
    history: History = field(default_factory=History)

    @classmethod
    def start(cls, backbone: Denoiser, params: PhaseParams) -> "State":
        """Return the state before the first step; the average starts at the weights given.

        Args:
            backbone: on the device to train on.
            params: the phase.
        """
        parameters = dict(backbone.named_parameters())
        device = next(iter(parameters.values())).device
        averaged = {name: p.detach().clone() for name, p in parameters.items()}
        scale = LossScale.for_precision(params.precision, device)
        return cls(backbone, averaged, AdamW(parameters, params), scale)

    def tensors(self) -> dict[str, Tensor]:
        """Return all that is to be saved, by name; the tensors themselves, not copies."""
        self.history.settle()
        found = {f"averaged.{name}": tensor for name, tensor in self.averaged.items()}
        found |= {f"raw.{name}": p.detach() for name, p in self.backbone.named_parameters()}
        found |= self.optimiser.tensors() | (self.scale.tensors() if self.scale else {})
        for name, values in (("losses", self.history.losses), ("norms", self.history.norms)):
            found[f"history.{name}"] = torch.tensor(values, dtype=torch.float32)
        return found

    def facts(self) -> dict[str, Any]:
        """Return what is to be saved besides tensors, as JSON can hold it."""
        return {"validations": self.history.validations}

    def restore(self, step: int, facts: Mapping[str, Any], fill: Callable[..., object]) -> None:
        """Become the state after ``step`` steps.

        Args:
            step: steps made.
            facts: as ``facts`` returned them, perhaps through JSON.
            fill: puts the saved tensor of a name, as in ``tensors``, into the tensor given.
        """
        losses, norms = torch.empty(step), torch.empty(step)
        for name, tensor in self.tensors().items():
            if not name.startswith("history."):
                fill(name, tensor)
        fill("history.losses", losses)
        fill("history.norms", norms)
        validations = {int(made): errors for made, errors in facts["validations"].items()}
        self.history = History(array("f", losses.tolist()), array("f", norms.tolist()), validations)
        self.step = step


class StepBatches(Protocol):
    """The batch of every step: ``Batches``, or another source of token sets."""

    @property
    def schedule(self) -> Schedule:
        """How many steps, and the learning rate of each."""

    def at(self, step: int, part: slice) -> Batch:
        """Return samples ``part`` of the batch of step ``step`` (from 0), on the CPU."""


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
    processes: Processes = ALONE,
) -> Iterator[Report]:
    """Train ``state`` in place to the end of the batches' schedule, one report a step.

    A step whose loss or gradients are not finite changes no weight.

    Args:
        state: where to start; its tensors must be on ``device``.
        batches: the batch of every step.
        validation: the held-out images to validate on.
        diffusion: path, prediction and loss.
        params: the phase.
        device: where to compute.
        micro_batch: images in one forward pass of a process, to bound memory; gradients are
            accumulated over the batch. Changes results by rounding only.
        processes: who shares the batch; changes results by rounding only.

    Raises:
        UserError: if ``MOST_SKIPPED`` steps in a row were not finite.
    """
    backbone, parameters = state.backbone.train(), list(state.backbone.parameters())
    schedule, history = batches.schedule, state.history
    network = processes.synchronised(backbone, compiled(backbone, device))

    def validated() -> dict[str, float] | None:
        regular = state.step % params.validate_every == 0
        if state.step in history.validations or not (regular or state.step == schedule.steps):
            return history.validations.get(state.step)
        errors = _validate(state, validation, params, device)
        if regular:  # a longer run has the others, but not the one at this run's end
            history.validations[state.step] = errors
        return errors

    def make(step: int) -> Batch:
        return batches.at(step, processes.part(schedule.leg(step)[0].batch_size))

    yield Report(state.step, validation=validated())

    with made_ahead(make, schedule.steps, device) as batch_of:
        while state.step < schedule.steps:
            lr = schedule.learning_rate(state.step)
            length = schedule.leg(state.step)[0].batch_size
            batch = batch_of(state.step)
            largest, smallest = ceil(length / processes.count), length // processes.count
            passes = min(smallest, ceil(largest / (micro_batch or largest)))  # everywhere the same
            loss = _accumulate(
                network, batch, length, passes, diffusion, params, device, state.scale, processes
            )
            norm = _step(state, loss, lr, params.clip, processes)

            state.step += 1
            history.add(loss, norm)
            beta = ema.decay(schedule.images_before(state.step), length, params.ema_images)
            ema.update(state.averaged.values(), parameters, beta)

            logs = state.step % params.log_every == 0 or state.step == schedule.steps
            if logs or state.step % MOST_SKIPPED == 0:
                _stop_if_failing(state, schedule, params)
            first = _row_start(state.step, params.log_every)
            row = history.row(first, state.step) if logs else None
            yield Report(
                state.step,
                row.loss if row else None,
                row.gradient_norm if row else None,
                lr,
                validated(),
            )


def _row_start(last: int, every: int) -> int:
    """Return the first step of the row of the training curve that ends with step ``last``."""
    return (last - 1) // every * every + 1


def _step(
    state: State, loss: Tensor, lr: float, clip: float | None, processes: Processes
) -> Tensor:
    """Make the optimiser's step, unless loss or gradients are not finite; return their norm.

    Nothing here waits for the device.
    """
    norm = processes.whole(torch.nn.utils.get_total_norm(state.optimiser.gradients()))
    divisor = torch.ones_like(norm)
    if state.scale:
        divisor = state.scale.scale.clone()
        norm = norm / divisor
    bad = ~(loss.isfinite() & norm.isfinite())
    state.optimiser.step(lr, divisor * clipping(norm, clip), bad)
    if state.scale:
        state.scale.update(bad)
    return norm


def _stop_if_failing(state: State, schedule: Schedule, params: PhaseParams) -> None:
    """Raise a UserError if the last steps were not finite, and too many."""
    state.history.settle()
    failed = state.history.failing()
    if failed < MOST_SKIPPED:
        return
    first = state.step - failed + 1
    leg, _ = schedule.leg(first - 1)
    instead = "" if params.precision == "fp32" else ", or train in fp32"
    raise UserError(
        f"Loss or gradients have not been finite from step {first} to step {state.step} (loss "
        f"{state.history.losses[-1]:g}): such steps change nothing, and {MOST_SKIPPED} in a row "
        f"are too many. Lower the learning rate ({leg.lr:g}) or lengthen the warm-up "
        f"({leg.warmup} steps){instead}."
    )


def _accumulate(
    network: Callable[..., Tensor],
    batch: Batch,
    length: int,
    passes: int,
    diffusion: DiffusionParams,
    params: PhaseParams,
    device: torch.device,
    scale: LossScale | None,
    processes: Processes,
) -> Tensor:
    """Add the gradients of one global batch to the parameters; return its mean loss, detached.

    Args:
        network: the network; with several processes its backward pass averages over them.
        batch: this process's part of the batch.
        length: images in the global batch.
        passes: forward passes to cut the part into.
        diffusion: path, prediction and loss.
        params: the phase.
        device: where to compute.
        scale: of the loss in fp16, or None.
        processes: who shares the batch.
    """
    times = training_times(batch.uniform, diffusion)
    total = torch.zeros((), device=device)
    ends = [len(times) * number // passes for number in range(passes + 1)]
    for first, last in pairwise(ends):
        part = slice(first, last)
        positions = batch.positions[part]
        labels = None if batch.labels is None else batch.labels[part]
        with processes.synchronising(network, last == len(times)):
            with autocast(params.precision, device):
                per_image = denoising_loss(
                    lambda x_t, t, p=positions, c=labels: network(x_t, p, t, c),  # type: ignore[misc]
                    batch.tokens[part],
                    batch.noise[part],
                    times[part],
                    diffusion,
                )
            loss = per_image.sum() / length
            # The gradients of the processes are averaged, and are to be summed.
            scaled = loss * processes.count * (scale.scale if scale else 1)
            scaled.backward()  # type: ignore[no-untyped-call]
        total += loss.detach()
    return processes.total(total)


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
    parameters = dict(state.backbone.named_parameters())
    with autocast(params.precision, device):
        by_weights = {"raw": validation.errors(state.backbone)}
        with ema.applied(parameters, state.averaged):
            by_weights["averaged"] = validation.errors(state.backbone)
    return {
        weights if name == "mean" else f"{weights}[{name}]": value
        for weights, errors in by_weights.items()
        for name, value in errors.items()
    }
