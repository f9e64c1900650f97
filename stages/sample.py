"""Sampling: images from the finetuned model."""

import time
from pathlib import Path

import numpy as np
from tqdm import tqdm

from maskdm.diffusion.paths import PATHS
from maskdm.figures import grid, save
from maskdm.runtime.command import run
from maskdm.runtime.distributed import join
from maskdm.runtime.files import write_array, write_json
from maskdm.runtime.launch import on_all_processes
from maskdm.runtime.params import read_section
from maskdm.sampling.model import load_guided, sample_batches
from maskdm.sampling.sampler import SampleParams, check_sampling, network_passes

PARAMS = Path("params.yaml")
MODEL = Path("models/finetune")
SAMPLES = Path("data/samples")
SHOWN = 80


def main() -> None:
    """Sample from the finetuned model.

    Reads the section sample of params.yaml, models/finetune/ and sample.guide. Writes data/samples/
    (the images as one uint8 array, their labels if the model has classes, and a JSON that says how
    they were made), reports/samples.png (the first of them) and reports/timing/sample.json.
    """
    params = read_section(PARAMS, "sample", SampleParams)
    model = load_guided(MODEL, params)
    processes = join(model.device)
    check_sampling(params, conditional=bool(model.classes))
    size, channels = model.config.size, model.config.channels
    images = np.empty((params.count, size, size, channels), np.uint8)
    started = time.perf_counter()

    def draw(indices: range) -> np.ndarray:
        return model.draw(params, indices, model.labels(None, params.seed, indices))

    with tqdm(
        total=params.count, desc="sample", unit="image", mininterval=1.0, disable=processes.rank > 0
    ) as bar:
        for indices, drawn in processes.map(list(sample_batches(params.count)), draw):
            images[indices] = drawn
            bar.update(len(indices))
    if not processes.is_main:
        return
    seconds = time.perf_counter() - started

    write_array(SAMPLES / "samples.npy", images)
    labels = model.labels(None, params.seed, range(params.count))
    if labels is not None:
        write_array(SAMPLES / "labels.npy", labels.numpy())
    path = PATHS[model.config.diffusion.path]
    about = params.model_dump(mode="json") | {
        "network_passes": network_passes(params, path, conditional=bool(model.classes)),
        "training": model.config.cost,
    }
    write_json(SAMPLES / "samples.json", about)
    save(grid(images[:SHOWN], columns=16, scale=2), Path("reports/samples.png"))
    timing = {"seconds": round(seconds, 1), "images_per_second": round(params.count / seconds, 1)}
    write_json(Path("reports/timing/sample.json"), timing)


if __name__ == "__main__":
    run(on_all_processes(main))
