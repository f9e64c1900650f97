"""The one denoising loss, and the times that it is trained on.

The functions do not care which pixels they see: on the visible tokens of a masked image the loss is
masked denoising score matching (MaskDM, L_MDSM), on all tokens it is ordinary DSM (L_simple).
"""

from collections.abc import Callable
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from maskdm.diffusion.paths import PATHS
from maskdm.diffusion.predictions import (
    SMALLEST_IN_LOSS,
    Prediction,
    from_truth,
    to_epsilon,
    to_velocity,
)
from maskdm.diffusion.wide import in_64_bits
from maskdm.runtime.params import Section


class DiffusionParams(Section):
    """The section ``diffusion``: path, prediction, loss and the times trained on."""

    path: Literal["flow", "vp-linear", "vp-cosine", "ddpm-linear", "ddpm-cosine"] = Field(
        description="flow (straight lines), vp-linear or vp-cosine (variance preserving), "
        "ddpm-linear or ddpm-cosine (the same in 1000 discrete steps)"
    )
    prediction: Prediction = Field(description="what the network outputs: epsilon, x0 or v")
    loss: Literal["epsilon", "velocity"] = Field(
        description="whose mean squared error is trained on: epsilon or velocity"
    )
    times: Literal["uniform", "logit-normal"] = Field(
        description="the distribution of training times: uniform or logit-normal"
    )
    times_mean: float = Field(
        ge=-20,
        le=20,
        description="mean of logit(t), t = 1 being noise, -20 to 20 (logit-normal)",
    )
    times_std: float = Field(
        gt=0, le=20, description="standard deviation of logit(t), 0 < std <= 20 (logit-normal)"
    )


def training_times(
    uniform: Tensor, params: DiffusionParams, shift: float | Tensor | None = None
) -> Tensor:
    """Return training times from uniform numbers in [0, 1), ``(batch,)`` to ``(batch,)``.

    Logit-normal times (Esser et al. 2024, section 3.1) put the effort on the middle noise levels.
    On a path of discrete steps, times are those of the steps: n = 1 … T, t = n/T.

    Args:
        uniform: evenly spread over [0, 1).
        params: the distribution.
        shift: added to λ, half the log-SNR, of every time (Hoogeboom et al. 2023, section 3.1,
            shift it so by resolution); None for none.
    """
    t, path = uniform, PATHS[params.path]
    if params.times == "logit-normal":
        normal = in_64_bits(_normal_quantile, uniform)
        t = torch.sigmoid(params.times_mean + params.times_std * normal)
    if shift is not None:
        t = path.time(path.half_log_snr(t) + shift).to(t.dtype)
    steps = path.steps
    if steps is None:
        return t
    return ((t * steps).floor() + 1).clamp(max=steps) / steps


def _normal_quantile(uniform: Tensor) -> Tensor:
    normal: Tensor = torch.special.ndtri(uniform.clamp(1e-7, 1 - 1e-7))
    return normal


def denoising_loss(
    denoise: Callable[[Tensor, Tensor], Tensor],
    x0: Tensor,
    noise: Tensor,
    t: Tensor,
    params: DiffusionParams,
) -> Tensor:
    """Return the denoising loss of each sample: MDSM on visible tokens, DSM on all of them.

    ``E‖ε − ε_θ(x_t, t)‖²`` (MaskDM, L_MDSM and L_simple) or the same for the velocity, as a mean
    over whatever tokens are given. The network's output and its true value go through the same
    conversion, so a perfect network has loss 0 at every t, the clamped ends included.

    Args:
        denoise: ``(x_t, t)`` → the network's output, shaped like ``x_t``.
        x0: the clean tokens, ``(batch, …)``.
        noise: standard normal, the same shape.
        t: the times, ``(batch,)``.
        params: path, prediction and loss.

    Returns:
        ``(batch,)`` float32.
    """
    path, prediction = PATHS[params.path], params.prediction
    level = path.level(t, like=x0)
    x_t = level.noisy(x0, noise)
    output = denoise(x_t, t).float()
    convert = to_epsilon if params.loss == "epsilon" else to_velocity
    truth = from_truth(x0, noise, level, prediction)
    target = convert(truth, x_t, level, prediction, SMALLEST_IN_LOSS)
    estimate = convert(output, x_t, level, prediction, SMALLEST_IN_LOSS)
    return (estimate - target).square().flatten(1).mean(dim=1)
