"""Noise between two noises, along a great circle."""

import numpy as np
import torch
from torch import Tensor


def slerp(one: Tensor, other: Tensor, share: float) -> Tensor:
    """Return the point at ``share`` of the great circle from one noise to another (Shoemake 1985).

    Between two noises of equal norm it has that norm too, which points on the line have not: a
    network would take them for noise of another level.
    """
    cosine = torch.nn.functional.cosine_similarity(one.flatten(), other.flatten(), dim=0)
    angle = torch.acos(cosine.clamp(-1, 1))
    return (torch.sin((1 - share) * angle) * one + torch.sin(share * angle) * other) / angle.sin()


def between(one: Tensor, other: Tensor, count: int) -> Tensor:
    """Return ``count`` noises evenly spaced from one noise to another, both included.

    Args:
        one: ``(N, p²·C)``.
        other: the same shape, and not the same noise.
        count: how many.

    Returns:
        ``(count, N, p²·C)``.
    """
    return torch.stack([slerp(one, other, s) for s in np.linspace(0, 1, count)])
