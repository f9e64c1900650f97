"""Masked pretraining: the first phase, on the visible part of every image."""

from pathlib import Path

from maskdm.backbones.registry import ModelParams, build_backbone
from maskdm.data.store import open_prepared
from maskdm.diffusion import DiffusionParams
from maskdm.masking import MaskParams, describe
from maskdm.model_folder import ModelConfig
from maskdm.params import Seed, read_section
from maskdm.phases import PretrainParams, pretraining_schedule
from stages.command import run
from stages.launch import on_all_processes
from stages.phase import class_counts, train_phase

PARAMS = Path("params.yaml")


def main() -> None:
    """Pretrain on masked images.

    Reads the sections seed, model, diffusion, mask and pretrain of params.yaml and the images in
    data/prepared/. Writes models/pretrain/ (weights and config), reports/pretrain/ (training and
    validation curves) and reports/timing/pretrain.json. With pretrain.steps: 0 the model is the
    random start, and finetuning is training from scratch.
    """
    seed = read_section(PARAMS, "seed", Seed)
    model = read_section(PARAMS, "model", ModelParams)
    diffusion = read_section(PARAMS, "diffusion", DiffusionParams)
    masking = read_section(PARAMS, "mask", MaskParams)
    params = read_section(PARAMS, "pretrain", PretrainParams)
    prepared = open_prepared(Path("data/prepared"))

    classes = class_counts(prepared)
    backbone = build_backbone(model, prepared.size, prepared.channels, seed, len(classes or ()))
    schedule = pretraining_schedule(params, masking, prepared.size // model.patch)
    for made in schedule.stretches(schedule.steps):
        print(f"{made.steps} steps of {made.leg.batch_size} images, {describe(made.leg.mask)}")
    planned = sum(stage.steps for stage in params.stages or [])
    if schedule.steps < planned:
        print(f"pretrain.steps stops the stages after {schedule.steps} of {planned} steps")
    config = ModelConfig(
        size=prepared.size,
        channels=prepared.channels,
        classes=classes,
        seed=seed,
        model=model,
        diffusion=diffusion,
        training=[],
    )
    train_phase("pretrain", backbone, config, prepared, schedule, params)


if __name__ == "__main__":
    run(on_all_processes(main))
