"""Masked pretraining: the first phase, on the visible part of every image."""

from pathlib import Path

from maskdm.backbones.autoencoder import stored_latents
from maskdm.backbones.model_folder import ModelConfig
from maskdm.backbones.registry import ModelParams
from maskdm.data.prepared import open_prepared
from maskdm.diffusion.loss import DiffusionParams
from maskdm.diffusion.masking import MaskParams, describe
from maskdm.runtime.command import run
from maskdm.runtime.launch import on_all_processes
from maskdm.runtime.params import Seed, read_section
from maskdm.training.phases import PretrainParams, check_share, pretraining_schedule
from maskdm.training.run import Outputs, train_phase

PARAMS = Path("params.yaml")
OUTPUTS = Outputs(
    Path("models/pretrain"),
    Path("reports/pretrain"),
    Path("reports/timing/pretrain.json"),
    keeps_optimiser=True,
)


def main() -> None:
    """Pretrain on masked images.

    Reads the sections seed, model, diffusion, mask and pretrain of params.yaml and the images in
    data/prepared/. Writes models/pretrain/ (weights, config and the optimiser's moments),
    reports/pretrain/ (training and validation curves) and reports/timing/pretrain.json. With
    pretrain.steps: 0 the model is the random start, and finetuning is training from scratch.
    """
    seed = read_section(PARAMS, "seed", Seed)
    model = read_section(PARAMS, "model", ModelParams)
    diffusion = read_section(PARAMS, "diffusion", DiffusionParams)
    masking = read_section(PARAMS, "mask", MaskParams)
    params = read_section(PARAMS, "pretrain", PretrainParams)
    prepared = open_prepared(Path("data/prepared"))

    config = ModelConfig(
        size=prepared.size,
        channels=prepared.channels,
        classes=prepared.class_counts,
        seed=seed,
        model=model,
        diffusion=diffusion,
        training=[],
        latents=stored_latents(prepared.latents),
    )
    schedule = pretraining_schedule(params, masking, config.grid)
    for made in schedule.stretches(schedule.steps):
        print(f"{made.steps} steps of {made.leg.batch_size} images, {describe(made.leg.mask)}")
    planned = sum(leg.steps for leg in params.legs or [])
    if schedule.steps < planned:
        print(f"pretrain.steps stops the legs after {schedule.steps} of {planned} steps")
    train_phase("pretrain", config.backbone(), config, prepared, schedule, params, OUTPUTS)


def check(processes: int) -> None:
    """Check that every process gets a part of every batch."""
    params = read_section(PARAMS, "pretrain", PretrainParams)
    sizes = (leg.batch_size or params.batch_size for leg in params.legs or ())
    check_share("pretrain", min(sizes, default=params.batch_size), processes)


if __name__ == "__main__":
    run(on_all_processes(main, check))
