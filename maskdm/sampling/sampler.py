"""From noise to images: a network as an x0-denoiser, a grid of noise levels, a solver.

Any network becomes an x0-denoiser D(x, t), its estimate clipped to [−1, 1]. The grid is uniform in
λ = log(α/σ) and ends where noise is invisible: grids uniform in time, as the paper's, end at too
large a noise and lose variance in the last step. With classes, guidance mixes two estimates.
"""

from bisect import bisect
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field, Strict, field_validator
from torch import Tensor

from maskdm.backbones.denoiser import Denoiser
from maskdm.diffusion.loss import DiffusionParams
from maskdm.diffusion.paths import PATHS, ProbabilityPath
from maskdm.diffusion.predictions import to_x0
from maskdm.diffusion.randomness import stream
from maskdm.diffusion.tokens import all_positions
from maskdm.runtime.errors import UserError
from maskdm.runtime.params import Section
from maskdm.sampling.solvers import SOLVERS, Grid, X0Denoiser

# λ at the ends of the grid: σ/α from 200 (only noise) to 0.01 (a level below 8-bit rounding).
LOG_SNR_START, LOG_SNR_END = -5.3, 4.6


class SampleParams(Section):
    """The section ``sample``: how images are drawn from the trained model."""

    count: int = Field(ge=1, description="how many images, a whole number >= 1")
    solver: str = Field(description=", ".join(SOLVERS))
    nfe: int = Field(ge=2, description="network evaluations an image, a whole number >= 2")
    eta: float = Field(ge=0, le=1, description="noise added by ddim, 0 (none) to 1; 0 for others")
    guidance_scale: float = Field(
        ge=0, description="classifier-free guidance, >= 0; 1 for none (and without classes)"
    )
    guidance_interval: Annotated[tuple[float, float], Strict(False)] = Field(
        description="the times between which guidance acts, [low, high] within 0 (image) to 1 "
        "(noise)"
    )
    weights: Literal["averaged", "raw"] = Field(description="averaged or raw")
    seed: int = Field(
        ge=0, lt=2**31, description="seed of the sampling noise, a whole number from 0 to 2³¹ − 1"
    )

    @field_validator("solver")
    @classmethod
    def _solver_exists(cls, solver: str) -> str:
        if solver not in SOLVERS:
            raise ValueError("there is no such solver")
        return solver

    @field_validator("guidance_interval")
    @classmethod
    def _interval_is_in_order(cls, interval: tuple[float, float]) -> tuple[float, float]:
        low, high = interval
        if not 0 <= low <= high <= 1:
            raise ValueError("the times are not in order, or not within 0 to 1")
        return interval


def check_sampling(params: SampleParams, conditional: bool) -> None:
    """Check what more than one key of ``sample``, or the model, decides.

    Args:
        params: the section ``sample``.
        conditional: whether the model has classes.

    Raises:
        UserError: saying what does not fit and what would.
    """
    solver = SOLVERS[params.solver]
    if params.eta > 0 and params.solver != "ddim":
        adds = "always adds all of its noise" if solver.stochastic else "adds no noise"
        raise UserError(
            f"sample.eta is {params.eta:g}, but {params.solver} {adds}: set it to 0, or "
            "sample.solver to ddim."
        )
    if (params.nfe - 1) % solver.evaluations:
        raise UserError(
            f"sample.nfe is {params.nfe}, but {params.solver} makes two evaluations a step and one "
            f"at the end: take an odd number, {params.nfe - 1} or {params.nfe + 1}."
        )
    if params.guidance_scale != 1 and not conditional:
        raise UserError(
            f"sample.guidance_scale is {params.guidance_scale:g}, but a model without classes has "
            "nothing to be guided by: set it to 1, or train with data.classes: true."
        )


def sampling_grid(path: ProbabilityPath, levels: int) -> Grid:
    """Return ``levels`` noise levels evenly spaced in λ, from noise to image.

    After the last one the x0 estimate itself is the sample.
    """
    noise_end = path.log_snr(torch.ones(1, dtype=torch.float64)).item()
    start = max(LOG_SNR_START, noise_end)  # vp-linear begins at σ/α = 152
    return path.levels(torch.linspace(start, LOG_SNR_END, levels, dtype=torch.float64))


def x0_denoiser(
    backbone: Denoiser,
    tokens: int,
    diffusion: DiffusionParams,
    labels: Tensor | None = None,
    scale: float = 1.0,
    interval: tuple[float, float] = (0.0, 1.0),
) -> X0Denoiser:
    """Return a network on whole images as an x0-denoiser, its estimates clipped to [−1, 1].

    Within the interval of times the estimate is guided, D(∅) + w·(D(c) − D(∅)) (Ho & Salimans
    2022, eq. 6, in x0; the interval: Kynkäänniemi et al. 2024), both from one batch twice as
    large; outside, and at w = 1, it is D(c) alone.

    Args:
        backbone: the network.
        tokens: the number of patches of an image.
        diffusion: what the network was trained to predict, and on which path.
        labels: the classes, ``(batch,)`` int64; None for an unconditional model.
        scale: w, the guidance scale.
        interval: the times between which it acts.
    """
    path = PATHS[diffusion.path]

    def estimate(x: Tensor, time: Tensor, classes: Tensor | None) -> Tensor:
        output = backbone(x, all_positions(len(x), tokens, x.device), time, classes).float()
        return to_x0(output, x, path.level(time, like=x), diffusion.prediction)

    def denoise(x: Tensor, time: Tensor) -> Tensor:
        low, high = interval
        if labels is None or scale == 1 or not low <= time[0].item() <= high:
            return estimate(x, time, labels).clamp(-1, 1)
        null = torch.full_like(labels, backbone.classes)
        both = estimate(x.repeat(2, 1, 1), time.repeat(2), torch.cat([labels, null]))
        conditional, unconditional = both.chunk(2)
        return (unconditional + scale * (conditional - unconditional)).clamp(-1, 1)

    return denoise


def draw_labels(counts: Sequence[int], seed: int, indices: range) -> Tensor:
    """Return the classes of samples ``indices``, as frequent as among the training images.

    Args:
        counts: training images of each class.
        seed: of the sampling noise.
        indices: of the samples.

    Returns:
        ``(len(indices),)`` int64.
    """
    ends = list(accumulate(counts))
    draws = (stream(seed, "sample/labels", 0, index).random() for index in indices)
    return torch.tensor([bisect(ends, draw * ends[-1]) for draw in draws], dtype=torch.long)


def starting_noise(seed: int, shape: tuple[int, int], indices: range, step: int = 0) -> Tensor:
    """Return the standard normal numbers of samples ``indices``, ``(len(indices), *shape)``.

    Args:
        seed: of the sampling noise.
        shape: tokens of an image, numbers of a token.
        indices: of the samples.
        step: 0 for the noise that sampling starts from, later for what is added on the way.
    """
    draws = np.empty((len(indices), *shape), np.float32)
    for row, index in zip(draws, indices, strict=True):
        stream(seed, "sample", step, index).standard_normal(out=row, dtype=np.float32)
    return torch.from_numpy(draws)


@torch.inference_mode()
def estimates(
    backbone: Denoiser,
    diffusion: DiffusionParams,
    params: SampleParams,
    shape: tuple[int, int],
    indices: range,
    device: torch.device,
    labels: Tensor | None = None,
    start: Tensor | None = None,
) -> Iterator[Tensor]:
    """Yield the x0 estimates of samples ``indices`` at every level; the last are the samples.

    Sample i depends on (weights, parameters, seed, i, its label) only: it is the same in any
    batch, up to the rounding of matrix products of different sizes.

    Args:
        backbone: the trained network, on ``device``.
        diffusion: how it was trained.
        params: solver, NFE, η, guidance and seed.
        shape: tokens of an image, numbers of a token: ``(N, p²·C)``.
        indices: of the samples.
        device: where to compute.
        labels: their classes, ``(len(indices),)`` int64; None for an unconditional model.
        start: standard normal noise to start from instead of the samples' own.

    Yields:
        ``(len(indices), N, p²·C)``, once a level.
    """
    solver = SOLVERS[params.solver]
    grid = sampling_grid(PATHS[diffusion.path], solver.levels(params.nfe))
    denoise = x0_denoiser(
        backbone.eval(),
        shape[0],
        diffusion,
        None if labels is None else labels.to(device),
        params.guidance_scale,
        params.guidance_interval,
    )

    def noise(step: int) -> Tensor:
        return starting_noise(params.seed, shape, indices, step + 1).to(device)

    first = starting_noise(params.seed, shape, indices) if start is None else start
    x = grid[0].sigma * first.to(device)
    yield from solver.solve(denoise, x, grid, params.eta, noise)
