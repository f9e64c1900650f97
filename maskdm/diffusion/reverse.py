"""From noise to image: the grid of noise levels, one step between two of them, and DDIM.

The grid is uniform in λ = log(α/σ) and ends where noise is invisible: grids uniform in time, as the
paper's, end at too large a noise and lose variance in the last step.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from math import expm1, sqrt

import torch
from torch import Tensor

from maskdm.diffusion.paths import Level, ProbabilityPath

Grid = Sequence[Level[float]]
X0Denoiser = Callable[[Tensor, Tensor], Tensor]  # (x_t, time) → estimate of x0

# λ at the ends of the grid: σ/α from 200 (only noise) to 0.01 (a level below 8-bit rounding).
HALF_LOG_SNR_START, HALF_LOG_SNR_END = -5.3, 4.6


def sampling_grid(path: ProbabilityPath, levels: int) -> Grid:
    """Return ``levels`` noise levels evenly spaced in λ, from noise to image.

    After the last one the x0 estimate itself is the sample.
    """
    noise_end = path.half_log_snr(torch.ones(1, dtype=torch.float64)).item()
    start = max(HALF_LOG_SNR_START, noise_end)  # vp-linear begins at σ/α = 152
    return path.levels(torch.linspace(start, HALF_LOG_SNR_END, levels, dtype=torch.float64))


def ancestral_std(here: Level[float], there: Level[float]) -> float:
    """Return the standard deviation of q(x_there | x_here, x0)."""
    return there.sigma * sqrt(-expm1(2 * (here.half_log_snr - there.half_log_snr)))


def towards(
    x: Tensor, x0: Tensor, here: Level[float], there: Level[float], std: float = 0.0
) -> Tensor:
    """Return x at a smaller noise level, of which ``std`` is still to be added as fresh noise.

    DDIM (Song et al. 2021, eq. 12; with ``std``, eq. 16), for any α and σ.

    Args:
        x: at the level ``here``.
        x0: the estimate of the image.
        here: the level of ``x``.
        there: the level to go to.
        std: standard deviation of the noise that the caller adds; 0 is deterministic.
    """
    epsilon = (x - here.alpha * x0) / here.sigma
    return there.alpha * x0 + sqrt(there.sigma**2 - std**2) * epsilon


def estimate_at(denoise: X0Denoiser, x: Tensor, level: Level[float]) -> Tensor:
    """Return the x0 estimate of a batch at one level."""
    return denoise(x, x.new_full((len(x),), level.time))


def ddim(
    denoise: X0Denoiser, x: Tensor, grid: Grid, eta: float, noise: Callable[[int], Tensor]
) -> Iterator[Tensor]:
    """Solve with DDIM (Song et al. 2021, eq. 12; eq. 16 for η), for any α and σ.

    Args:
        denoise: ``(x_t, time (batch,))`` → estimate of x0.
        x: noise at the first level, ``(batch, …)``.
        grid: the levels, from noise to image.
        eta: share of the ancestral noise that is added back; 0 is deterministic.
        noise: step → standard normal numbers shaped like ``x``; called only if ``eta`` > 0.

    Yields:
        The x0 estimate at every level; the last one is the sample.
    """
    for step, (here, there) in enumerate(pairwise(grid)):
        x0 = estimate_at(denoise, x, here)
        yield x0
        std = eta * ancestral_std(here, there)
        x = towards(x, x0, here, there, std)
        if std > 0:
            x = x + std * noise(step)
    yield estimate_at(denoise, x, grid[-1])
