"""The error again, finer and by image: ``python -m benchmarks.evidence.by_image decision-8``.

While a run trains, each held-out image stands for one noise level, with one noise: intervals over
seeds say how far trainings differ, on those images. Here every held-out image is noised to every
level, several times, for the models that sampled runs have left on this machine; what is kept of
each is the mean over levels and noises of every image, in ``benchmarks/evidence/by_image/``.
"""

import json
from typing import Annotated

import numpy as np
import torch
import typer

import maskdm
from benchmarks.evidence.plan import HERE
from benchmarks.evidence.results import Result, read_results
from benchmarks.evidence.train import SETS, WEIGHTS
from maskdm.backbones.model_folder import WEIGHTS as OF_MODEL
from maskdm.data.prepared import open_prepared
from maskdm.diffusion.paths import PATHS
from maskdm.diffusion.randomness import normal
from maskdm.diffusion.tokens import to_tokens
from maskdm.runtime import command
from maskdm.runtime.errors import UserError
from maskdm.runtime.files import file_hash, write_json
from maskdm.sampling.model import TrainedModel
from maskdm.training.validation import HALF_LOG_SNRS

KEPT = HERE / "by_image"
NOISES = 4  # of an image at a level
BATCH = 36  # images at a time
DIGITS = 6


def main(part: Annotated[str, typer.Argument(help="of the matrix, such as decision-8")]) -> None:
    """Measure the models of a part that are on this machine and were not measured yet.

    Raises:
        UserError: if there are none.
    """
    results = read_results(part)
    there = [one for one in results if (WEIGHTS / one.run.name / "finetune").is_dir()]
    if not there:
        raise UserError(
            f"{WEIGHTS} has no model of {part}: they stay on the machine that trained them "
            f"(python -m benchmarks.evidence.matrix {part})."
        )
    for result in there:
        run = result.run
        folder, target = WEIGHTS / run.name / "finetune", KEPT / f"{run.name}.json"
        weights = file_hash(folder / OF_MODEL)
        if result.about["weights"] not in (None, weights):
            print(f"{run.name}: the model here is of another training", flush=True)
            continue
        if not target.exists() or json.loads(target.read_text())["weights"] != weights:
            images = np.array(open_prepared(SETS / run.dataset / "data/prepared").heldout)
            found = errors(maskdm.load(folder), images)
            by_level = zip(HALF_LOG_SNRS, found.mean(axis=1), strict=True)
            about = {
                "weights": weights,
                "error": result.ends()["error"],
                "levels": {f"{level:g}": round(float(value), DIGITS) for level, value in by_level},
                "images": [round(float(value), DIGITS) for value in found.mean(axis=0)],
            }
            write_json(target, about)
            print(f"{run.name}: {found.mean():.5f}", flush=True)


def by_image(result: Result) -> np.ndarray | None:
    """Return the errors of a run by image, ``(images,)``; None if they were not measured.

    Those of a former training, which ended elsewhere, are not this run's.
    """
    path = KEPT / f"{result.run.name}.json"
    if not path.exists():
        return None
    kept = json.loads(path.read_text())
    return np.array(kept["images"]) if kept["error"] == result.ends()["error"] else None


@torch.inference_mode()
def errors(model: TrainedModel, images: np.ndarray, noises: int = NOISES) -> np.ndarray:
    """Return the mean squared error of the clipped x0 estimate, ``(levels, images)``.

    Args:
        model: without classes.
        images: uint8 ``(images, H, W, C)``.
        noises: draws of noise that are averaged over.
    """
    path, denoise = PATHS[model.config.diffusion.path], model.x0_network
    tokens = to_tokens(torch.from_numpy(images), model.config.model.patch)
    found = np.zeros((len(HALF_LOG_SNRS), len(images)))
    for level, half_log_snr in enumerate(HALF_LOG_SNRS):
        for draw in range(noises):
            for start in range(0, len(images), BATCH):
                x0 = tokens[start : start + BATCH]
                rows = range(start, start + len(x0))
                step = level * noises + draw
                noise = normal(0, "evidence, by image", step, rows, x0.shape[1:])
                time = path.time(torch.full((len(x0),), half_log_snr))
                x_t = path.level(time, like=x0).noisy(x0, noise)
                estimate = denoise(x_t.to(model.device), time.to(model.device), None).cpu()
                error = (estimate.clamp(-1, 1) - x0).square().mean(dim=(1, 2))
                found[level, start : start + BATCH] += error.numpy() / noises
    return found


if __name__ == "__main__":
    command.run(main)
