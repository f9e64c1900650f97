"""The curves of a phase, as two small TSV files, training and validation, and its previews.

Images count this phase only, FLOPs also what the model cost before it, so that both phases share
one axis.
"""

import csv
from collections.abc import Iterable, Mapping, Sequence
from math import isfinite
from pathlib import Path

import numpy as np
from PIL import Image

from maskdm.backbones.denoiser import Denoiser
from maskdm.runtime.files import replacing
from maskdm.training.flops import flops_before
from maskdm.training.history import History
from maskdm.training.schedule import Schedule

TRAINING = ("step", "images", "flops", "loss", "gradient_norm", "lr", "skipped")


class Curves:
    """Writes the curves of a phase.

    Args:
        backbone: the network.
        schedule: the phase's.
        flops: what the model cost before it.
    """

    def __init__(self, backbone: Denoiser, schedule: Schedule, flops: int) -> None:
        self.backbone, self.schedule, self.flops = backbone, schedule, flops

    def write(self, folder: Path, history: History, log_every: int) -> None:
        """Write ``training.tsv`` and ``validation.tsv``, six significant digits a number.

        And ``previews/``, a row of images for each moment, named by its step. Whoever watches while
        it trains finds every file whole.

        Args:
            folder: the destination.
            history: all steps of the phase so far.
            log_every: steps between rows of the training curve.
        """
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder / "training.tsv", TRAINING, self.training(history, log_every))
        validation = self.validation(history)
        _write(folder / "validation.tsv", list(validation[0]), validation)
        _write_previews(folder / "previews", history.drawn)

    def training(self, history: History, log_every: int, after: int = 0) -> list[dict[str, float]]:
        """Return the rows of the training curve that end after a step, values by column."""
        return [
            {
                **self._progress(row.step),
                "loss": row.loss,
                "gradient_norm": row.gradient_norm,
                "lr": self.schedule.learning_rate(row.step - 1),
                "skipped": row.skipped,
            }
            for row in history.rows(log_every, after)
        ]

    def validation(self, history: History, after: int = -1) -> list[dict[str, float]]:
        """Return the rows of the validation curve that come after a step, values by column."""
        errors = history.measured
        return [self._progress(step) | errors[step] for step in sorted(errors) if step > after]

    def _progress(self, step: int) -> dict[str, float]:
        images = self.schedule.images_before(step)
        flops = self.flops + flops_before(self.backbone, self.schedule, step)
        return {"step": step, "images": images, "flops": flops}


def _write(path: Path, header: Sequence[str], rows: Iterable[Mapping[str, float]]) -> None:
    with replacing(path) as begun, begun.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerow(header)
        for row in rows:
            writer.writerow(_number(row[column]) for column in header)


def _write_previews(folder: Path, previews: Mapping[int, np.ndarray]) -> None:
    """Write the previews, and remove those of other runs."""
    folder.mkdir(exist_ok=True)
    wanted = {folder / f"{step}.png": images for step, images in previews.items()}
    for path in set(folder.glob("*.png")) - set(wanted):
        path.unlink(missing_ok=True)
    for path, images in wanted.items():
        with replacing(path) as begun:
            picture(images).save(begun, "png")


def picture(preview: np.ndarray) -> Image.Image:
    """Return a preview, uint8 ``(count, H, W, C)``, as one row of images."""
    return Image.fromarray(np.hstack(list(preview)).squeeze())


def _number(value: float) -> str:
    """Return a number as a curve has it; nothing for what is not finite (skipped steps)."""
    if isinstance(value, int):
        return str(value)
    return f"{value:.6g}" if isfinite(value) else ""
