"""Solvers: from noise to an image, given an x0-denoiser and a grid of noise levels.

All have one signature, ``(denoise, x, grid, eta, noise)``, are generators of the x0 estimate at
every level, and work on any path: a path enters only by its levels α, σ and λ = log(α/σ).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from math import expm1, sqrt

import torch
from torch import Tensor

from maskdm.diffusion.paths import Level
from maskdm.diffusion.reverse import Grid, X0Denoiser, ddim, estimate_at
from maskdm.runtime.packages import require_package


def ddpm(
    denoise: X0Denoiser, x: Tensor, grid: Grid, eta: float, noise: Callable[[int], Tensor]
) -> Iterator[Tensor]:
    """Sample ancestrally from q(x_there | x_here, x0) (Ho et al. 2020, eq. 7): DDIM at η = 1."""
    return ddim(denoise, x, grid, 1.0, noise)


def dpmpp_2m(
    denoise: X0Denoiser, x: Tensor, grid: Grid, eta: float, noise: Callable[[int], Tensor]
) -> Iterator[Tensor]:
    """Solve with DPM-Solver++ 2M (Lu et al. 2022, algorithm 2); arguments as in ``ddim``."""
    previous, h_previous = None, 0.0
    for here, there in pairwise(grid):
        x0 = estimate_at(denoise, x, here)
        yield x0
        h = there.half_log_snr - here.half_log_snr
        if previous is None:
            estimate = x0
        else:
            r = h_previous / h
            estimate = (1 + 1 / (2 * r)) * x0 - 1 / (2 * r) * previous
        x = there.sigma / here.sigma * x - there.alpha * expm1(-h) * estimate
        previous, h_previous = x0, h
    yield estimate_at(denoise, x, grid[-1])


def heun(
    denoise: X0Denoiser, x: Tensor, grid: Grid, eta: float, noise: Callable[[int], Tensor]
) -> Iterator[Tensor]:
    """Solve with Heun's method in y = x/α over s = σ/α: dy/ds = (y − x0)/s (Karras et al. 2022).

    Two evaluations a step, one at the last level. Arguments as in ``ddim``.
    """
    y = x / grid[0].alpha
    for here, there in pairwise(grid):
        x0 = estimate_at(denoise, here.alpha * y, here)
        yield x0
        slope, step = (y - x0) / here.ratio, there.ratio - here.ratio
        ahead = y + step * slope
        x0_ahead = estimate_at(denoise, there.alpha * ahead, there)
        y = y + step * (slope + (ahead - x0_ahead) / there.ratio) / 2
    yield estimate_at(denoise, grid[-1].alpha * y, grid[-1])


def euler_maruyama(
    denoise: X0Denoiser, x: Tensor, grid: Grid, eta: float, noise: Callable[[int], Tensor]
) -> Iterator[Tensor]:
    """Solve the reverse SDE with Euler–Maruyama, in y = x/α over s = σ/α.

    dy = 2·(y − x0)/s ds + √(2s) dw, s falling (Song et al. 2021, eq. 6, for the path α = 1,
    σ = s). Arguments as in ``ddim``.
    """
    y = x / grid[0].alpha
    for step, (here, there) in enumerate(pairwise(grid)):
        x0 = estimate_at(denoise, here.alpha * y, here)
        yield x0
        fall = here.ratio - there.ratio
        y = y - 2 * fall / here.ratio * (y - x0) + sqrt(2 * here.ratio * fall) * noise(step)
    yield estimate_at(denoise, grid[-1].alpha * y, grid[-1])


def unipc(
    denoise: X0Denoiser, x: Tensor, grid: Grid, eta: float, noise: Callable[[int], Tensor]
) -> Iterator[Tensor]:
    """Solve with UniPC of order 2 (Zhao et al. 2023), diffusers' own, its sigmas set to the grid.

    diffusers scales the signal to √(1 − σ²); any path is scaled to that on the way in and out.
    Arguments as in ``ddim``.
    """
    require_package("diffusers", "Solver 'unipc'", "pipeline")
    from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler

    scheduler = UniPCMultistepScheduler(prediction_type="sample", final_sigmas_type="sigma_min")
    scheduler.set_timesteps(len(grid) - 1)
    scheduler.sigmas = torch.tensor([level.ratio for level in grid], dtype=torch.float64)

    def scale(level: Level[float]) -> float:
        return 1 / sqrt(1 + level.ratio**2)

    z = x * (scale(grid[0]) / grid[0].alpha)
    for here, there, timestep in zip(grid, grid[1:], scheduler.timesteps, strict=False):
        x0 = estimate_at(denoise, z * (here.alpha / scale(here)), here)
        yield x0
        z = scheduler.step(x0, timestep, z).prev_sample.to(x.dtype)
        last = there
    yield estimate_at(denoise, z * (last.alpha / scale(last)), last)


@dataclass(frozen=True)
class Solver:
    """A solver and how it is to be used.

    Attributes:
        solve: the function.
        nfe: recommended network evaluations, at which it is within a few per cent of the closed
            form on every path (docs/solvers.md).
        evaluations: of the network from one level to the next.
        stochastic: whether it adds noise on the way; ddim does so if η > 0.
    """

    solve: Callable[..., Iterator[Tensor]]
    nfe: int
    evaluations: int
    stochastic: bool

    def levels(self, nfe: int) -> int:
        """Return the length of the grid on which ``nfe`` evaluations are made."""
        return (nfe - 1) // self.evaluations + 1


SOLVERS = {
    "dpmpp-2m": Solver(dpmpp_2m, 20, 1, False),
    "unipc": Solver(unipc, 20, 1, False),
    "heun": Solver(heun, 59, 2, False),
    "ddim": Solver(ddim, 100, 1, False),
    "ddpm": Solver(ddpm, 250, 1, True),
    "euler-maruyama": Solver(euler_maruyama, 500, 1, True),
}
