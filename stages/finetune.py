"""Finetuning: the second phase, on whole images, from a model folder."""

from pathlib import Path

from maskdm.backbones.registry import ModelParams, build_backbone
from maskdm.data.store import open_prepared
from maskdm.diffusion import DiffusionParams
from maskdm.errors import UserError
from maskdm.model_folder import (
    ModelConfig,
    check_start,
    load_config,
    load_weights,
    weights_hash,
)
from maskdm.params import Seed, read_section
from maskdm.phases import FinetuneParams, finetuning_schedule
from stages.command import run
from stages.launch import on_all_processes
from stages.phase import class_counts, train_phase

PARAMS = Path("params.yaml")


def main() -> None:
    """Finetune on whole images.

    Reads the sections seed, model, diffusion and finetune of params.yaml, the model folder that
    finetune.init names, and the images in data/prepared/. Writes models/finetune/ (weights and
    config), reports/finetune/ (training and validation curves) and reports/timing/finetune.json.
    """
    seed = read_section(PARAMS, "seed", Seed)
    model = read_section(PARAMS, "model", ModelParams)
    diffusion = read_section(PARAMS, "diffusion", DiffusionParams)
    params = read_section(PARAMS, "finetune", FinetuneParams)
    prepared = open_prepared(Path("data/prepared"))

    init = Path(params.init)
    before = load_config(init)
    classes = class_counts(prepared)
    check_start(init, before, model, diffusion, classes is not None)
    if list(before.classes or ()) != list(classes or ()):
        raise UserError(
            f"The model in {init} has the classes {', '.join(before.classes or ())}, the images "
            f"have {', '.join(classes or ())}: give another finetune.init, or set data.classes to "
            "false for both."
        )
    backbone = build_backbone(model, prepared.size, prepared.channels, seed, len(classes or ()))
    load_weights(init, params.init_weights, backbone)
    config = ModelConfig(
        size=prepared.size,
        channels=prepared.channels,
        classes=classes,
        seed=seed,
        model=model,
        diffusion=diffusion,
        training=before.training,
    )
    schedule = finetuning_schedule(params, prepared.size // model.patch)
    start = f"{params.init_weights} weights of {weights_hash(init)}"
    train_phase("finetune", backbone, config, prepared, schedule, params, start)


if __name__ == "__main__":
    run(on_all_processes(main))
