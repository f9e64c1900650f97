"""Small models of random weights, on disk and in memory."""

from pathlib import Path

import numpy as np
import torch
from PIL.Image import Image

from maskdm.backbones.model_folder import ModelConfig, save_model
from maskdm.sampling.sampler import SampleParams
from tests.support.training import DIFFUSION, MODEL

CLASSES = {"cat": 30, "dog": 0, "owl": 10}


def saved(folder: Path, **changes: object) -> Path:
    """Write a model folder for images of 16 pixels and return it; ``changes`` are its config's.

    Its averaged weights are not its raw ones.
    """
    values = {"size": 16, "channels": 3, "classes": None, "seed": 0, "training": []}
    config = ModelConfig.model_validate(
        {"model": MODEL.model_dump(), "diffusion": DIFFUSION.model_dump()} | values | changes
    )
    network = config.backbone()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    raw = dict(network.named_parameters())
    save_model(folder, config, raw, {name: 0.9 * weight for name, weight in raw.items()})
    return folder


def drawing(**changes: object) -> SampleParams:
    """Return a section ``sample`` of few evaluations, some of it changed."""
    values = {"count": 4, "solver": "dpmpp-2m", "nfe": 5, "eta": 0.0, "seed": 0}
    guidance = {"guidance_scale": 1.0, "guidance_interval": [0.0, 1.0], "weights": "averaged"}
    return SampleParams.model_validate(values | guidance | changes)


def arrays(images: list[Image]) -> np.ndarray:
    """Return PIL images of one size as one array."""
    return np.stack([np.asarray(image) for image in images])
