"""FLOPs of training, for x axes on which masked and full runs compare honestly."""

from maskdm.backbones.denoiser import Denoiser


def training_flops(backbone: Denoiser, visible: int, images: int) -> int:
    """Return the FLOPs of training on ``images`` images with ``visible`` patches shown of each.

    A step costs three forward passes: one forward, two backward (paper.md, "Cost model").
    """
    return 3 * backbone.forward_flops(visible) * images
