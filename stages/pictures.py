"""Pictures of how the finetuned model draws: from noise, between noises, by class."""

from pathlib import Path

import numpy as np

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
    strip = list(model.estimates(params, indices, model.labels(None, params.seed, indices)))
    moments = np.linspace(0, len(strip) - 1, COLUMNS).round().astype(int)
    return np.stack([strip[moment] for moment in moments], axis=1).reshape(-1, *strip[0].shape[1:])


def interpolation(model: TrainedModel, params: SampleParams) -> np.ndarray:
    """Return images from noise between the noises of pairs of samples, a pair a row.

    Both ends have the first one's label; no noise is added on the way (η = 0), or the images
    between would not be between.
    """
    smooth = params.model_copy(update={"solver": "dpmpp-2m", "eta": 0.0})
    noise = starting_noise(params.seed, model.shape, range(2 * ROWS))
    images = []
    for first in range(0, 2 * ROWS, 2):
        one, other = noise[first : first + 2]
        label = model.labels(None, params.seed, range(first, first + 1))
        images.append(model.draw_between(one, other, COLUMNS, smooth, label))
    return np.concatenate(images)


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
