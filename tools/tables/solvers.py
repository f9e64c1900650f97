"""Which solvers work on which paths, and how exactly: the table in docs/solvers.md.

Pixels that are N(mean, std²) have a known optimal network. Its samples' standard deviations are
compared with the true ones; the table has the worst relative error of eight widths from 0.05 to
0.25.
"""

from functools import cache
from typing import get_args

import torch
from torch import Tensor

from maskdm.backbones.denoiser import Denoiser
from maskdm.diffusion.loss import DiffusionParams
from maskdm.diffusion.paths import PATHS
from maskdm.diffusion.predictions import Prediction, to_epsilon, to_velocity
from maskdm.diffusion.reverse import Grid, sampling_grid
from maskdm.sampling.guidance import X0Network, x0_denoiser
from maskdm.sampling.solvers import SOLVERS

MEAN = torch.tensor([0.2, -0.1, 0.0, 0.1, -0.2, 0.0, 0.05, 0.0])
STD = torch.tensor([0.05, 0.06, 0.08, 0.12, 0.15, 0.2, 0.25, 0.25])
SAMPLES = 8000  # they know a standard deviation to 0.8 %


class GaussianDenoiser(Denoiser):
    """The optimal network for pixels that are N(MEAN, STD²), which outputs x0, ε or v."""

    def __init__(self, diffusion: DiffusionParams) -> None:
        super().__init__()
        self.diffusion = diffusion

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        time: Tensor,
        label: Tensor | None = None,
        middle: Tensor | None = None,
    ) -> Tensor:
        """Return what an optimal network outputs for ``(batch, 1, 8)`` at ``time``."""
        x_t = tokens.double()
        level = PATHS[self.diffusion.path].level(time.double(), like=x_t)
        gain = level.alpha * STD**2 / (level.alpha**2 * STD**2 + level.sigma**2)
        x0 = MEAN + gain * (x_t - level.alpha * MEAN)
        if self.diffusion.prediction == "epsilon":
            return to_epsilon(x0, x_t, level, "x0")
        if self.diffusion.prediction == "v":
            return to_velocity(x0, x_t, level, "x0")
        return x0


def setting(path: str, prediction: Prediction = "x0") -> DiffusionParams:
    """Return the section ``diffusion`` for a path and a prediction."""
    return DiffusionParams.model_validate(
        {
            "path": path,
            "prediction": prediction,
            "loss": "velocity",
            "times": "uniform",
            "times_mean": 0.0,
            "times_std": 1.0,
        }
    )


def draw(
    diffusion: DiffusionParams,
    solver: str,
    grid: Grid,
    eta: float = 0.0,
    count: int = SAMPLES,
) -> Tensor:
    """Return samples of the closed-form network, ``(count, 8)``."""
    generator = torch.Generator().manual_seed(0)

    def noise(_: int = 0) -> Tensor:
        return torch.randn(count, 1, len(STD), generator=generator)

    denoise = x0_denoiser(X0Network(GaussianDenoiser(diffusion), diffusion))
    *_, last = SOLVERS[solver].solve(denoise, grid[0].sigma * noise(), grid, eta, noise)
    return last[:, 0].double()


def worst_error(samples: Tensor) -> float:
    """Return the worst relative error of the standard deviations."""
    return (samples.std(0) / STD - 1).abs().max().item()


def recommended(path: str, solver: str) -> Grid:
    """Return the grid on which a solver makes its recommended number of evaluations."""
    entry = SOLVERS[solver]
    return sampling_grid(PATHS[path], entry.levels(entry.nfe))


def uniform_in_time(path: str, levels: int) -> Grid:
    """Return the paper's grid, between the same ends; no solver uses it, see the table."""
    first, *_, last = sampling_grid(PATHS[path], 3)
    times = torch.linspace(first.time, last.time, levels, dtype=torch.float64)
    return PATHS[path].levels(PATHS[path].half_log_snr(times))


@cache
def errors(path: str, prediction: Prediction, solver: str) -> tuple[float, float]:
    """Return the worst relative error of a standard deviation, and the worst of a mean in those.

    Of a solver at its recommended number of evaluations.
    """
    samples = draw(setting(path, prediction), solver, recommended(path, solver))
    return worst_error(samples), ((samples.mean(0) - MEAN) / STD).abs().max().item()


def table() -> str:
    """Return the support matrix, in Markdown, with errors measured at the recommended NFE."""
    head = " | ".join(f"`{name}`, {solver.nfe}" for name, solver in SOLVERS.items())
    lines = [f"| path | prediction | {head} |", "|---" * (2 + len(SOLVERS)) + "|"]
    for path in PATHS:
        for prediction in get_args(Prediction):
            cells = " | ".join(f"{errors(path, prediction, name)[0]:.0%}" for name in SOLVERS)
            lines.append(f"| `{path}` | {prediction} | {cells} |")
    return "\n".join(lines)


def table_of_the_papers_grid() -> str:
    """Return how exact the paper's sampler is on its own grid, path by path, in Markdown."""
    drawn = {path: draw(setting(path), "ddpm", uniform_in_time(path, 250)) for path in PATHS}
    names = " | ".join(f"`{path}`" for path in drawn)
    cells = " | ".join(f"{worst_error(samples):.0%}" for samples in drawn.values())
    return f"| {names} |\n{'|---' * len(PATHS)}|\n| {cells} |"
