"""Sampling: images from the finetuned model, and pictures of them."""

import json
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from tqdm import tqdm

from maskdm.devices import choose_device, whole_number
from maskdm.figures import grid, save
from maskdm.model_folder import load_model
from maskdm.params import read_section
from maskdm.sampling import SampleParams, estimates
from maskdm.tokens import to_images
from stages.command import run

PARAMS = Path("params.yaml")
MODEL = Path("models/finetune")
SAMPLES = Path("data/samples")
GRID_IMAGES, STRIP_ROWS, STRIP_COLUMNS = 80, 6, 10


def main() -> None:
    """Sample from the finetuned model.

    Reads the section sample of params.yaml and models/finetune/. Writes data/samples/ (the images
    as one uint8 array, and a JSON that says how they were made), reports/samples.png (the first
    of them), reports/denoising.png (the estimate of the image at ten moments, from noise to
    sample) and reports/timing/sample.json.
    """
    params = read_section(PARAMS, "sample", SampleParams)
    device = choose_device()
    backbone, config = load_model(MODEL, params.weights)
    backbone.to(device)
    patch, channels = config.model.patch, config.channels
    shape = ((config.size // patch) ** 2, patch**2 * channels)

    images = np.empty((params.count, config.size, config.size, channels), np.uint8)
    batch = whole_number("MASKDM_SAMPLE_BATCH", 64)
    strip: list[np.ndarray] = []
    started = time.perf_counter()
    with tqdm(total=params.count, desc="sample", unit="image", mininterval=1.0) as bar:
        for first in range(0, params.count, batch):
            places = range(first, min(first + batch, params.count))
            for estimate in estimates(backbone, config.diffusion, params, shape, places, device):
                images[places] = to_images(estimate, patch, channels).cpu().numpy()
                if first == 0:
                    strip.append(images[: min(STRIP_ROWS, len(places))].copy())
            bar.update(len(places))
    seconds = time.perf_counter() - started

    SAMPLES.mkdir(parents=True, exist_ok=True)
    np.save(SAMPLES / "samples.npy", images)
    _write_json(SAMPLES / "samples.json", params.model_dump() | {"training": config.cost})
    save(grid(images[:GRID_IMAGES], columns=16, scale=2), Path("reports/samples.png"))
    moments = np.linspace(0, len(strip) - 1, min(STRIP_COLUMNS, len(strip))).round().astype(int)
    rows = np.stack([strip[moment] for moment in moments], axis=1)
    flat = rows.reshape(-1, *images.shape[1:])
    save(grid(flat, columns=len(moments), scale=2), Path("reports/denoising.png"))
    timing = {"seconds": round(seconds, 1), "images_per_second": round(params.count / seconds, 1)}
    _write_json(Path("reports/timing/sample.json"), timing)


def _write_json(path: Path, content: Mapping[str, object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run(main)
