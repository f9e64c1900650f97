"""What the stages pretrain and finetune share: one phase of training, from files to files."""

import csv
import os
from collections.abc import Iterable
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from maskdm.arithmetic import arithmetic
from maskdm.backbones.denoiser import Denoiser
from maskdm.compute import flops_before, stretch_flops
from maskdm.data.store import PreparedSet
from maskdm.devices import choose_device, switched_on, whole_number
from maskdm.errors import UserError
from maskdm.history import History
from maskdm.model_folder import ModelConfig, Trained, save_model
from maskdm.phases import PhaseParams
from maskdm.processes import join
from maskdm.saving import Saver
from maskdm.schedule import Schedule
from maskdm.states import States
from maskdm.training import Report, train
from maskdm.trajectory import begin
from stages.command import write_json
from stages.places import states_root


def class_counts(prepared: PreparedSet) -> dict[str, int] | None:
    """Return how many training images each class has, in the order of the labels."""
    if prepared.classes is None or prepared.train_labels is None:
        return None
    counts = np.bincount(prepared.train_labels, minlength=len(prepared.classes)).tolist()
    return dict(zip(prepared.classes, counts, strict=True))


def train_phase(
    phase: str,
    backbone: Denoiser,
    config: ModelConfig,
    prepared: PreparedSet,
    schedule: Schedule,
    params: PhaseParams,
    start: str = "",
) -> None:
    """Train one phase and write ``models/PHASE``, ``reports/PHASE`` and ``reports/timing``.

    It goes on from the newest training state that this very run would have passed.

    Args:
        phase: ``"pretrain"`` or ``"finetune"``.
        backbone: the network to start from.
        config: what is known of it; this phase's cost is added.
        prepared: the images.
        schedule: what stays visible at which step, batch sizes and learning rates.
        params: the phase's parameters.
        start: what its weights depend on besides the section model and the seed.
    """
    device = choose_device()
    processes = join(device, sharded=switched_on("MASKDM_SHARD"))
    smallest = min(leg.batch_size for leg in schedule.legs)
    if smallest < processes.count:
        raise UserError(
            f"{phase}.batch_size is {smallest}, fewer images than the {processes.count} processes "
            "that are to share them: set MASKDM_PROCESSES to fewer, or take larger batches."
        )
    if processes.sharded and params.precision == "fp16":
        raise UserError(
            f"{phase}.precision is fp16, whose scaling of the loss does not work on sharded "
            "weights: take bf16, or unset MASKDM_SHARD."
        )
    trajectory = begin(
        phase, backbone, config, prepared, schedule, params, start, device, processes
    )
    state = trajectory.state
    micro_batch = whole_number("MASKDM_MICRO_BATCH", None)
    states = States(
        states_root(), phase, trajectory.fingerprint, os.environ.get("MASKDM_STATES_MIRROR")
    )
    saver = Saver(states, state, schedule, arithmetic(device, processes, micro_batch), processes)
    reports = train(
        state,
        trajectory.batches,
        trajectory.validation,
        config.diffusion,
        params,
        device,
        micro_batch,
        processes,
    )
    with saver.watching():
        for report in progress(phase, reports, schedule, silent=not processes.first):
            saver.after_step()
            last = report
    raw = processes.gathered(dict(backbone.named_parameters()), copied=False)
    averaged = processes.gathered(state.averaged, copied=False)
    if processes.first:
        curves = Curves(backbone, schedule, config.flops)
        curves.write(Path("reports") / phase, state.history, last, params.log_every)
        legs = legs_made(phase, backbone, prepared, schedule)
        config = config.model_copy(update={"training": [*config.training, *legs]})
        save_model(Path("models") / phase, config, raw, averaged)
        timing = {
            "seconds": round(saver.seconds, 1),
            "images_per_second": round(schedule.images_before(state.step) / saver.seconds, 1),
            "steps_computed": state.step - saver.begun,
            "arithmetic": saver.arithmetic,
        }
        write_json(Path("reports/timing") / f"{phase}.json", timing)


def progress(
    phase: str, reports: Iterable[Report], schedule: Schedule, silent: bool
) -> Iterable[Report]:
    """Yield reports with a progress bar over them, which begins where the run goes on."""
    with tqdm(
        total=schedule.steps, desc=phase, unit="step", mininterval=1.0, disable=silent
    ) as bar:
        for report in reports:
            if report.loss is None and report.lr is None:
                bar.initial = bar.n = report.step  # where the run begins
            yield report
            if report.loss is not None:
                bar.set_postfix({"loss": f"{report.loss:.4f}"}, refresh=False)
            bar.update(report.step - bar.n)


def legs_made(
    phase: str, backbone: Denoiser, prepared: PreparedSet, schedule: Schedule
) -> list[Trained]:
    """Return what a whole phase did, leg by leg, for the model's config."""
    return [
        Trained(
            phase=phase,
            data=prepared.hash,
            mask=stretch.leg.mask.strategy,
            mask_rate=stretch.leg.mask.rate,
            visible=stretch.leg.mask.visible,
            batch_size=stretch.leg.batch_size,
            steps=stretch.steps,
            images=stretch.images,
            full_images=stretch.full_images,
            flops=stretch_flops(backbone, stretch),
        )
        for stretch in schedule.stretches(schedule.steps)
    ]


class Curves:
    """The curves of a phase, as two small TSV files.

    Images count this phase only, FLOPs also what the model cost before it, so that both phases
    share one axis.

    Args:
        backbone: the network.
        schedule: the phase's.
        flops: what the model cost before it.
    """

    def __init__(self, backbone: Denoiser, schedule: Schedule, flops: int) -> None:
        self.backbone, self.schedule, self.flops = backbone, schedule, flops

    def write(self, folder: Path, history: History, last: Report, log_every: int) -> None:
        """Write ``training.tsv`` and ``validation.tsv``, six significant digits a number.

        Args:
            folder: where to.
            history: all steps of the phase.
            last: the report of the last step, whose validation may be in no longer run.
            log_every: steps between rows of the training curve.
        """
        folder.mkdir(parents=True, exist_ok=True)
        training = [
            {
                **self._place(row.step),
                "loss": row.loss,
                "gradient_norm": row.gradient_norm,
                "lr": self.schedule.learning_rate(row.step - 1),
                "skipped": row.skipped,
            }
            for row in history.rows(log_every)
        ]
        header = ["step", "images", "flops", "loss", "gradient_norm", "lr", "skipped"]
        _write(folder / "training.tsv", header, training)
        errors = history.validations | {last.step: last.validation or {}}
        validation = [self._place(step) | errors[step] for step in sorted(errors)]
        _write(folder / "validation.tsv", list(validation[0]), validation)

    def _place(self, step: int) -> dict[str, float]:
        images = self.schedule.images_before(step)
        flops = self.flops + flops_before(self.backbone, self.schedule, step)
        return {"step": step, "images": images, "flops": flops}


def _write(path: Path, header: list[str], rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerow(header)
        for row in rows:
            writer.writerow(_cell(row[column]) for column in header)


def _cell(value: float) -> str:
    """Return a number as it stands in a curve; nothing for what is not finite (skipped steps)."""
    if isinstance(value, int):
        return str(value)
    return f"{value:.6g}" if isfinite(value) else ""
