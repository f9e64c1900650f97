"""What the stages pretrain and finetune share: one phase of training, from files to files."""

import csv
import json
import platform
import time
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from maskdm.backbones.denoiser import Denoiser
from maskdm.batches import Batches
from maskdm.compute import training_flops
from maskdm.data.store import PreparedSet
from maskdm.devices import choose_device, whole_number
from maskdm.masking import Mask
from maskdm.model_folder import ModelConfig, Trained, save_model
from maskdm.training import PhaseParams, Report, State, train


def train_phase(
    phase: str,
    backbone: Denoiser,
    config: ModelConfig,
    prepared: PreparedSet,
    mask: Mask,
    strategy: str,
    params: PhaseParams,
) -> None:
    """Train one phase and write ``models/PHASE``, ``reports/PHASE`` and ``reports/timing``.

    Args:
        phase: ``"pretrain"`` or ``"finetune"``.
        backbone: the network to start from.
        config: what is known of it; this phase's cost is added.
        prepared: the images.
        mask: what stays visible.
        strategy: its name, for the record.
        params: the phase's parameters.
    """
    device = choose_device()
    state = State.start(backbone.to(device))
    batches = Batches(
        prepared.train,
        mask,
        config.model.patch,
        params.batch_size,
        params.hflip,
        config.seed,
        phase,
    )
    micro_batch = whole_number("MASKDM_MICRO_BATCH", params.batch_size)
    reports = train(state, batches, prepared.heldout, config.diffusion, params, device, micro_batch)
    curves = Curves(Path("reports") / phase, backbone, mask.visible, config.flops, params)
    started = time.perf_counter()
    with tqdm(total=params.steps, desc=phase, unit="step", mininterval=1.0) as bar:
        shown: dict[str, str] = {}
        for report in reports:
            curves.add(report)
            speed = report.step * params.batch_size / (time.perf_counter() - started)
            shown["images/s"] = f"{speed:.0f}"
            if report.loss is not None:
                shown["loss"] = f"{report.loss:.4f}"
            bar.set_postfix(shown, refresh=False)
            bar.update(report.step - bar.n)
    seconds = time.perf_counter() - started
    curves.write()
    images = state.step * params.batch_size
    trained = Trained(
        phase=phase,
        data=prepared.hash,
        mask=strategy,
        mask_rate=mask.rate,
        visible=mask.visible,
        steps=state.step,
        images=images,
        flops=training_flops(backbone, mask.visible, images),
    )
    config = config.model_copy(update={"training": [*config.training, trained]})
    raw = dict(backbone.named_parameters())
    save_model(Path("models") / phase, config, raw, state.averaged)
    _write_timing(phase, seconds, images, device)


class Curves:
    """The curves of a phase, kept as rows and written as two small TSV files.

    Images count this phase only, FLOPs also what the model cost before it, so that both phases
    share one axis.
    """

    def __init__(
        self, folder: Path, backbone: Denoiser, visible: int, flops: int, params: PhaseParams
    ) -> None:
        self.folder, self.params, self.flops_before = folder, params, flops
        self.flops_per_image = training_flops(backbone, visible, 1)
        self.training: list[dict[str, Any]] = []
        self.validation: list[dict[str, Any]] = []

    def add(self, report: Report) -> None:
        """Keep what a step reports, if it reports anything."""
        images = report.step * self.params.batch_size
        flops = self.flops_before + self.flops_per_image * images
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
                values = (row[column] for column in header)
                writer.writerow(f"{v:.6g}" if isinstance(v, float) else v for v in values)


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
    path = Path("reports/timing") / f"{phase}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(timing, indent=2) + "\n", encoding="utf-8")
