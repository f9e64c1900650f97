"""The paper's picture of its idea: a Swiss roll from its marginals, finetuned, and from scratch."""

import json
from pathlib import Path

import numpy as np

from maskdm.figures import heat_maps, save
from maskdm.randomness import stream
from maskdm.swiss_roll import BATCH, RollDenoiser, fresh, roll, sample, sliced_wasserstein, train
from stages.command import run

SEED, SAMPLES = 0, 50_000
MASKED, FULL = 1000, 600  # optimiser steps of masked pretraining and of finetuning


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
    primer = train(fresh(SEED), "pretrain", masked, 1, SEED)
    equal_cost = full + masked // 2
    models: dict[str, RollDenoiser] = {
        f"primer: {masked} masked steps": primer,
        f"finetuned: + {full} full steps": train(primer, "finetune", full, 2, SEED),
        f"from scratch: {full} full steps": train(fresh(SEED), "finetune", full, 2, SEED),
        f"from scratch: {equal_cost} (equal FLOPs)": train(
            fresh(SEED), "finetune", equal_cost, 2, SEED
        ),
    }
    truth, again = (
        roll(stream(SEED, f"swissroll/{name}").random(samples)) for name in ("truth", "again")
    )
    drawn = {name: sample(model, samples, SEED) for name, model in models.items()}
    distances = {name: sliced_wasserstein(points, truth) for name, points in drawn.items()}
    panels = [(f"{name}\nSW {distances[name]:.3f}", points) for name, points in drawn.items()]
    save(heat_maps(panels, roll(np.linspace(0, 1, 400))), Path("reports/swissroll.png"))
    about = {
        "sliced_wasserstein": {name: round(d, 5) for name, d in distances.items()}
        | {"two draws of the roll itself": round(sliced_wasserstein(again, truth), 5)},
        "samples": samples,
        "batch_size": BATCH,
        "seed": SEED,
    }
    Path("reports/swissroll.json").write_text(json.dumps(about, indent=2) + "\n", "utf-8")
    for name, distance in distances.items():
        print(f"{name}: sliced Wasserstein distance {distance:.4f}")


if __name__ == "__main__":
    run(main)
