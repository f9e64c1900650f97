"""What a network says about the whole image: its estimate of x0."""

from collections.abc import Callable

from torch import Tensor

from maskdm.diffusion.loss import DiffusionParams
from maskdm.diffusion.paths import PATHS
from maskdm.diffusion.predictions import to_x0
from maskdm.diffusion.tokens import all_positions


def x0_estimate(
    denoise: Callable[..., Tensor],
    x_t: Tensor,
    time: Tensor,
    labels: Tensor | None,
    params: DiffusionParams,
) -> Tensor:
    """Return a network's estimate of x0 for whole images, ``(batch, N, p²·C)``, not clipped.

    Args:
        denoise: ``(tokens, positions, time, labels)`` → the network's output.
        x_t: noisy tokens, ``(batch, N, p²·C)``.
        time: ``(batch,)``.
        labels: the classes, ``(batch,)`` int64; None without classes.
        params: what the network was trained to predict, and on which path.
    """
    positions = all_positions(len(x_t), x_t.shape[1], x_t.device)
    output = denoise(x_t, positions, time, labels).float()
    level = PATHS[params.path].level(time, like=x_t)
    return to_x0(output, x_t, level, params.prediction)
