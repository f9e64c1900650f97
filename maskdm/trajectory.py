"""What a phase of training is made of, and what its states are named by.

Everything that shapes the steps is put together here, so that the fingerprint of a state sees the
very values that the loop gets, and the hash of the code sees the lines that hand them over.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch

from maskdm.backbones.denoiser import Denoiser
from maskdm.batches import Batches
from maskdm.data.store import PreparedSet
from maskdm.fingerprint import code, prefix
from maskdm.model_folder import ModelConfig
from maskdm.phases import PhaseParams
from maskdm.processes import Processes
from maskdm.schedule import Schedule
from maskdm.training import State
from maskdm.validation import Validation

# Of a phase's parameters those that act through the schedule, on the curves' rows, or as the start
ELSEWHERE = {
    *("steps", "batch_size", "lr", "warmup", "cooldown", "stages", "full_share"),
    *("log_every", "init", "init_weights"),
}


@dataclass(frozen=True)
class Trajectory:
    """A phase, ready to be trained.

    Attributes:
        state: before the first step.
        batches: of every step.
        validation: what it is judged by.
        fingerprint: steps made → what the state after them is named by.
    """

    state: State
    batches: Batches
    validation: Validation
    fingerprint: Callable[[int], str]


def begin(
    phase: str,
    backbone: Denoiser,
    config: ModelConfig,
    prepared: PreparedSet,
    schedule: Schedule,
    params: PhaseParams,
    start: str,
    device: torch.device,
    processes: Processes,
) -> Trajectory:
    """Put a phase together.

    Args:
        phase: ``"pretrain"`` or ``"finetune"``.
        backbone: the network to start from; it is moved to the device, and sharded if need be.
        config: what is known of it.
        prepared: the images.
        schedule: what stays visible at which step, batch sizes and learning rates.
        params: the phase's parameters.
        start: what the network's weights depend on besides the section model and the seed.
        device: where to compute.
        processes: who trains together.
    """
    processes.shard(backbone.to(device), device)
    shaped_by = {
        "phase": phase,
        "data": prepared.hash,
        "start": start,
        "seed": config.seed,
        "model": config.model.model_dump(),
        "classes": backbone.classes,
        "diffusion": config.diffusion.model_dump(),
        "params": params.model_dump(exclude=ELSEWHERE),
        "code": code(),
    }

    @cache
    def fingerprint(step: int) -> str:
        return prefix(shaped_by, schedule, step)

    batches = Batches(
        prepared.train,
        schedule,
        config.model.patch,
        params.hflip,
        config.seed,
        phase,
        prepared.train_labels,
        backbone.classes,
        params.label_dropout,
    )
    validation = Validation(
        prepared.heldout, config.model.patch, config.diffusion, device, prepared.heldout_labels
    )
    return Trajectory(State.start(backbone, params), batches, validation, fingerprint)
