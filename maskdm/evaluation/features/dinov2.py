"""DINOv2 (Oquab et al. 2023), whose features see shapes and objects better than Inception's.

Stein et al. (2023, arXiv 2306.04675) found distances in them to agree with what people see. They
took the largest of the two networks here and images of 224 pixels, as is done here. The feature is
the class token after the last norm. Networks and weights are timm's.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maskdm.evaluation.features.extraction import INSTEAD, Extractor, Network
from maskdm.runtime.downloads import TIMEOUT, download
from maskdm.runtime.errors import UserError, reason

if TYPE_CHECKING:
    import torch

SIDE = 224  # the patches are 14 pixels; the networks were trained at 518
FILE = "model.safetensors"


def dinov2_weights(model: str, megabytes: int) -> Path:
    """Return the weights of a model of timm's, downloaded once from its hub.

    A file of them that was put into torch's cache by hand is taken first.

    Args:
        model: timm's name for it.
        megabytes: how many there are, to be said.

    Raises:
        UserError: if they cannot be downloaded.
    """
    import torch

    given = Path(torch.hub.get_dir()) / "checkpoints" / f"{model}.safetensors"
    if given.exists():
        return given
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from timm.models import get_pretrained_cfg

    hub: Any = get_pretrained_cfg(model)
    if isinstance(kept := try_to_load_from_cache(hub.hf_hub_id, FILE), str):
        return Path(kept)
    print(f"downloading the DINOv2 weights {hub.hf_hub_id} ({megabytes} MB)", file=sys.stderr)
    otherwise = (
        f"connect to the internet once, put {FILE} of huggingface.co/{hub.hf_hub_id} at {given} by "
        f"hand, or {INSTEAD}."
    )
    with download(f"The DINOv2 weights {hub.hf_hub_id}", otherwise):
        return Path(hf_hub_download(hub.hf_hub_id, FILE, etag_timeout=TIMEOUT))


def build_dinov2(model: str, file: Path, device: torch.device) -> Network:
    """Return a network of timm's with the weights of a file, scaled as its own settings say.

    Raises:
        UserError: if the weights do not fit.
    """
    import timm
    import torch
    from safetensors import SafetensorError

    try:
        network: Any = timm.create_model(
            model,
            pretrained=True,
            pretrained_cfg_overlay={"file": str(file)},
            img_size=SIDE,
            num_classes=0,
        )
    except (RuntimeError, SafetensorError) as error:
        raise UserError(
            f"The DINOv2 weights at {file} do not fit timm's {model} ({reason(error)}): remove "
            f"the file, and run again to download them, or {INSTEAD}."
        ) from None
    network = network.eval().requires_grad_(False).to(device)
    mean, std = (
        255 * torch.tensor(network.pretrained_cfg[key], device=device).view(3, 1, 1)
        for key in ("mean", "std")
    )
    return lambda images: network((images - mean) / std)


def _extractor(size: str, model: str, count: int, megabytes: int) -> Extractor:
    """Return the extractor of one size."""
    return Extractor(
        name=f"dinov2-{size}",
        frechet=f"fd_dinov2_{size}",
        kernel=f"kid_dinov2_{size}",
        count=count,
        side=SIDE,
        weights=partial(dinov2_weights, model, megabytes),
        build=partial(build_dinov2, model),
    )


DINOV2 = (
    _extractor("vits14", "vit_small_patch14_dinov2.lvd142m", count=384, megabytes=88),
    _extractor("vitl14", "vit_large_patch14_dinov2.lvd142m", count=1024, megabytes=1217),
)
