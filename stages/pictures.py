"""Pictures of how the finetuned model draws: from noise, between noises, by class."""

from pathlib import Path

import numpy as np
import torch

from maskdm.figures import grid, rows, save
from maskdm.runtime.command import run
from maskdm.runtime.params import read_section
from maskdm.sampling.model import TrainedModel, load_guided
from maskdm.sampling.sampler import SampleParams, starting_noise

PARAMS = Path("params.yaml")
MODEL = Path("models/finetune")
ROWS, COLUMNS, MOST_CLASSES = 6, 10, 20


def main() -> None:
    """Draw three pictures with the finetuned model.

    Reads the section sample of params.yaml, models/finetune/ and sample.guide. Writes
    reports/denoising.png (the estimate of the image at ten moments from noise to sample),
    reports/interpolation.png (images from noise between the noises of two samples) and
    reports/classes.png (a row a class, each column from one noise; a model without classes has one
    row).
    """
    params = read_section(PARAMS, "sample", SampleParams)
    model = load_guided(MODEL, params)
    save(grid(denoising(model, params), COLUMNS, scale=2), Path("reports/denoising.png"))
    save(grid(interpolation(model, params), COLUMNS, scale=2), Path("reports/interpolation.png"))
    save(rows(by_class(model, params), scale=2), Path("reports/classes.png"))


def denoising(model: TrainedModel, params: SampleParams) -> np.ndarray:
    """Return the first samples' estimates at ``COLUMNS`` moments, a sample a row."""
    indices = range(ROWS)
    strip = list(model.path(params, indices, model.labels(None, params.seed, indices)))
    moments = np.linspace(0, len(strip) - 1, COLUMNS).round().astype(int)
    return np.stack([strip[moment] for moment in moments], axis=1).reshape(-1, *strip[0].shape[1:])


def interpolation(model: TrainedModel, params: SampleParams) -> np.ndarray:
    """Return images from noise between the noises of pairs of samples, a pair a row.

    The noise is interpolated on the sphere, which keeps its norm. Both ends have the first one's
    label; no noise is added on the way (η = 0), or the images between would not be between.
    """
    smooth = params.model_copy(update={"solver": "dpmpp-2m", "eta": 0.0})
    noise = starting_noise(params.seed, model.shape, range(2 * ROWS))
    images = []
    for row in range(ROWS):
        one, other = noise[2 * row], noise[2 * row + 1]
        between = torch.stack([slerp(one, other, s) for s in np.linspace(0, 1, COLUMNS)])
        labels = model.labels(None, params.seed, range(2 * row, 2 * row + 1))
        same = None if labels is None else labels.expand(COLUMNS)
        images.append(model.draw(smooth, range(COLUMNS), same, between))
    return np.concatenate(images)


def slerp(one: torch.Tensor, other: torch.Tensor, share: float) -> torch.Tensor:
    """Return the point at ``share`` of the great circle from one noise to another."""
    cosine = torch.nn.functional.cosine_similarity(one.flatten(), other.flatten(), dim=0)
    angle = torch.acos(cosine.clamp(-1, 1))
    return (torch.sin((1 - share) * angle) * one + torch.sin(share * angle) * other) / angle.sin()


def by_class(model: TrainedModel, params: SampleParams) -> list[tuple[str, np.ndarray]]:
    """Return rows of images by class, each column from the same noise; or one nameless row."""
    names = model.classes
    shown = np.unique(np.linspace(0, len(names) - 1, min(MOST_CLASSES, len(names))).astype(int))
    picked: list[int | None] = [int(label) for label in shown] if names else [None]
    drawn = []
    for label in picked:
        labels = model.labels(label, params.seed, range(COLUMNS))
        images = model.draw(params, range(COLUMNS), labels)
        drawn.append(("" if label is None else names[label], images))
    return drawn


if __name__ == "__main__":
    run(main)
