"""Backbones by name."""

from collections.abc import Callable
from typing import Literal

import torch
from pydantic import Field

from maskdm.backbones.denoiser import Denoiser
from maskdm.backbones.uvit import UViT
from maskdm.params import Section

BACKBONES: dict[str, Callable[..., Denoiser]] = {"uvit": UViT}


class ModelParams(Section):
    """The section ``model``: the network."""

    backbone: Literal["uvit"] = Field(description="uvit")
    patch: int = Field(ge=1, description="side of a patch in pixels, a divisor of data.size")
    dim: int = Field(ge=8, description="width, a multiple of 2 · model.heads")
    depth: int = Field(ge=1, description="number of blocks, odd (half in, one middle, half out)")
    heads: int = Field(ge=1, description="attention heads")
    init: Literal["paper", "spatial"] = Field(
        description="paper (everything normal, 0.02) or spatial (positions start as 2-D "
        "sinusoids, weights scaled by their inputs)"
    )


def build_backbone(params: ModelParams, size: int, channels: int, seed: int) -> Denoiser:
    """Return a freshly initialised backbone for ``size``×``size`` images, on the CPU.

    Args:
        params: the section ``model``.
        size: side of the images in pixels.
        channels: 1 or 3.
        seed: fixes the initial weights; the global generator is left as it was.

    Raises:
        UserError: if patch, width, depth or heads do not fit together.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return BACKBONES[params.backbone](
            size=size,
            channels=channels,
            patch=params.patch,
            dim=params.dim,
            depth=params.depth,
            heads=params.heads,
            init=params.init,
        )
