"""The training loop, the same for both phases: masked pretraining and finetuning.

The phases differ in what is visible (the mask), in length and in learning rate, and in nothing
else. The loop is a generator: it computes one step at a time; files, progress bars and clocks
belong to whoever drives it. Between two steps ``State`` is all that the steps to come depend on,
besides the batches, which are a function of the step: a state that was saved and restored goes on
to the same bits.
"""

from collections.abc import Callable, Generator
from math import isfinite
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from maskdm.diffusion.loss import DiffusionParams
from maskdm.runtime.errors import UserError
from maskdm.runtime.execution import Execution
from maskdm.training import ema
from maskdm.training.batches import Batch
from maskdm.training.history import Errors
from maskdm.training.phases import PhaseParams
from maskdm.training.prefetch import prefetched
from maskdm.training.schedule import Schedule
from maskdm.training.state import State
from maskdm.training.step import Rates, TrainingStep

WEIGHTS = RAW, AVERAGED = "raw", "averaged"  # what is validated
MOST_SKIPPED = 20  # steps in a row without a finite loss and gradient before a run stops


class StepBatches(Protocol):
    """The batch of every step: ``Batches``, or another source of token sets."""

    @property
    def schedule(self) -> Schedule:
        """How many steps, and the learning rate of each."""

    def at(self, step: int, part: slice, device: torch.device) -> Batch:
        """Return samples ``part`` of the batch of step ``step`` (from 0), on a device."""


class Validator(Protocol):
    """Measures how good a network is: ``HeldOutValidator``."""

    def errors(self, denoise: Callable[..., Tensor]) -> Errors:
        """Return errors by name; ``"mean"`` is the one that counts."""


class Previewer(Protocol):
    """Draws pictures with a network: ``maskdm.training.previews.Previewer``."""

    def draw(self, denoise: Callable[..., Tensor]) -> np.ndarray:
        """Return images, uint8 ``(count, H, W, C)``."""


def train(
    state: State,
    batches: StepBatches,
    validator: Validator,
    diffusion: DiffusionParams,
    params: PhaseParams,
    execution: Execution,
    previewer: Previewer | None = None,
) -> Generator[int, None, None]:
    """Train ``state`` in place to the end of the batches' schedule.

    Losses, gradient norms, validations and previews are in ``state.history``. A step whose loss or
    gradients are not finite changes no weight.

    Args:
        state: the start; its tensors must be on the device of ``execution``.
        batches: the batch of every step.
        validator: of the network, every ``validate_every`` steps and at the end.
        diffusion: path, prediction and loss.
        params: the phase.
        execution: where and how; it changes results by rounding only.
        previewer: of the network, every ``preview_every`` steps and at the end; None for none.

    Yields:
        The steps made so far: before the first step of this call, and after each.

    Raises:
        UserError: if ``MOST_SKIPPED`` steps in a row were not finite.
    """
    state.backbone.train()
    schedule, processes = batches.schedule, execution.processes
    make_step = TrainingStep(state, diffusion, params, execution)

    def make(step: int, device: torch.device) -> Batch:
        return batches.at(step, processes.part(schedule.batch_size(step)), device)

    validate_if_due(state, schedule, validator, params, execution)
    preview_if_due(state, schedule, previewer, params, execution)
    yield state.step

    with prefetched(make, schedule.steps, execution.device) as batch_of:
        while state.step < schedule.steps:
            batch_size, seen = schedule.batch_size(state.step), schedule.images_before(state.step)
            rates = Rates(
                schedule.learning_rate(state.step),
                1 - ema.decay(seen + batch_size, batch_size, params.ema_images),
                schedule.shift(state.step),
            )
            outcome = make_step(batch_of(state.step), batch_size, rates)
            state.step += 1
            state.history.add(outcome)

            if state.step % MOST_SKIPPED == 0 or state.step == schedule.steps:
                stop_if_failing(state, schedule, params)
            validate_if_due(state, schedule, validator, params, execution)
            preview_if_due(state, schedule, previewer, params, execution)
            yield state.step


def stop_if_failing(state: State, schedule: Schedule, params: PhaseParams) -> None:
    """Raise a UserError if too many of the last steps in a row were not finite."""
    failed = state.history.failing()
    if failed < min(MOST_SKIPPED, schedule.steps):
        return
    first = state.step - failed + 1
    raise UserError(
        f"Loss or gradients have not been finite from step {first} to step {state.step} (loss "
        f"{state.history.losses[-1]:g}): such steps change nothing, and {failed} in a row are too "
        f"many. {_advice(first - 1, schedule, params)}"
    )


def stop_if_not_finite(errors: Errors, step: int, schedule: Schedule, params: PhaseParams) -> None:
    """Raise a UserError if a validation is not finite: no such model may pass for a trained one.

    A validator that measures nothing, as the Swiss roll's, has no errors.
    """
    wrong = [name for name in WEIGHTS if not isfinite(errors.get(name, 0.0))]
    if wrong:
        raise UserError(
            f"The validation error of the {' and the '.join(wrong)} weights is not finite after "
            f"step {step}: training has diverged. {_advice(max(step - 1, 0), schedule, params)}"
        )


def _advice(step: int, schedule: Schedule, params: PhaseParams) -> str:
    """Return what to do when a phase diverges at a step."""
    leg, _ = schedule.leg(step)
    instead = "" if params.precision == "fp32" else ", or train in fp32"
    return (
        f"Lower the learning rate ({leg.lr:g}) or lengthen the warm-up ({leg.warmup} "
        f"steps){instead}."
    )


def validate_if_due(
    state: State,
    schedule: Schedule,
    validator: Validator,
    params: PhaseParams,
    execution: Execution,
) -> None:
    """Validate every ``validate_every`` steps, and after the last one."""
    history, regular = state.history, state.step % params.validate_every == 0
    if state.step in history.validations or not (regular or state.step == schedule.steps):
        return
    errors = validate(state, validator, execution)
    stop_if_not_finite(errors, state.step, schedule, params)
    kept = history.validations if regular else history.final
    kept[state.step] = errors


def preview_if_due(
    state: State,
    schedule: Schedule,
    previewer: Previewer | None,
    params: PhaseParams,
    execution: Execution,
) -> None:
    """Have the averaged weights draw every ``preview_every`` steps, first and last one included."""
    if previewer is None or not params.preview_every:
        return
    history, regular = state.history, state.step % params.preview_every == 0
    if state.step in history.previews or not (regular or state.step == schedule.steps):
        return
    parameters = dict(state.backbone.named_parameters())
    kept = history.previews if regular else history.final_previews
    with ema.applied(parameters, state.averaged), execution.autocast():
        kept[state.step] = previewer.draw(state.backbone)


def validate(state: State, validator: Validator, execution: Execution) -> Errors:
    """Return the x0 errors of raw and averaged weights, by column name."""
    parameters = dict(state.backbone.named_parameters())
    # A context each: autocast keeps its 16-bit copies of weights to its end, whoever changes these.
    with execution.autocast():
        by_weights = {RAW: validator.errors(state.backbone)}
    with ema.applied(parameters, state.averaged), execution.autocast():
        by_weights[AVERAGED] = validator.errors(state.backbone)
    return {
        weights if name == "mean" else f"{weights}[{name}]": value
        for weights, errors in by_weights.items()
        for name, value in errors.items()
    }
