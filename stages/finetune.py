"""Finetuning: the second phase, on whole images, from a model folder."""

from pathlib import Path

from maskdm.backbones.autoencoder import stored_latents
from maskdm.backbones.model_folder import (
    MOMENTS,
    ModelConfig,
    check_start,
    load_config,
    load_moments,
    load_weights,
    weights_hash,
)
from maskdm.backbones.registry import ModelParams
from maskdm.data.prepared import open_prepared
from maskdm.diffusion.loss import DiffusionParams
from maskdm.runtime.command import run
from maskdm.runtime.launch import on_all_processes
from maskdm.runtime.params import Seed, read_section
from maskdm.training.phases import FinetuneParams, check_share, finetuning_schedule
from maskdm.training.run import Outputs, train_phase

PARAMS = Path("params.yaml")
OUTPUTS = Outputs(
    Path("models/finetune"), Path("reports/finetune"), Path("reports/timing/finetune.json")
)


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

    init, classes = Path(params.init), prepared.class_counts
    before, latents = load_config(init), stored_latents(prepared.latents)
    autoencoder = latents.hash if latents else None
    names = list(classes or ())
    check_start(init, before, model, diffusion, classes is not None, names, autoencoder)
    config = ModelConfig(
        size=prepared.size,
        channels=prepared.channels,
        classes=classes,
        seed=seed,
        model=model,
        diffusion=diffusion,
        training=before.training,
        latents=latents,
    )
    backbone = config.backbone()
    load_weights(init, params.init_weights, backbone)
    schedule = finetuning_schedule(params, config.grid)
    start, moments = f"{params.init_weights} weights of {weights_hash(init)}", None
    if params.optimiser == "kept":
        moments = load_moments(init, backbone)
        start += f", moments of {weights_hash(init, MOMENTS)}"
    train_phase("finetune", backbone, config, prepared, schedule, params, OUTPUTS, start, moments)


def check(processes: int) -> None:
    """Check that every process gets a part of every batch."""
    params = read_section(PARAMS, "finetune", FinetuneParams)
    check_share("finetune", params.batch_size, processes)


if __name__ == "__main__":
    run(on_all_processes(main, check))
