"""A picture of what masked pretraining sees."""

from pathlib import Path

import numpy as np
import torch

from maskdm.backbones.registry import ModelParams
from maskdm.data.prepared import open_prepared, spread
from maskdm.diffusion.masking import Mask, MaskParams, describe, make_mask
from maskdm.diffusion.randomness import stream
from maskdm.figures import grid, hide, rows, save
from maskdm.runtime.command import run
from maskdm.runtime.params import read_section

PARAMS = Path("params.yaml")
COLUMNS, DRAWS = 14, 3
STRATEGIES, RATES = ("patch", "block", "crop"), (0.5, 0.75, 0.9)


def main() -> None:
    """Draw masks on real images.

    Reads the sections mask and model of params.yaml and the images in data/prepared/. Writes
    reports/masks.png (a row of training images, then the same images as three epochs of
    pretraining might see them, what is hidden in grey) and reports/strategies.png (each strategy
    at three rates, with the number of patches it really shows).
    """
    params = read_section(PARAMS, "mask", MaskParams)
    patch = read_section(PARAMS, "model", ModelParams).patch
    prepared = open_prepared(Path("data/prepared"))
    seen_size = prepared.learned[0].shape[1]
    mask = make_mask(params, seen_size // patch)
    patch *= prepared.size // seen_size  # from here on in pixels, where networks see latents
    print(describe(mask))

    images = np.array(prepared.train[spread(len(prepared.train), COLUMNS)])
    seen = [np.broadcast_to(images, (*images.shape[:3], 3))]
    seen += [draw(images, mask, patch, epoch) for epoch in range(DRAWS)]
    save(grid(np.concatenate(seen), len(images), scale=2), Path("reports/masks.png"))
    save(rows(strategies(images, params, patch), scale=2), Path("reports/strategies.png"))


def draw(images: np.ndarray, mask: Mask, patch: int, epoch: int) -> np.ndarray:
    """Return images as an epoch might show them, what is hidden in grey."""
    scores = stream(0, "masks", epoch).random((len(images), mask.units), dtype=np.float32)
    return hide(images, mask.draw(torch.from_numpy(scores)).numpy(), patch)


def strategies(images: np.ndarray, params: MaskParams, patch: int) -> list[tuple[str, np.ndarray]]:
    """Return a row of masked images for each strategy and rate, and what it is called."""
    side = images.shape[1] // patch
    drawn = []
    for strategy in STRATEGIES:
        for rate in RATES:
            changed = params.model_copy(update={"strategy": strategy, "rate": rate})
            if strategy == "block" and side % params.block_size:
                changed = changed.model_copy(update={"block_size": 1})
            mask = make_mask(changed, side)
            name = f"{strategy} {rate:g}: {mask.visible} of {side**2}"
            drawn.append((name, draw(images, mask, patch, 0)))
    return drawn


if __name__ == "__main__":
    run(main)
