"""The paper's picture in two dimensions: a Swiss roll learnt from its marginals, then finetuned.

A point z = (x, y) is a set of two tokens of one number each. Masked pretraining shows one of them,
so the network can learn p(x) and p(y) only: a primer. Finetuning shows both. Loss, paths, averages
and solver are those of the images (MaskDM, section 3 and its figure of the Swiss roll).
"""

from math import pi

import numpy as np
import torch
from torch import Tensor, nn

from maskdm import ema
from maskdm.backbones.denoiser import Denoiser
from maskdm.backbones.layers import embed_time
from maskdm.diffusion import PATHS, DiffusionParams, denoising_loss, to_x0, training_times
from maskdm.randomness import stream
from maskdm.sampling import sampling_grid
from maskdm.solvers import dpmpp_2m

TURNS = (1.5 * pi, 4.5 * pi)  # angles of the roll's two ends
DIFFUSION = DiffusionParams(
    path="flow",
    prediction="x0",
    loss="velocity",
    times="logit-normal",
    times_mean=0.0,
    times_std=1.5,
)
BATCH, RATE, HORIZON = 256, 2e-3, 30_000
LEVELS = 24
FREQUENCIES = 2.0 ** torch.arange(6) * pi / 2  # of a coordinate's embedding


def roll(share: np.ndarray) -> np.ndarray:
    """Return the points at ``share`` of the roll, 0 its inner and 1 its outer end.

    Args:
        share: ``(count,)`` in [0, 1].

    Returns:
        ``(count, 2)`` within [−1, 1]: radius grows with the angle.
    """
    angle = TURNS[0] + (TURNS[1] - TURNS[0]) * share
    points = angle[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return points / (1.05 * TURNS[1])  # type: ignore[no-any-return]


class RollDenoiser(Denoiser):
    """A small network on sets of coordinates: each meets the sum over the others, block by block.

    What a coordinate hears of the others has weights of zero at first, and where there are no
    others they stay so: after masked pretraining the model is the product of its marginals.

    Args:
        dim: its width.
        depth: its blocks.
    """

    def __init__(self, dim: int = 64, depth: int = 3) -> None:
        super().__init__()
        self.dim = dim
        self.embed = nn.Linear(1 + 2 * len(FREQUENCIES), dim)
        self.places = nn.Embedding(2, dim)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(2 * dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))
            for _ in range(depth)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(depth + 1))
        self.head = nn.Linear(dim, 1)
        for layer in self.modules():
            if isinstance(layer, nn.Linear) and layer.in_features == 2 * dim == layer.out_features:
                nn.init.zeros_(layer.weight[:, dim:])

    def forward(
        self, tokens: Tensor, positions: Tensor, time: Tensor, label: Tensor | None = None
    ) -> Tensor:
        """Denoise coordinates ``(batch, shown, 1)``; position 0 is x, 1 is y."""
        angles = tokens * FREQUENCIES
        h = self.embed(torch.cat([tokens, angles.sin(), angles.cos()], dim=2))
        h = h + self.places(positions) + embed_time(time, self.dim)[:, None]
        for block, norm in zip(self.blocks, self.norms[:-1], strict=True):
            normal = norm(h)
            others = normal.sum(dim=1, keepdim=True) - normal
            h = h + block(torch.cat([normal, others], dim=2))
        return self.head(self.norms[-1](h))  # type: ignore[no-any-return]


def batch(
    seed: int, phase: str, step: int, shown: int, size: int = BATCH
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return a step's coordinates, positions, noise and uniform numbers for times.

    Args:
        seed: of the run.
        phase: separate phases share no random numbers.
        step: from 0.
        shown: 1 (one coordinate of each point, either as often) or 2.
        size: points.

    Returns:
        ``(size, shown, 1)``, ``(size, shown)``, ``(size, shown, 1)``, ``(size,)``.
    """
    random = stream(seed, f"swissroll/{phase}", step)
    points = roll(random.random(size))
    order = random.random((size, 2)).argsort(axis=1)[:, :shown]
    coordinates = np.take_along_axis(points, order, axis=1)[:, :, None]
    noise = random.standard_normal((size, shown, 1))
    uniform = (np.arange(size) / size + random.random()) % 1
    return (
        torch.from_numpy(coordinates).float(),
        torch.from_numpy(order),
        torch.from_numpy(noise).float(),
        torch.from_numpy(uniform).float(),
    )


def train(network: RollDenoiser, phase: str, steps: int, shown: int, seed: int) -> RollDenoiser:
    """Return a copy of ``network`` trained further, its weights averaged.

    Args:
        network: where to start.
        phase: names the random numbers.
        steps: optimiser steps of ``BATCH`` points.
        shown: coordinates shown of each point, 1 or 2.
        seed: of the run.
    """
    averaged = fresh(seed)
    averaged.load_state_dict(network.state_dict())
    trained = fresh(seed)
    trained.load_state_dict(network.state_dict())
    optimiser = torch.optim.AdamW(trained.parameters(), lr=RATE, betas=(0.9, 0.99), fused=True)
    for step in range(steps):
        x0, positions, noise, uniform = batch(seed, phase, step, shown)
        times = training_times(uniform, DIFFUSION)

        def denoise(x_t: Tensor, t: Tensor, positions: Tensor = positions) -> Tensor:
            return trained(x_t, positions, t)  # type: ignore[no-any-return]

        loss = denoising_loss(denoise, x0, noise, times, DIFFUSION).mean()
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        beta = ema.decay((step + 1) * BATCH, BATCH, HORIZON)
        ema.update(averaged.parameters(), trained.parameters(), beta)
    return averaged


def fresh(seed: int) -> RollDenoiser:
    """Return a network with its first weights; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return RollDenoiser()


@torch.inference_mode()
def sample(network: RollDenoiser, count: int, seed: int) -> np.ndarray:
    """Return points drawn by a network, ``(count, 2)``."""
    path = PATHS[DIFFUSION.path]
    grid = sampling_grid(path, LEVELS)
    start = stream(seed, "swissroll/sample").standard_normal((count, 2, 1), dtype=np.float32)
    positions = torch.arange(2).expand(count, 2)

    def denoise(x: Tensor, time: Tensor) -> Tensor:
        output = network(x, positions[: len(x)], time)
        return to_x0(output, x, time, path, DIFFUSION.prediction).clamp(-1, 1)

    drawn = []
    for part in torch.from_numpy(start).split(10_000):
        *_, last = dpmpp_2m(denoise, grid[0].sigma * part, grid, 0.0, _no_noise)
        drawn.append(last[:, :, 0])
    return torch.cat(drawn).numpy()  # type: ignore[no-any-return]


def _no_noise(step: int) -> Tensor:
    raise AssertionError("dpmpp-2m adds no noise")


def sliced_wasserstein(a: np.ndarray, b: np.ndarray, directions: int = 32) -> float:
    """Return the mean Wasserstein-1 distance of two sets' projections on a fan of lines.

    Args:
        a: ``(n, 2)``.
        b: ``(m, 2)``.
        directions: evenly spread over the half circle.
    """
    from scipy.stats import wasserstein_distance

    angles = np.arange(directions) * pi / directions
    lines = np.stack([np.cos(angles), np.sin(angles)])
    projected: Callable[[np.ndarray], np.ndarray] = lambda points: (points @ lines).T  # noqa: E731
    pairs = zip(projected(a), projected(b), strict=True)
    return float(np.mean([wasserstein_distance(p, q) for p, q in pairs]))
