"""From noise to images: an x0-denoiser and a solver on a grid uniform in log-SNR.

Any network becomes an x0-denoiser D(x, t), its estimate clipped to [−1, 1]. The grid is uniform in
λ = log(α/σ) and ends where noise is invisible: grids uniform in time end at too large a noise and
lose much of the variance in the last step. Solvers are pure functions with one signature.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from math import expm1, sqrt
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from maskdm.backbones.denoiser import Denoiser
from maskdm.diffusion import PATHS, DiffusionParams, ProbabilityPath, to_x0
from maskdm.params import Section
from maskdm.randomness import stream
from maskdm.tokens import all_positions

# σ/α at the ends of the grid: from 200 (only noise) to 0.01 (a level below 8-bit rounding).
LOG_SNR_START, LOG_SNR_END = -5.3, 4.6

X0Denoiser = Callable[[Tensor, Tensor], Tensor]


class SampleParams(Section):
    """The section ``sample``: how images are drawn from the trained model."""

    count: int = Field(ge=1, description="how many images, a whole number >= 1")
    solver: Literal["ddim", "dpmpp-2m"] = Field(description="ddim or dpmpp-2m")
    nfe: int = Field(ge=2, description="network evaluations an image, a whole number >= 2")
    eta: float = Field(
        ge=0, le=1, description="noise added by ddim, 0 (none) to 1 (ancestral); 0 for dpmpp-2m"
    )
    weights: Literal["averaged", "raw"] = Field(description="averaged or raw")
    seed: int = Field(ge=0, description="seed of the sampling noise, a whole number >= 0")


@dataclass(frozen=True)
class Level:
    """One point of the grid: time t, signal α, noise σ and λ = log(α/σ)."""

    time: float
    alpha: float
    sigma: float
    log_snr: float


def sampling_grid(path: ProbabilityPath, nfe: int) -> list[Level]:
    """Return the levels at which the network is evaluated, from noise to image, ``nfe`` of them.

    After the last one the x0 estimate itself is the sample.
    """
    noise_end = path.log_snr(torch.ones(1, dtype=torch.float64)).item()
    start = max(LOG_SNR_START, noise_end)  # vp-linear begins at σ/α = 152
    log_snr = torch.linspace(start, LOG_SNR_END, nfe, dtype=torch.float64)
    time = path.time(log_snr)
    alpha, sigma = path.levels(time)
    rows = torch.stack([time, alpha, sigma, log_snr], dim=1).tolist()
    return [Level(*row) for row in rows]


def ddim(
    denoise: X0Denoiser, x: Tensor, grid: list[Level], eta: float, noise: Callable[[int], Tensor]
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
        x0 = denoise(x, x.new_full((len(x),), here.time))
        yield x0
        epsilon = (x - here.alpha * x0) / here.sigma
        # variance of q(x_there | x_here, x0)
        std = eta * there.sigma * sqrt(-expm1(2 * (here.log_snr - there.log_snr)))
        x = there.alpha * x0 + sqrt(there.sigma**2 - std**2) * epsilon
        if std > 0:
            x = x + std * noise(step)
    yield denoise(x, x.new_full((len(x),), grid[-1].time))


def dpmpp_2m(
    denoise: X0Denoiser, x: Tensor, grid: list[Level], eta: float, noise: Callable[[int], Tensor]
) -> Iterator[Tensor]:
    """Solve with DPM-Solver++ 2M (Lu et al. 2022, algorithm 2); arguments as in ``ddim``."""
    previous, h_previous = None, 0.0
    for here, there in pairwise(grid):
        x0 = denoise(x, x.new_full((len(x),), here.time))
        yield x0
        h = there.log_snr - here.log_snr
        if previous is None:
            estimate = x0
        else:
            r = h_previous / h
            estimate = (1 + 1 / (2 * r)) * x0 - 1 / (2 * r) * previous
        x = there.sigma / here.sigma * x - there.alpha * expm1(-h) * estimate
        previous, h_previous = x0, h
    yield denoise(x, x.new_full((len(x),), grid[-1].time))


SOLVERS = {"ddim": ddim, "dpmpp-2m": dpmpp_2m}


def x0_denoiser(
    network: Callable[[Tensor, Tensor, Tensor], Tensor], tokens: int, diffusion: DiffusionParams
) -> X0Denoiser:
    """Return a network on whole images as an x0-denoiser, its estimates clipped to [−1, 1].

    Args:
        network: ``(tokens, positions, time)`` → its output.
        tokens: the number of patches of an image.
        diffusion: what the network was trained to predict, and on which path.
    """
    path = PATHS[diffusion.path]

    def denoise(x: Tensor, time: Tensor) -> Tensor:
        output = network(x, all_positions(len(x), tokens, x.device), time).float()
        return to_x0(output, x, time, path, diffusion.prediction).clamp(-1, 1)

    return denoise


@torch.inference_mode()
def estimates(
    backbone: Denoiser,
    diffusion: DiffusionParams,
    params: SampleParams,
    shape: tuple[int, int],
    places: range,
    device: torch.device,
) -> Iterator[Tensor]:
    """Yield the x0 estimates of samples ``places`` at every level; the last are the samples.

    Sample i depends on (weights, parameters, seed, i) only: it is the same in any batch, up to
    the rounding of matrix products of different sizes.

    Args:
        backbone: the trained network, on ``device``.
        diffusion: how it was trained.
        params: solver, NFE, η and seed.
        shape: tokens of an image, numbers of a token: ``(N, p²·C)``.
        places: which samples.
        device: where to compute.

    Yields:
        ``(len(places), N, p²·C)``, ``params.nfe`` times.
    """

    def noise(step: int) -> Tensor:
        draws = np.empty((len(places), *shape), np.float32)
        for row, place in zip(draws, places, strict=True):
            stream(params.seed, "sample", step, place).standard_normal(out=row, dtype=np.float32)
        return torch.from_numpy(draws).to(device)

    grid = sampling_grid(PATHS[diffusion.path], params.nfe)
    denoise = x0_denoiser(backbone.eval(), shape[0], diffusion)
    x = grid[0].sigma * noise(0)
    yield from SOLVERS[params.solver](denoise, x, grid, params.eta, lambda step: noise(step + 1))
