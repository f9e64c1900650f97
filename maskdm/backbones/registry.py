"""Backbones by name. A new one is a file beside this one and a line in ``BACKBONES``."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from pydantic import Field, field_validator
from torch.overrides import TorchFunctionMode

from maskdm.backbones.denoiser import Denoiser
from maskdm.backbones.dit import DiT
from maskdm.backbones.transformer import Init
from maskdm.backbones.uvit import UViT
from maskdm.backbones.vit import ViT
from maskdm.runtime.params import Section

BACKBONES: dict[str, Callable[..., Denoiser]] = {"uvit": UViT, "dit": DiT, "vit": ViT}


class ModelParams(Section):
    """The section ``model``: the network."""

    backbone: str = Field(description=", ".join(BACKBONES))
    patch: int = Field(
        ge=1, le=1024, description="side of a patch in pixels, a divisor of data.resolution"
    )
    dim: int = Field(
        ge=8, le=16384, description="width, a multiple of model.heads and of 4, at most 16384"
    )
    depth: int = Field(
        ge=1, le=255, description="number of blocks, at most 255; uvit: odd (in, one middle, out)"
    )
    heads: int = Field(ge=1, le=16384, description="attention heads")
    refine: int = Field(
        0,
        ge=0,
        le=4096,
        description="channels of a convolution on whole images at the end, 0 for none",
    )
    init: Init = Field(
        description="paper (as the backbone's paper draws its weights) or spatial (weights scaled "
        "by their inputs; uvit: positions start as 2-D sinusoids)"
    )

    @field_validator("backbone")
    @classmethod
    def _backbone_exists(cls, backbone: str) -> str:
        if backbone not in BACKBONES:
            raise ValueError("there is no such backbone")
        return backbone


def build_backbone(
    params: ModelParams, size: int, channels: int, seed: int, classes: int = 0
) -> Denoiser:
    """Return a freshly initialised backbone for ``size``×``size`` images, on the CPU.

    Args:
        params: the section ``model``.
        size: side of the images in pixels.
        channels: 1 or 3.
        seed: fixes the initial weights; the global generator is left as it was.
        classes: the number of classes; 0 for an unconditional network.

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
            classes=classes,
            # A backbone of one's own need not know it.
            **({"refine": params.refine} if params.refine else {}),
        )


def backbone_without_weights(
    params: ModelParams, size: int, channels: int, classes: int = 0
) -> Denoiser:
    """Return a backbone on the device ``meta``: sizes, shapes and costs, but no values.

    Args:
        params: the section ``model``.
        size: side of the images in pixels.
        channels: 1 or 3.
        classes: the number of classes; 0 for an unconditional network.

    Raises:
        UserError: if patch, width, depth or heads do not fit together.
    """
    with torch.device("meta"), NothingDrawn():
        return build_backbone(params, size, channels, seed=0, classes=classes)


class NothingDrawn(TorchFunctionMode):
    """Leaves tensors as they are where layers would draw their weights.

    On the device ``meta`` that changes nothing, but it would load torch's compiler, a second.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))
