"""What the stages pretrain and finetune share: one phase of training, from files to files."""

import csv
import platform
import time
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from maskdm.backbones.denoiser import Denoiser
from maskdm.batches import Batches
from maskdm.compute import flops_before, stretch_flops
from maskdm.data.store import PreparedSet
from maskdm.devices import choose_device, whole_number
from maskdm.model_folder import ModelConfig, Trained, save_model
from maskdm.phases import PhaseParams
from maskdm.schedule import Schedule
from maskdm.training import Report, State, train
from maskdm.validation import Validation
from stages.command import write_json


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
) -> None:
    """Train one phase and write ``models/PHASE``, ``reports/PHASE`` and ``reports/timing``.

    Args:
        phase: ``"pretrain"`` or ``"finetune"``.
        backbone: the network to start from.
        config: what is known of it; this phase's cost is added.
        prepared: the images.
        schedule: what stays visible at which step, batch sizes and learning rates.
        params: the phase's parameters.
    """
    device = choose_device()
    state = State.start(backbone.to(device))
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
    micro_batch = whole_number("MASKDM_MICRO_BATCH", None)
    reports = train(state, batches, validation, config.diffusion, params, device, micro_batch)
    curves = Curves(Path("reports") / phase, backbone, schedule, config.flops)
    started = time.perf_counter()
    with tqdm(total=schedule.steps, desc=phase, unit="step", mininterval=1.0) as bar:
        shown: dict[str, str] = {}
        for report in reports:
            curves.add(report)
            speed = schedule.images_before(report.step) / (time.perf_counter() - started)
            shown["images/s"] = f"{speed:.0f}"
            if report.loss is not None:
                shown["loss"] = f"{report.loss:.4f}"
            bar.set_postfix(shown, refresh=False)
            bar.update(report.step - bar.n)
    seconds = time.perf_counter() - started
    curves.write()
    legs = [
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
        for stretch in schedule.stretches(state.step)
    ]
    config = config.model_copy(update={"training": [*config.training, *legs]})
    raw = dict(backbone.named_parameters())
    save_model(Path("models") / phase, config, raw, state.averaged)
    _write_timing(phase, seconds, schedule.images_before(state.step), device)


class Curves:
    """The curves of a phase, kept as rows and written as two small TSV files.

    Images count this phase only, FLOPs also what the model cost before it, so that both phases
    share one axis.
    """

    def __init__(self, folder: Path, backbone: Denoiser, schedule: Schedule, flops: int) -> None:
        self.folder, self.backbone, self.schedule, self.flops = folder, backbone, schedule, flops
        self.training: list[dict[str, Any]] = []
        self.validation: list[dict[str, Any]] = []

    def add(self, report: Report) -> None:
        """Keep what a step reports, if it reports anything."""
        images = self.schedule.images_before(report.step)
        flops = self.flops + flops_before(self.backbone, self.schedule, report.step)
        place = {"step": report.step, "images": images, "flops": flops}
        if report.loss is not None:
            row = {"loss": report.loss, "gradient_norm": report.gradient_norm, "lr": report.lr}
            self.training.append(place | row)
        if report.validation is not None:
            self.validation.append(place | report.validation)

    def write(self) -> None:
        """Write ``training.tsv`` and ``validation.tsv``, six significant digits a number."""
        self.folder.mkdir(parents=True, exist_ok=True)
        header = ["step", "images", "flops", "loss", "gradient_norm", "lr"]
        self._write("training.tsv", header, self.training)
        self._write("validation.tsv", list(self.validation[0]), self.validation)

    def _write(self, name: str, header: list[str], rows: list[dict[str, Any]]) -> None:
        with (self.folder / name).open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, delimiter="\t", lineterminator="\n")
            writer.writerow(header)
            for row in rows:
                writer.writerow(_cell(row[column]) for column in header)


def _cell(value: float) -> str:
    """Return a number as it stands in a curve; nothing for the gradient norm of a skipped step."""
    if isinstance(value, int):
        return str(value)
    return f"{value:.6g}" if isfinite(value) else ""  # fp16 skips steps that overflow


def _write_timing(phase: str, seconds: float, images: int, device: torch.device) -> None:
    """Write what the clock said; nothing depends on it."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    timing = {
        "seconds": round(seconds, 1),
        "images_per_second": round(images / seconds, 1),
        "device": f"{device.type} ({name})",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    write_json(Path("reports/timing") / f"{phase}.json", timing)
