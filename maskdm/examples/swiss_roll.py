"""The paper's picture in two dimensions: a Swiss roll learnt from its marginals, then finetuned.

A point z = (x, y) is a set of two tokens of one number each. Masked pretraining shows one of them,
so the network can learn p(x) and p(y) only: a primer. Finetuning shows both. Loss, loop, averages
and solver are those of the images (MaskDM, section 3 and its figure of the Swiss roll).
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from math import pi
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from maskdm.backbones.denoiser import Denoiser
from maskdm.backbones.layers import embed_time
from maskdm.diffusion.loss import DiffusionParams
from maskdm.diffusion.masking import nothing_masked
from maskdm.diffusion.randomness import stream
from maskdm.runtime.execution import Execution
from maskdm.sampling.sampler import SampleParams, estimates
from maskdm.training import loop
from maskdm.training.batches import WHOLE, Batch
from maskdm.training.phases import PhaseParams
from maskdm.training.schedule import Leg, Schedule
from maskdm.training.state import State

TURNS = (1.5 * pi, 4.5 * pi)  # angles of the roll's two ends
DIFFUSION = DiffusionParams(
    path="flow",
    prediction="x0",
    loss="velocity",
    times="logit-normal",
    times_mean=0.0,
    times_std=1.5,
)
PHASE = PhaseParams(
    steps=0,  # set by train
    batch_size=512,
    lr=6e-3,
    warmup=50,
    cooldown=0,
    betas=(0.9, 0.95),
    weight_decay=0.0,
    clip=None,
    hflip=0.0,
    ema_images=50_000,
    precision="fp32",
    log_every=1000,
    validate_every=1000,
    label_dropout=0.0,
)
SAMPLING = SampleParams(
    count=1,  # set by sample
    solver="dpmpp-2m",
    nfe=12,
    eta=0.0,
    guidance_scale=1.0,
    guidance_interval=(0.0, 1.0),
    weights="averaged",
    seed=0,
)
CPU = torch.device("cpu")
ON_CPU = Execution(CPU)
AT_ONCE = 5_000  # points that are sampled together


def roll(share: np.ndarray) -> np.ndarray:
    """Return the points at ``share`` of the roll, 0 its inner and 1 its outer end.

    Args:
        share: ``(count,)`` in [0, 1].

    Returns:
        ``(count, 2)`` within [−1, 1]: radius grows with the angle.
    """
    angle = TURNS[0] + (TURNS[1] - TURNS[0]) * share
    points = angle[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return points / (1.05 * TURNS[1])


class Block(nn.Module):
    """A residual MLP; the other coordinates enter through weights that start at zero.

    Where a coordinate is alone they get no gradient and stay at zero: after masked pretraining
    the network is exactly the product of its marginals.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.own = nn.Linear(dim, 2 * dim)
        self.others = nn.Linear(dim, 2 * dim, bias=False)
        self.out = nn.Linear(2 * dim, dim)
        nn.init.zeros_(self.others.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(batch, shown, dim)`` to the same shape."""
        own = self.norm(x)
        others = own.sum(dim=1, keepdim=True) - own
        return x + self.out(functional.gelu(self.own(own) + self.others(others)))


class RollDenoiser(Denoiser):
    """A small network on sets of coordinates; position 0 is x, 1 is y.

    Args:
        dim: its width.
        depth: its blocks.
    """

    frequencies: Tensor

    def __init__(self, dim: int = 64, depth: int = 2) -> None:
        super().__init__()
        self.dim = dim
        # Coordinates in [-1, 1] as waves of 4 units and its octaves
        self.register_buffer("frequencies", 2.0 ** torch.arange(6) * pi / 2, persistent=False)
        self.embed = nn.Linear(1 + 2 * len(self.frequencies), dim)
        self.positions = nn.Embedding(2, dim)
        self.blocks = nn.Sequential(*(Block(dim) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, 1)

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        time: Tensor,
        label: Tensor | None = None,
        middle: Tensor | None = None,
    ) -> Tensor:
        """Denoise coordinates ``(batch, shown, 1)``; as ``Denoiser.forward``."""
        angles = tokens * self.frequencies
        x = self.embed(torch.cat([tokens, angles.sin(), angles.cos()], dim=2))
        x = x + self.positions(positions) + embed_time(time, self.dim)[:, None]
        return self.head(self.norm(self.blocks(x)))


@dataclass(frozen=True)
class RollBatches:
    """Points of the roll, new ones at every step.

    Attributes:
        schedule: how many points a step, and the learning rates.
        shown: coordinates shown of each point: 1 (either as often) or 2.
        phase: separate phases share no random numbers.
        seed: of the run.
    """

    schedule: Schedule
    shown: int
    phase: str
    seed: int

    def at(self, step: int, part: slice = WHOLE, device: torch.device = CPU) -> Batch:
        """Return points ``part`` of the batch of a step (from 0), tokens ``(batch, shown, 1)``."""
        leg, _ = self.schedule.leg(step)
        size = leg.batch_size
        random = stream(self.seed, f"swissroll/{self.phase}", step)
        points = roll(random.random(size))
        positions = random.random((size, 2)).argsort(axis=1)[:, : self.shown]
        tokens = np.take_along_axis(points, positions, axis=1)[:, :, None].astype(np.float32)
        noise = random.standard_normal(tokens.shape, dtype=np.float32)
        uniform = ((np.arange(size) / size + random.random()) % 1).astype(np.float32)
        drawn = (torch.from_numpy(array[part]) for array in (tokens, positions, noise, uniform))
        return Batch(*drawn).to(device)


class NoValidator:
    """Validates nothing; the samples are measured in the end."""

    def errors(self, denoise: Callable[..., Tensor]) -> dict[str, float]:
        """Return no errors."""
        return {}


def train(network: RollDenoiser, phase: str, steps: int, shown: int, seed: int) -> RollDenoiser:
    """Return a copy of ``network`` trained further, its weights averaged.

    Args:
        network: where to start.
        phase: names the random numbers.
        steps: optimiser steps; over the last half of those on whole points the rate falls to 0.
        shown: coordinates shown of each point, 1 or 2.
        seed: of the run.
    """
    leg = Leg(nothing_masked(1), steps, PHASE.batch_size, PHASE.lr, min(PHASE.warmup, steps // 4))
    schedule = Schedule((leg,), steps, steps // 2 if shown == 2 else 0)
    batches = RollBatches(schedule, shown, phase, seed)
    state = State.start(deepcopy(network), PHASE)
    for _ in loop.train(state, batches, NoValidator(), DIFFUSION, PHASE, ON_CPU):
        pass
    state.backbone.load_state_dict(state.averaged)
    return cast(RollDenoiser, state.backbone)


def fresh(seed: int) -> RollDenoiser:
    """Return a network with its first weights; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return RollDenoiser()


def sample(network: RollDenoiser, count: int, seed: int) -> np.ndarray:
    """Return points drawn by a network, ``(count, 2)``."""
    noise = stream(seed, "swissroll/sample").standard_normal((count, 2, 1), dtype=np.float32)
    drawn = []
    for start in torch.from_numpy(noise).split(AT_ONCE):
        indices = range(len(start))
        *_, last = estimates(network, DIFFUSION, SAMPLING, (2, 1), indices, CPU, start=start)
        drawn.append(last[:, :, 0])
    return torch.cat(drawn).numpy()


def sliced_wasserstein(a: np.ndarray, b: np.ndarray, directions: int = 32) -> float:
    """Return the mean Wasserstein-1 distance of two sets' projections on a fan of lines.

    On a line, that of two sets of one size is the mean distance of their points in order.

    Args:
        a: ``(count, 2)``.
        b: ``(count, 2)``.
        directions: evenly spread over the half circle.
    """
    angles = np.arange(directions) * pi / directions
    lines = np.stack([np.cos(angles), np.sin(angles)])
    return float(np.abs(np.sort(a @ lines, axis=0) - np.sort(b @ lines, axis=0)).mean())
