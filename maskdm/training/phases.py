"""The two phases of the method: their parameters, and the schedule that these make.

Masked pretraining has one leg at ``mask.rate``, or those of ``pretrain.legs``; finetuning has one
leg on whole images. The loop (``loop.py``) cannot tell them apart.
"""

from collections.abc import Mapping
from math import log
from typing import Annotated, ClassVar, Literal

from pydantic import Field, Strict, field_validator

from maskdm.backbones.model_folder import Weights
from maskdm.diffusion.masking import Mask, MaskParams, make_mask, nothing_masked
from maskdm.runtime.errors import UserError
from maskdm.runtime.execution import Precision
from maskdm.runtime.params import Section
from maskdm.training.schedule import Leg, Schedule

MOST_STEPS, MOST_IMAGES = 10**9, 10**6  # of a phase, of a batch: more is a slip of the pen
# Of less, weights in fp32 and AdamW's epsilon leave nothing; of more decay nothing is left of them.
LEAST_RATE, LEAST_NORM, MOST_DECAY = 1e-10, 1e-8, 1000


class PhaseParams(Section):
    """What both training sections, ``pretrain`` and ``finetune``, hold."""

    steps: int = Field(
        ge=0, le=MOST_STEPS, description="optimiser steps, a whole number from 0 to 1e9"
    )
    batch_size: int = Field(
        ge=1, le=MOST_IMAGES, description="images a step, a whole number from 1 to 1e6"
    )
    lr: float = Field(ge=LEAST_RATE, description="peak learning rate of AdamW, >= 1e-10")
    warmup: int = Field(ge=0, description="steps of linear warm-up, >= 0")
    cooldown: int = Field(ge=0, description="last steps, over which the rate falls to 0, >= 0")
    betas: Annotated[tuple[float, float], Strict(False)] = Field(
        description="AdamW's two decay rates, a list of two numbers, 0 <= rate < 1"
    )
    weight_decay: float = Field(ge=0, le=MOST_DECAY, description="AdamW's weight decay, 0 to 1000")
    clip: float | None = Field(
        ge=LEAST_NORM, description="largest gradient norm, >= 1e-8, or null for none"
    )
    hflip: float = Field(ge=0, le=1, description="probability of mirroring an image, 0 to 1")
    ema_images: int = Field(
        ge=1, le=10**15, description="horizon of the weight average in images, 1 to 1e15"
    )
    precision: Precision = Field(description="fp32, or autocast to bf16 or fp16")
    log_every: int = Field(ge=1, description="steps between rows of the training curve, >= 1")
    validate_every: int = Field(ge=1, description="steps between validations, >= 1")
    preview_every: int = Field(
        0, ge=0, description="steps between pictures of what the model draws, 0 for none"
    )
    label_dropout: float = Field(
        ge=0, le=1, description="probability of hiding an image's class, 0 to 1"
    )

    @field_validator("betas")
    @classmethod
    def _decay_rates_decay(cls, betas: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= rate < 1 for rate in betas):
            raise ValueError("an average with such a rate never forgets, or grows")
        return betas


class LegParams(Section):
    """One entry of ``pretrain.legs``; what it leaves out is the section's."""

    rate: float = Field(ge=0, lt=1, description="the share of patches hidden, 0 <= rate < 1")
    steps: int = Field(
        ge=1, le=MOST_STEPS, description="optimiser steps, a whole number from 1 to 1e9"
    )
    batch_size: int | None = Field(
        None, ge=1, le=MOST_IMAGES, description="images a step, a whole number from 1 to 1e6"
    )
    lr: float | None = Field(
        None, ge=LEAST_RATE, description="peak learning rate of AdamW, >= 1e-10"
    )
    warmup: int | None = Field(None, ge=0, description="steps of linear warm-up, >= 0")


class PretrainParams(PhaseParams):
    """The section ``pretrain``: masked pretraining; ``steps: 0`` is training from scratch."""

    former_names: ClassVar[Mapping[str, str]] = {"stages": "legs"}

    legs: Annotated[list[LegParams], Field(min_length=1)] | None = Field(
        description="a list of {rate, steps, batch_size, lr, warmup}, or null for mask.rate "
        "throughout"
    )
    full_share: float = Field(
        ge=0, lt=1, description="share of steps on whole images among the masked ones, 0 to below 1"
    )
    noise_shift: float = Field(
        0.0,
        ge=-100,
        le=100,
        description="log-SNR added to masked steps, in units of ln(N/S), -100 to 100; 0 for none",
    )


class FinetuneParams(PhaseParams):
    """The section ``finetune``: whole images, from a model folder."""

    init: str = Field(description="the model folder to start from, such as models/pretrain")
    init_weights: Weights = Field(description="which of its weights to start from: averaged or raw")
    optimiser: Literal["fresh", "kept"] = Field(
        "fresh", description="AdamW's moments at the start: fresh (zero) or kept from that model"
    )


def pretraining_schedule(params: PretrainParams, mask: MaskParams, grid: int) -> Schedule:
    """Return the legs of masked pretraining on a G×G grid of patches.

    Raises:
        UserError: if a mask does not fit the grid, or steps, warm-ups and cool-down do not fit
            together.
    """
    planned = params.legs or [LegParams(rate=mask.rate, steps=max(1, params.steps))]
    if planned[0].rate != mask.rate:
        raise UserError(
            f"mask.rate is {mask.rate:g}, but pretrain.legs begins with {planned[0].rate:g}: make "
            "them equal, or set pretrain.legs to null to have mask.rate throughout."
        )
    legs = tuple(
        Leg(
            mask=made,
            steps=leg.steps,
            batch_size=leg.batch_size or params.batch_size,
            lr=leg.lr or params.lr,
            warmup=params.warmup if leg.warmup is None else leg.warmup,
            shift=params.noise_shift * fewer_tokens(made),
        )
        for leg in planned
        for made in [make_mask(mask.model_copy(update={"rate": leg.rate}), grid)]
    )
    steps = sum(leg.steps for leg in planned)
    if params.legs and params.steps > steps:
        raise UserError(
            f"pretrain.steps is {params.steps}, but pretrain.legs hold only {steps} steps: "
            "lengthen the last leg. (Fewer steps are allowed: they stop the legs early.)"
        )
    schedule = Schedule(legs, params.steps, params.cooldown, params.full_share)
    return _fitting(schedule, "pretrain")


def check_share(phase: str, batch_size: int, processes: int) -> None:
    """Check that every process gets a part of every batch.

    Args:
        phase: ``"pretrain"`` or ``"finetune"``.
        batch_size: of the smallest batch.
        processes: how many share it.

    Raises:
        UserError: saying what to change.
    """
    if batch_size < processes:
        raise UserError(
            f"{phase}.batch_size is {batch_size}, fewer images than the {processes} processes that "
            "are to share them: set MASKDM_PROCESSES to fewer, or take larger batches."
        )


def check_mirroring(phase: str, hflip: float, of_latents: bool) -> None:
    """Check that latents are not to be mirrored.

    Args:
        phase: ``"pretrain"`` or ``"finetune"``.
        hflip: probability of mirroring an image.
        of_latents: whether what is mirrored are latents.

    Raises:
        UserError: saying what to change.
    """
    if of_latents and hflip:
        raise UserError(
            f"{phase}.hflip is {hflip:g}, but with data.autoencoder the network learns latents, "
            "and mirrored latents are not those of the mirrored image: set it to 0."
        )


def fewer_tokens(mask: Mask) -> float:
    """Return ½·ln(N/S), by how much less λ, half the log-SNR, S of N tokens say as much as all.

    Noise averages out over tokens, as over pixels (Hoogeboom et al. 2023, section 3.1).
    """
    return 0.5 * log(mask.grid**2 / mask.shown)


def finetuning_schedule(params: FinetuneParams, grid: int) -> Schedule:
    """Return the one leg of finetuning, on whole images.

    Raises:
        UserError: if warm-up and cool-down are longer than the phase.
    """
    mask = nothing_masked(grid)
    leg = Leg(mask, params.steps, params.batch_size, params.lr, params.warmup)
    return _fitting(Schedule((leg,), params.steps, params.cooldown), "finetune")


def _fitting(schedule: Schedule, phase: str) -> Schedule:
    """Return the schedule if every warm-up fits into its leg, the last with the cool-down."""
    made = schedule.stretches(schedule.steps)
    for stretch in made:
        # A run that stops within a warm-up is a prefix like any other.
        cooldown = schedule.cooldown if stretch is made[-1] else 0
        steps = stretch.steps if cooldown else stretch.leg.steps
        if stretch.leg.warmup + cooldown > steps:
            raise UserError(
                f"{phase}.warmup ({stretch.leg.warmup}) and {phase}.cooldown ({cooldown}) together "
                f"are longer than the {steps} steps they have: shorten them."
            )
    return schedule
