"""A picture of what masked pretraining sees."""

from pathlib import Path

import numpy as np
import torch

from maskdm.backbones.registry import ModelParams
from maskdm.data.store import open_prepared
from maskdm.figures import grid, hide, save
from maskdm.masking import MaskParams, describe, make_mask
from maskdm.params import read_section
from maskdm.randomness import stream
from stages.command import run

PARAMS = Path("params.yaml")
COLUMNS, DRAWS = 14, 3


def main() -> None:
    """Draw masks on real images.

    Reads the sections mask and model of params.yaml and the images in data/prepared/. Writes
    reports/masks.png: a row of training images, then the same images as three epochs of
    pretraining might see them, what is hidden in grey.
    """
    params = read_section(PARAMS, "mask", MaskParams)
    patch = read_section(PARAMS, "model", ModelParams).patch
    prepared = open_prepared(Path("data/prepared"))
    mask = make_mask(params, prepared.size // patch)
    print(describe(mask))

    spread = np.linspace(0, len(prepared.train) - 1, COLUMNS).astype(int)
    images = np.array(prepared.train[spread])
    rows = [np.broadcast_to(images, (*images.shape[:3], 3))]
    for draw in range(DRAWS):
        scores = stream(0, "masks", draw).random((COLUMNS, mask.units), dtype=np.float32)
        visible = mask.draw(torch.from_numpy(scores)).numpy()
        rows.append(hide(images, visible, patch))
    save(grid(np.concatenate(rows), COLUMNS, scale=2), Path("reports/masks.png"))


if __name__ == "__main__":
    run(main)
