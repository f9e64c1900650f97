"""The paper's picture of its idea: a Swiss roll from its marginals, finetuned, and from scratch."""

from pathlib import Path

import numpy as np

from maskdm.diffusion.randomness import stream
from maskdm.examples.heat_maps import heat_maps
from maskdm.examples.swiss_roll import fresh, roll, sample, sliced_wasserstein, train
from maskdm.runtime.command import run
from maskdm.runtime.files import replacing, write_json

PICTURE = Path("reports/swissroll.png")
SEED, SAMPLES = 0, 50_000
MASKED, FULL = 500, 700  # optimiser steps of masked pretraining and of finetuning


def main() -> None:
    """Learn a Swiss roll by masked pretraining and finetuning, and from scratch.

    Reads nothing: its settings are constants. Writes reports/swissroll.png (the true roll in red
    over each model's density) and reports/swissroll.json (sliced Wasserstein distances to the
    roll).
    """
    learn(MASKED, FULL, SAMPLES)


def learn(masked: int, full: int, samples: int) -> None:
    """Train the models, draw from them, write the picture and the distances.

    Args:
        masked: steps of masked pretraining; one costs half a full step.
        full: steps of finetuning.
        samples: points drawn from each model.
    """
    start = fresh(SEED)
    primer = train(start, "pretrain", masked, 1, SEED)

    def whole(steps: int) -> np.ndarray:
        return sample(train(start, "finetune", steps, 2, SEED), samples, SEED)

    equal_cost, equal_steps = full + masked // 2, full + masked
    drawn = {
        "primer": (f"primer: {masked} masked steps", sample(primer, samples, SEED)),
        "finetuned": (
            f"finetuned: + {full} full steps",
            sample(train(primer, "finetune", full, 2, SEED), samples, SEED),
        ),
        "scratch_equal_flops": (f"scratch, equal FLOPs: {equal_cost} steps", whole(equal_cost)),
        "scratch_equal_steps": (f"scratch, equal steps: {equal_steps} steps", whole(equal_steps)),
    }
    truth, again = (
        roll(stream(SEED, f"swissroll/{name}").random(samples)) for name in ("truth", "again")
    )
    distances = {name: sliced_wasserstein(points, truth) for name, (_, points) in drawn.items()}
    panels = [
        (f"{title}\nSW {distances[name]:.4f}", points) for name, (title, points) in drawn.items()
    ]
    picture = heat_maps(panels, roll(np.linspace(0, 1, 400)))
    with replacing(PICTURE) as begun:
        picture.save(begun, "png", optimize=True)
    distances["resampled"] = sliced_wasserstein(again, truth)  # two draws of the roll itself
    about = {
        "sliced_wasserstein": {name: round(value, 5) for name, value in distances.items()},
        "samples": samples,
    }
    write_json(Path("reports/swissroll.json"), about)
    for name, distance in distances.items():
        print(f"{name}: sliced Wasserstein distance {distance:.4f}")


if __name__ == "__main__":
    run(main)
