"""FLOPs of training, for x axes on which masked and full runs compare honestly."""

from maskdm.backbones.denoiser import Denoiser
from maskdm.training.schedule import Schedule, Stretch


def training_flops(backbone: Denoiser, visible: int, images: int, middle: int | None = None) -> int:
    """Return the FLOPs of training on ``images`` images with ``visible`` patches shown of each.

    A step costs three forward passes: one forward, two backward (docs/method.md, "Network").

    Args:
        backbone: the network.
        visible: patches of an image that it is given.
        images: how many.
        middle: how many of the patches its middle blocks see; None for all.
    """
    # A backbone of one's own need not know of a middle.
    forward = (
        backbone.forward_flops(visible)
        if middle is None
        else backbone.forward_flops(visible, middle)
    )
    return 3 * forward * images


def stretch_flops(backbone: Denoiser, stretch: Stretch) -> int:
    """Return the training FLOPs of a stretch of one leg, its steps on whole images included."""
    mask = stretch.leg.mask
    masked = training_flops(
        backbone, mask.shown, stretch.images - stretch.full_images, mask.in_middle
    )
    return masked + training_flops(backbone, mask.grid**2, stretch.full_images)


def flops_before(backbone: Denoiser, schedule: Schedule, step: int) -> int:
    """Return the training FLOPs of the first ``step`` steps of a phase."""
    return sum(stretch_flops(backbone, stretch) for stretch in schedule.stretches(step))
