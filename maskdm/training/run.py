"""A phase of training from its start to its files: what the stages pretrain and finetune share."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor
from tqdm import tqdm

from maskdm.backbones.denoiser import Denoiser
from maskdm.backbones.model_folder import ModelConfig, TrainedLeg, save_model, save_moments
from maskdm.data.prepared import PreparedSet
from maskdm.runtime.environment import CHECKPOINTS_REMOTE, checkpoints_folder
from maskdm.runtime.errors import UserError
from maskdm.runtime.execution import Execution
from maskdm.runtime.files import write_json
from maskdm.runtime.numerics import numerics
from maskdm.training.checkpoints.checkpointer import Checkpointer
from maskdm.training.checkpoints.fingerprint import code_hash
from maskdm.training.checkpoints.store import CheckpointStore
from maskdm.training.curves import Curves
from maskdm.training.flops import stretch_flops
from maskdm.training.live import Live
from maskdm.training.loop import train
from maskdm.training.phases import PhaseParams, check_share
from maskdm.training.schedule import Schedule
from maskdm.training.setup import COMPUTES_STEPS, set_up
from maskdm.training.state import State


@dataclass(frozen=True)
class Outputs:
    """What a phase writes.

    Attributes:
        model: the model folder.
        curves: the folder of the curves and previews, which are there while it trains, too.
        timing: the JSON file of seconds, on which nothing depends.
        keeps_optimiser: whether the optimiser's moments are left in the model folder, too.
    """

    model: Path
    curves: Path
    timing: Path
    keeps_optimiser: bool = False


def train_phase(
    phase: str,
    backbone: Denoiser,
    config: ModelConfig,
    prepared: PreparedSet,
    schedule: Schedule,
    params: PhaseParams,
    outputs: Outputs,
    start: str = "",
    moments: Mapping[str, Tensor] | None = None,
) -> None:
    """Train one phase and write its outputs.

    It goes on from the newest checkpoint that this very run would have passed.

    Args:
        phase: ``"pretrain"`` or ``"finetune"``.
        backbone: the network to start from.
        config: of the model so far; the cost of this phase is added.
        prepared: the images.
        schedule: what stays visible at which step, batch sizes and learning rates.
        params: the phase's parameters.
        outputs: the files to write.
        start: what its weights depend on besides the section model and the seed.
        moments: what the optimiser starts with; None for zeros.

    Raises:
        UserError: if the processes do not fit the phase, or checkpoints cannot be used.
        StoppedError: if a signal asked to stop, after saving.
    """
    code_hash(*COMPUTES_STEPS)  # kept: until all have joined, the files may be edited
    execution = Execution.from_environment(params.precision)
    _check_processes(phase, schedule, execution, moments)
    setup = set_up(phase, backbone, config, prepared, schedule, params, start, execution, moments)
    state, processes = setup.state, execution.processes
    _check_agreement(phase, setup.fingerprint, schedule, execution)
    store = CheckpointStore(
        checkpoints_folder(), phase, setup.fingerprint, CHECKPOINTS_REMOTE.get()
    )
    checkpointer = Checkpointer(
        store, state, schedule.steps, schedule.branches(), numerics(execution), processes
    )
    steps = train(
        state, setup.batches, setup.validator, config.diffusion, params, execution, setup.previewer
    )
    curves = Curves(backbone, schedule, config.flops)
    live = Live(phase, curves, config, params, processes.is_main)
    with checkpointer.watching(), closing(live):
        for _ in progress(phase, steps, state, schedule, params.log_every, not processes.is_main):
            checkpointer.after_step()
            if processes.is_main and shows_something(state, params):
                curves.write(outputs.curves, state.history, params.log_every)
            live.show(state)
    raw = processes.gather(dict(backbone.named_parameters()), copied=False)
    averaged = processes.gather(state.averaged, copied=False)
    kept = processes.gather(state.optimiser.tensors() if outputs.keeps_optimiser else {}, False)
    if not processes.is_main:
        return
    curves.write(outputs.curves, state.history, params.log_every)
    legs = trained_legs(phase, backbone, prepared, schedule)
    config = config.model_copy(update={"training": [*config.training, *legs]})
    save_model(outputs.model, config, raw, averaged)
    if kept:
        save_moments(outputs.model, kept)
    seconds, images = checkpointer.seconds, schedule.images_before(state.step)
    timing = {
        "seconds": round(seconds, 1),
        "images_per_second": round(images / seconds, 1),
        "steps_computed": state.step - checkpointer.begun,
        "numerics": checkpointer.numerics,
    }
    write_json(outputs.timing, timing)


def shows_something(state: State, params: PhaseParams) -> bool:
    """Return whether the last step brought a validation or a preview to look at."""
    history = state.history
    return state.step % params.validate_every == 0 or state.step in history.drawn


def _check_processes(
    phase: str,
    schedule: Schedule,
    execution: Execution,
    moments: Mapping[str, Tensor] | None,
) -> None:
    """Check that every process gets a part of every batch, and that sharding can be done.

    Raises:
        UserError: saying what to change.
    """
    check_share(phase, min(leg.batch_size for leg in schedule.legs), execution.processes.count)
    if execution.processes.sharded and moments is not None:
        raise UserError(
            f"{phase}.optimiser is kept, which does not work on sharded weights: set it to fresh, "
            "or unset MASKDM_SHARD."
        )
    if execution.processes.sharded and execution.precision == "fp16":
        raise UserError(
            f"{phase}.precision is fp16, whose scaling of the loss does not work on sharded "
            "weights: take bf16, or unset MASKDM_SHARD."
        )


def _check_agreement(
    phase: str, fingerprint: Callable[[int], str], schedule: Schedule, execution: Execution
) -> None:
    """Check that all processes are about to train the same.

    They share gradients, and each has parameters, images, code and weights of its own host.

    Raises:
        UserError: in every process, if one differs from the first.
    """
    ends = [fingerprint(1), fingerprint(schedule.steps)]
    own = [schedule.steps, *ends, execution.micro_batch, execution.device.type]
    processes = execution.processes
    if processes.any(processes.broadcast_object(own) != own)[0]:
        raise UserError(
            f"Not all processes of {phase} have the same parameters, images, start, code and "
            "environment: give every host the same working copy, data/ and models/ included."
        )


def progress(
    phase: str, steps: Iterable[int], state: State, schedule: Schedule, every: int, silent: bool
) -> Iterator[int]:
    """Yield steps with a progress bar over them, which begins where the run goes on.

    Args:
        phase: the bar's title.
        steps: the steps made so far, as ``train`` yields them.
        state: what is trained.
        schedule: the phase's.
        every: steps between two losses on the bar.
        silent: whether to draw no bar.
    """
    with tqdm(
        total=schedule.steps, initial=state.step, desc=phase, unit="step", mininterval=1.0,
        disable=silent,
    ) as bar:  # fmt: skip
        for step in steps:
            yield step
            if step and step % every == 0:
                loss = state.history.row(step, every).loss
                bar.set_postfix({"loss": f"{loss:.4f}"}, refresh=False)
            bar.update(step - bar.n)


def trained_legs(
    phase: str, backbone: Denoiser, prepared: PreparedSet, schedule: Schedule
) -> list[TrainedLeg]:
    """Return what a whole phase did, leg by leg, for the model's config."""
    return [
        TrainedLeg(
            phase=phase,
            data=prepared.hash,
            mask=stretch.leg.mask.strategy,
            mask_rate=stretch.leg.mask.rate,
            visible=stretch.leg.mask.visible,
            scope=stretch.leg.mask.scope,
            batch_size=stretch.leg.batch_size,
            steps=stretch.steps,
            images=stretch.images,
            full_images=stretch.full_images,
            flops=stretch_flops(backbone, stretch),
        )
        for stretch in schedule.stretches(schedule.steps)
    ]
