"""Sampling: images from the finetuned model."""

import time
from pathlib import Path

import numpy as np
from tqdm import tqdm

from maskdm.figures import grid, save
from maskdm.params import read_section
from maskdm.processes import join
from maskdm.sampling import SampleParams, check_sampling
from maskdm.trained import batches, load
from stages.command import run, write_json
from stages.launch import on_all_processes

PARAMS = Path("params.yaml")
MODEL = Path("models/finetune")
SAMPLES = Path("data/samples")
SHOWN = 80


def main() -> None:
    """Sample from the finetuned model.

    Reads the section sample of params.yaml and models/finetune/. Writes data/samples/ (the images
    as one uint8 array, their labels if the model has classes, and a JSON that says how they were
    made), reports/samples.png (the first of them) and reports/timing/sample.json.
    """
    params = read_section(PARAMS, "sample", SampleParams)
    model = load(MODEL, params.weights)
    processes = join(model.device)
    check_sampling(params, conditional=bool(model.classes))
    size, channels = model.config.size, model.config.channels
    images = np.empty((params.count, size, size, channels), np.uint8)
    started = time.perf_counter()

    def draw(places: range) -> np.ndarray:
        *_, last = model.draw(params, places, model.labels(None, params.seed, places))
        return last

    with tqdm(
        total=params.count, desc="sample", unit="image", mininterval=1.0, disable=processes.rank > 0
    ) as bar:
        for places, drawn in processes.spread(list(batches(params.count)), draw):
            images[places] = drawn
            bar.update(len(places))
    if not processes.first:
        return
    seconds = time.perf_counter() - started

    SAMPLES.mkdir(parents=True, exist_ok=True)
    np.save(SAMPLES / "samples.npy", images)
    labels = model.labels(None, params.seed, range(params.count))
    if labels is not None:
        np.save(SAMPLES / "labels.npy", labels.numpy())
    about = params.model_dump(mode="json") | {"training": model.config.cost}
    write_json(SAMPLES / "samples.json", about)
    save(grid(images[:SHOWN], columns=16, scale=2), Path("reports/samples.png"))
    timing = {"seconds": round(seconds, 1), "images_per_second": round(params.count / seconds, 1)}
    write_json(Path("reports/timing/sample.json"), timing)


if __name__ == "__main__":
    run(on_all_processes(main))
