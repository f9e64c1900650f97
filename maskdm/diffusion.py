"""Diffusion: how an image becomes noise, what the network predicts, and the one denoising loss.

Everywhere ``x_t = α(t)·x0 + σ(t)·ε`` with time t in [0, 1], and **t = 1 is the noise end**. The
functions do not care which pixels they see: on the visible tokens of a masked image the loss is
masked denoising score matching (MDSM, paper.md "The idea"), on all tokens it is ordinary DSM.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import cos, pi
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from maskdm.params import Section

Prediction = Literal["epsilon", "x0", "v"]

# Divisions by α or σ: the loss would be ruled by the ends of time, where one of them vanishes, so
# there divisors stop at 0.05 (as in JiT, Li & He 2025); elsewhere only infinities are avoided.
SMALLEST_IN_LOSS = 0.05
SMALLEST_EXACT = 1e-3


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
    times_mean: float = Field(description="mean of logit(t), t = 1 being noise (logit-normal)")
    times_std: float = Field(gt=0, description="standard deviation of logit(t), > 0 (logit-normal)")


@dataclass(frozen=True)
class ProbabilityPath:
    """The noise levels along time, and the velocity that belongs to them.

    Attributes:
        name: the path's name.
        log_snr: t → λ(t) = log(α/σ), falling in t; ``(batch,)`` to ``(batch,)``.
        time: its inverse, λ → t, for the sampler's grid.
        preserves_variance: whether α² + σ² = 1 (VP); otherwise α + σ = 1 (flow).
        steps: T if the path is one of discrete steps, trained on at t = 1/T, 2/T … 1 only.
    """

    name: str
    log_snr: Callable[[Tensor], Tensor]
    time: Callable[[Tensor], Tensor]
    preserves_variance: bool
    steps: int | None = None

    def levels(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return α(t) and σ(t), both shaped like ``t``.

        VP: α² = sigmoid(2λ), σ² = sigmoid(−2λ). Flow: α = sigmoid(λ), σ = sigmoid(−λ).
        """
        snr = self.log_snr(t)
        if self.preserves_variance:
            return torch.sigmoid(2 * snr).sqrt(), torch.sigmoid(-2 * snr).sqrt()
        return torch.sigmoid(snr), torch.sigmoid(-snr)

    def velocity_weights(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Return (a, b) of the velocity v = a·x0 + b·ε.

        VP: v = α·ε − σ·x0 (Salimans & Ho 2022, section 4); flow: v = dx/dt = ε − x0. In both
        α·b − σ·a = 1, which makes every conversion below free of determinants.
        """
        if self.preserves_variance:
            return -sigma, alpha
        return -torch.ones_like(alpha), torch.ones_like(alpha)


# VP linear in continuous time (Song et al. 2021, eq. 33): β from 0.1 to 20 is the limit of the
# paper's T = 1000 steps of β from 1e-4 to 0.02.
BETA_MIN, BETA_MAX = 0.1, 20.0
# VP cosine (Nichol & Dhariwal 2021, eq. 17).
COSINE_S = 0.008
# |λ| beyond which α or σ is zero for float32 purposes; keeps the ends of every path finite.
LOG_SNR_LIMIT = 12.0


def _vp_linear_log_snr(t: Tensor) -> Tensor:
    # α² = exp(−b) with b = ∫β, so λ = ½·log(α²/(1−α²)) = −½·log(e^b − 1)
    b = BETA_MIN * t + 0.5 * (BETA_MAX - BETA_MIN) * t**2
    return (-0.5 * torch.log(torch.expm1(b))).clamp(-LOG_SNR_LIMIT, LOG_SNR_LIMIT)


def _vp_linear_time(log_snr: Tensor) -> Tensor:
    b = torch.nn.functional.softplus(-2 * log_snr)  # log(1 + e^(−2λ)) = −log α²
    slope = BETA_MAX - BETA_MIN
    return ((BETA_MIN**2 + 2 * slope * b).sqrt() - BETA_MIN) / slope


_COSINE_START = COSINE_S / (1 + COSINE_S) * pi / 2


def _vp_cosine_log_snr(t: Tensor) -> Tensor:
    # α = cos(angle) / cos(start)
    angle = (t + COSINE_S) / (1 + COSINE_S) * pi / 2
    alpha = torch.cos(angle).clamp(min=0) / cos(_COSINE_START)
    log_alpha2 = 2 * torch.log(alpha.clamp(1e-12, 1.0))
    return (0.5 * (log_alpha2 - torch.log(-torch.expm1(log_alpha2)))).clamp(
        -LOG_SNR_LIMIT, LOG_SNR_LIMIT
    )


def _vp_cosine_time(log_snr: Tensor) -> Tensor:
    alpha = torch.sigmoid(2 * log_snr).sqrt()
    angle = torch.acos((alpha * cos(_COSINE_START)).clamp(0, 1))
    return angle / (pi / 2) * (1 + COSINE_S) - COSINE_S


def _flow_log_snr(t: Tensor) -> Tensor:
    return torch.logit(1 - t).clamp(-LOG_SNR_LIMIT, LOG_SNR_LIMIT)


def _interpolated(xs: Tensor, ys: Tensor) -> Callable[[Tensor], Tensor]:
    """Return the piecewise linear function through points, ``xs`` ascending, constant beyond."""

    def at(x: Tensor) -> Tensor:
        here, there = xs.to(x.device), ys.to(x.device)
        wide = x.double()
        right = torch.searchsorted(here, wide.contiguous()).clamp(1, len(here) - 1)
        left = right - 1
        share = ((wide - here[left]) / (here[right] - here[left])).clamp(0, 1)
        return (there[left] + share * (there[right] - there[left])).to(x.dtype)

    return at


def discrete_path(name: str, betas: Tensor) -> ProbabilityPath:
    """Return the path of DDPM's T steps, ᾱ_n = ∏_{i≤n} (1 − β_i) at t = n/T (Ho et al. 2020).

    Between two steps λ is interpolated, for samplers that stop there.

    Args:
        name: the path's name.
        betas: ``(T,)`` float64.
    """
    alpha_bar = (1 - betas).cumprod(dim=0)
    log_snr = 0.5 * (torch.log(alpha_bar) - torch.log1p(-alpha_bar))
    times = torch.arange(1, len(betas) + 1, dtype=torch.float64) / len(betas)
    return ProbabilityPath(
        name,
        _interpolated(times, log_snr),
        _interpolated(log_snr.flip(0), times.flip(0)),
        preserves_variance=True,
        steps=len(betas),
    )


def cosine_betas(steps: int) -> Tensor:
    """Return the β of Nichol & Dhariwal's cosine schedule (2021, section 3.2), at most 0.999."""
    t = torch.arange(steps + 1, dtype=torch.float64) / steps
    f = torch.cos((t + COSINE_S) / (1 + COSINE_S) * pi / 2) ** 2
    return (1 - f[1:] / f[:-1]).clamp(max=0.999)


# The paper's T, and its linear β.
STEPS = 1000
LINEAR_BETAS = torch.linspace(1e-4, 0.02, STEPS, dtype=torch.float64)

PATHS: dict[str, ProbabilityPath] = {
    "vp-linear": ProbabilityPath("vp-linear", _vp_linear_log_snr, _vp_linear_time, True),
    "vp-cosine": ProbabilityPath("vp-cosine", _vp_cosine_log_snr, _vp_cosine_time, True),
    "flow": ProbabilityPath("flow", _flow_log_snr, lambda log_snr: torch.sigmoid(-log_snr), False),
    "ddpm-linear": discrete_path("ddpm-linear", LINEAR_BETAS),
    "ddpm-cosine": discrete_path("ddpm-cosine", cosine_betas(STEPS)),
}


def training_times(uniform: Tensor, params: DiffusionParams) -> Tensor:
    """Return training times from uniform numbers in [0, 1), ``(batch,)`` to ``(batch,)``.

    Logit-normal times (Esser et al. 2024, section 3.1) put the effort on the middle noise levels.
    On a path of discrete steps, times are those of the steps: n = 1 … T, t = n/T.
    """
    t = uniform
    if params.times == "logit-normal":
        normal = torch.special.ndtri(uniform.double().clamp(1e-7, 1 - 1e-7)).to(uniform.dtype)
        t = torch.sigmoid(params.times_mean + params.times_std * normal)
    steps = PATHS[params.path].steps
    if steps is None:
        return t
    return ((t * steps).floor() + 1).clamp(max=steps) / steps


def _like(level: Tensor, x: Tensor) -> Tensor:
    """Return ``(batch,)`` levels with as many trailing axes as ``x``."""
    return level.view(-1, *[1] * (x.ndim - 1))


def add_noise(x0: Tensor, noise: Tensor, t: Tensor, path: ProbabilityPath) -> Tensor:
    """Return x_t = α(t)·x0 + σ(t)·ε; ``x0`` and ``noise`` ``(batch, …)``, ``t`` ``(batch,)``."""
    alpha, sigma = (_like(level, x0) for level in path.levels(t))
    return alpha * x0 + sigma * noise


def to_x0(
    output: Tensor,
    x_t: Tensor,
    t: Tensor,
    path: ProbabilityPath,
    prediction: Prediction,
    smallest: float = SMALLEST_EXACT,
) -> Tensor:
    """Return the x0 that a network's output stands for.

    Args:
        output: what the network predicted, ``(batch, …)``.
        x_t: what it saw, the same shape.
        t: the times, ``(batch,)``.
        path: the path that made ``x_t``.
        prediction: what ``output`` is.
        smallest: divisors are not taken below this.
    """
    alpha, sigma = (_like(level, x_t) for level in path.levels(t))
    if prediction == "epsilon":
        return (x_t - sigma * output) / alpha.clamp(min=smallest)
    if prediction == "v":
        _, b = path.velocity_weights(alpha, sigma)
        return b * x_t - sigma * output
    return output


def to_epsilon(
    output: Tensor,
    x_t: Tensor,
    t: Tensor,
    path: ProbabilityPath,
    prediction: Prediction,
    smallest: float = SMALLEST_EXACT,
) -> Tensor:
    """Return the noise ε that a network's output stands for; arguments as in ``to_x0``."""
    alpha, sigma = (_like(level, x_t) for level in path.levels(t))
    if prediction == "x0":
        return (x_t - alpha * output) / sigma.clamp(min=smallest)
    if prediction == "v":
        a, _ = path.velocity_weights(alpha, sigma)
        return alpha * output - a * x_t
    return output


def to_velocity(
    output: Tensor,
    x_t: Tensor,
    t: Tensor,
    path: ProbabilityPath,
    prediction: Prediction,
    smallest: float = SMALLEST_EXACT,
) -> Tensor:
    """Return the velocity that a network's output stands for; arguments as in ``to_x0``."""
    if prediction == "v":
        return output
    a, b = path.velocity_weights(*(_like(level, x_t) for level in path.levels(t)))
    x0 = to_x0(output, x_t, t, path, prediction, smallest)
    epsilon = to_epsilon(output, x_t, t, path, prediction, smallest)
    return a * x0 + b * epsilon


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
    x_t = add_noise(x0, noise, t, path)
    output = denoise(x_t, t).float()
    if prediction == "v":
        a, b = path.velocity_weights(*(_like(level, x0) for level in path.levels(t)))
        truth = a * x0 + b * noise
    else:
        truth = x0 if prediction == "x0" else noise
    convert = to_epsilon if params.loss == "epsilon" else to_velocity
    target = convert(truth, x_t, t, path, prediction, SMALLEST_IN_LOSS)
    estimate = convert(output, x_t, t, path, prediction, SMALLEST_IN_LOSS)
    return (estimate - target).square().flatten(1).mean(dim=1)
