"""A phase of training, put together from its parts, and what its checkpoints are named by.

Everything that shapes the steps is assembled here, so that the fingerprint of a checkpoint covers
the very values that the loop gets, and the hash of the code the lines that hand them over.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

from torch import Tensor

from maskdm.backbones.autoencoder import open_codec
from maskdm.backbones.denoiser import Denoiser
from maskdm.backbones.model_folder import ModelConfig
from maskdm.data.prepared import PreparedSet
from maskdm.runtime.execution import Execution
from maskdm.runtime.shard_cache import check_room
from maskdm.runtime.sharded import ShardedArray
from maskdm.training.batches import Batches
from maskdm.training.checkpoints.fingerprint import code_hash, digest
from maskdm.training.phases import PhaseParams, check_mirroring
from maskdm.training.previews import Previewer
from maskdm.training.resident import resident
from maskdm.training.schedule import Schedule
from maskdm.training.state import State
from maskdm.training.validation import HeldOutValidator

# These parameters act through the schedule, on the rows of the curves, or as the start.
ELSEWHERE = {
    *("steps", "batch_size", "lr", "warmup", "cooldown", "legs", "full_share"),
    *("log_every", "init", "init_weights"),
}
# What a step computes is in these modules and in all that they import.
COMPUTES_STEPS = ("maskdm.training.setup", "maskdm.training.loop")


@dataclass(frozen=True)
class Setup:
    """A phase, ready to be trained.

    Attributes:
        state: before the first step.
        batches: of every step.
        validator: of the network.
        previewer: what it draws on the way.
        fingerprint: steps made → the fingerprint of the state after them.
    """

    state: State
    batches: Batches
    validator: HeldOutValidator
    previewer: Previewer
    fingerprint: Callable[[int], str]


def set_up(
    phase: str,
    backbone: Denoiser,
    config: ModelConfig,
    prepared: PreparedSet,
    schedule: Schedule,
    params: PhaseParams,
    start: str,
    execution: Execution,
    moments: Mapping[str, Tensor] | None = None,
) -> Setup:
    """Put a phase together.

    Args:
        phase: ``"pretrain"`` or ``"finetune"``.
        backbone: the network to start from; it is moved to the device, and sharded if need be.
        config: of the model.
        prepared: the images.
        schedule: what stays visible at which step, batch sizes and learning rates.
        params: the phase's parameters.
        start: what the network's weights depend on besides the section model and the seed.
        execution: where and how to compute.
        moments: what the optimiser starts with; ``start`` says where they are from.

    Raises:
        UserError: if latents are to be mirrored, or previews need an autoencoder that is not there.
    """
    if prepared.window and isinstance(prepared.train, ShardedArray):
        check_room(prepared.window.room(prepared.train.shape[1:]))
    check_mirroring(phase, params.hflip, config.latents is not None)
    train, heldout = prepared.learned
    execution.processes.shard(backbone.to(execution.device), execution.device)
    recipe = {
        "phase": phase,
        "data": prepared.hash,
        "window": prepared.window,
        "start": start,
        "seed": config.seed,
        "model": config.model.model_dump(),
        "classes": backbone.classes,
        "diffusion": config.diffusion.model_dump(),
        "params": params.model_dump(exclude=ELSEWHERE),
        "code": code_hash(*COMPUTES_STEPS),
    }

    @cache
    def fingerprint(step: int) -> str:
        return digest({"recipe": recipe, "schedule": schedule.prefix(step)})

    batches = Batches(
        resident(train, execution.device),
        schedule,
        config.model.patch,
        params.hflip,
        config.seed,
        phase,
        prepared.train_labels,
        backbone.classes,
        params.label_dropout,
        prepared.window,
    )
    validator = HeldOutValidator(
        heldout,
        config.model.patch,
        config.diffusion,
        execution.device,
        prepared.heldout_labels,
    )
    codec = None
    if config.latents is not None and params.preview_every:
        codec = open_codec(config.latents, execution.device)
    previewer = Previewer(
        config.network_size,
        config.network_channels,
        config.model.patch,
        config.diffusion,
        execution.device,
        backbone.classes,
        codec,
    )
    return Setup(State.start(backbone, params, moments), batches, validator, previewer, fingerprint)
