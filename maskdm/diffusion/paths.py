"""Probability paths: how an image becomes noise.

Everywhere ``x_t = α(t)·x0 + σ(t)·ε`` with time t in [0, 1], and **t = 1 is the noise end**. A path
is its noise levels along time; a ``Level`` is all that losses, predictions and solvers ask of it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from math import cos, pi
from typing import Generic, TypeVar

import torch
from torch import Tensor

from maskdm.diffusion.wide import in_64_bits

Number = TypeVar("Number", float, Tensor)


@dataclass(frozen=True)
class Level(Generic[Number]):
    """Noise levels: one as numbers (a solver's grid), or one a sample as tensors (a batch).

    Attributes:
        time: t.
        alpha: the signal α.
        sigma: the noise σ.
        half_log_snr: λ = log(α/σ), half of the log-SNR log(α²/σ²).
        preserves_variance: whether α² + σ² = 1 (VP); otherwise α + σ = 1 (flow).
    """

    time: Number
    alpha: Number
    sigma: Number
    half_log_snr: Number
    preserves_variance: bool

    @property
    def ratio(self) -> Number:
        """σ/α, the noise level where the signal is scaled to 1."""
        return self.sigma / self.alpha

    @property
    def velocity_weights(self) -> tuple[Number | float, Number | float]:
        """(a, b) of the velocity v = a·x0 + b·ε.

        VP: v = α·ε − σ·x0 (Salimans & Ho 2022, section 4); flow: v = dx/dt = ε − x0. In both
        α·b − σ·a = 1, which makes every conversion of predictions free of determinants.
        """
        return (-self.sigma, self.alpha) if self.preserves_variance else (-1.0, 1.0)

    def noisy(self, x0: Tensor, noise: Tensor) -> Tensor:
        """Return x_t = α·x0 + σ·ε, shaped like ``x0`` and ``noise``."""
        return self.alpha * x0 + self.sigma * noise


@dataclass(frozen=True)
class ProbabilityPath:
    """The noise levels along time.

    Attributes:
        half_log_snr: t → λ(t) = log(α/σ), falling in t; ``(batch,)`` to ``(batch,)``.
        time: its inverse, λ → t, for the sampler's grid.
        preserves_variance: whether α² + σ² = 1 (VP); otherwise α + σ = 1 (flow).
        steps: T if the path is one of discrete steps, trained on at t = 1/T, 2/T … 1 only.
    """

    half_log_snr: Callable[[Tensor], Tensor]
    time: Callable[[Tensor], Tensor]
    preserves_variance: bool
    steps: int | None = None

    def level(self, t: Tensor, like: Tensor | None = None) -> Level[Tensor]:
        """Return the noise levels at times ``(batch,)``.

        VP: α² = sigmoid(2λ), σ² = sigmoid(−2λ). Flow: α = sigmoid(λ), σ = sigmoid(−λ).

        Args:
            t: the times.
            like: a tensor ``(batch, …)``; the levels get as many axes, to be multiplied with it.
        """
        time = t if like is None else t.view(-1, *[1] * (like.ndim - 1))
        x = self.half_log_snr(time)
        if self.preserves_variance:
            alpha, sigma = torch.sigmoid(2 * x).sqrt(), torch.sigmoid(-2 * x).sqrt()
        else:
            alpha, sigma = torch.sigmoid(x), torch.sigmoid(-x)
        return Level(time, alpha, sigma, x, self.preserves_variance)

    def levels(self, half_log_snr: Tensor) -> list[Level[float]]:
        """Return one level for each λ, ``(levels,)`` float64, for a solver's grid."""
        time = self.time(half_log_snr)
        level = self.level(time)
        rows = zip(
            time.tolist(),
            level.alpha.tolist(),
            level.sigma.tolist(),
            half_log_snr.tolist(),
            strict=True,
        )
        return [Level(*row, self.preserves_variance) for row in rows]


# VP linear in continuous time (Song et al. 2021, eq. 33): β from 0.1 to 20 is the limit of the
# paper's T = 1000 steps of β from 1e-4 to 0.02.
BETA_MIN, BETA_MAX = 0.1, 20.0
# VP cosine (Nichol & Dhariwal 2021, eq. 17).
COSINE_S = 0.008
# |λ| beyond which α or σ is zero for float32 purposes; keeps the ends of every path finite.
HALF_LOG_SNR_LIMIT = 12.0


def _vp_linear_half_log_snr(t: Tensor) -> Tensor:
    # α² = exp(−b) with b = ∫β, so λ = ½·log(α²/(1−α²)) = −½·log(e^b − 1)
    b = BETA_MIN * t + 0.5 * (BETA_MAX - BETA_MIN) * t**2
    return (-0.5 * torch.log(torch.expm1(b))).clamp(-HALF_LOG_SNR_LIMIT, HALF_LOG_SNR_LIMIT)


def _vp_linear_time(half_log_snr: Tensor) -> Tensor:
    b = torch.nn.functional.softplus(-2 * half_log_snr)  # log(1 + e^(−2λ)) = −log α²
    slope = BETA_MAX - BETA_MIN
    return ((BETA_MIN**2 + 2 * slope * b).sqrt() - BETA_MIN) / slope


_COSINE_START = COSINE_S / (1 + COSINE_S) * pi / 2


def _vp_cosine_half_log_snr(t: Tensor) -> Tensor:
    # α = cos(angle) / cos(start)
    angle = (t + COSINE_S) / (1 + COSINE_S) * pi / 2
    alpha = torch.cos(angle).clamp(min=0) / cos(_COSINE_START)
    log_alpha2 = 2 * torch.log(alpha.clamp(1e-12, 1.0))
    return (0.5 * (log_alpha2 - torch.log(-torch.expm1(log_alpha2)))).clamp(
        -HALF_LOG_SNR_LIMIT, HALF_LOG_SNR_LIMIT
    )


def _vp_cosine_time(half_log_snr: Tensor) -> Tensor:
    alpha = torch.sigmoid(2 * half_log_snr).sqrt()
    angle = torch.acos((alpha * cos(_COSINE_START)).clamp(0, 1))
    return angle / (pi / 2) * (1 + COSINE_S) - COSINE_S


def _flow_half_log_snr(t: Tensor) -> Tensor:
    return torch.logit(1 - t).clamp(-HALF_LOG_SNR_LIMIT, HALF_LOG_SNR_LIMIT)


def _interpolated(xs: Tensor, ys: Tensor) -> Callable[[Tensor], Tensor]:
    """Return the piecewise linear function through points, ``xs`` ascending, constant beyond."""

    @cache
    def on(device: torch.device) -> tuple[Tensor, Tensor]:
        # Copied once: a training step that is replayed may not copy from the host.
        return xs.to(device), ys.to(device)

    def at(x: Tensor) -> Tensor:
        here, there = on(x.device)
        right = torch.searchsorted(here, x.contiguous()).clamp(1, len(here) - 1)
        left = right - 1
        share = ((x - here[left]) / (here[right] - here[left])).clamp(0, 1)
        return there[left] + share * (there[right] - there[left])

    return partial(in_64_bits, at)


def discrete_path(betas: Tensor) -> ProbabilityPath:
    """Return the path of DDPM's T steps, ᾱ_n = ∏_{i≤n} (1 − β_i) at t = n/T (Ho et al. 2020).

    Between two steps λ is interpolated, for samplers that stop there.

    Args:
        betas: ``(T,)`` float64.
    """
    alpha_bar = (1 - betas).cumprod(dim=0)
    half_log_snr = 0.5 * (torch.log(alpha_bar) - torch.log1p(-alpha_bar))
    times = torch.arange(1, len(betas) + 1, dtype=torch.float64) / len(betas)
    return ProbabilityPath(
        _interpolated(times, half_log_snr),
        _interpolated(half_log_snr.flip(0), times.flip(0)),
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
    "vp-linear": ProbabilityPath(_vp_linear_half_log_snr, _vp_linear_time, True),
    "vp-cosine": ProbabilityPath(_vp_cosine_half_log_snr, _vp_cosine_time, True),
    "flow": ProbabilityPath(_flow_half_log_snr, lambda x: torch.sigmoid(-x), False),
    "ddpm-linear": discrete_path(LINEAR_BETAS),
    "ddpm-cosine": discrete_path(cosine_betas(STEPS)),
}
