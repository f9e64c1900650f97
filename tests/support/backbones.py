"""All backbones there are, the one that docs/own-backbone.md shows, and small networks of each."""

import re
from typing import Any

import torch

from maskdm.backbones.denoiser import Denoiser
from maskdm.backbones.registry import BACKBONES, ModelParams, build_backbone
from tests.support.graph import ROOT

TOKENS, VALUES, CLASSES = 16, 48, 3  # of small networks: a grid of 4×4 patches of 4×4×3 values


def own_backbone() -> Any:
    """Return the class that docs/own-backbone.md shows, made from the page's code."""
    code = re.search(r"```python\n(.*?)```", (ROOT / "docs/own-backbone.md").read_text(), re.DOTALL)
    assert code is not None
    names: dict[str, Any] = {}
    exec(code[1], names)
    return names["PlainTransformer"]


ALL = {**BACKBONES, "own": own_backbone()}


def small(backbone: str = "uvit", size: int = 16, classes: int = 0, **changes: Any) -> Denoiser:
    """Return a network that computes in a moment."""
    values = {"backbone": backbone, "patch": 4, "dim": 32, "depth": 3, "heads": 2, "init": "paper"}
    return build_backbone(ModelParams(**(values | changes)), size, 3, seed=0, classes=classes)


def shaken(network: Denoiser) -> Denoiser:
    """Return the network away from its near-linear start: attention and positions matter."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return network.eval()
