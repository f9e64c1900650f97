"""Averaged weights, with a horizon counted in images.

``θ̄ ← β·θ̄ + (1 − β)·θ`` with ``β = exp(−batch / horizon)``: a horizon in images averages over the
same data whatever the batch size, so that a run with more steps is not favoured. Early on the
horizon is a tenth of what was seen (the ramp-up of Karras et al. 2022), or the average would
remember the random start.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from math import exp

import torch
from torch import Tensor

RAMP_UP = 0.1


def decay(images_seen: int, batch_size: int, horizon: int) -> float:
    """Return β of the update after ``images_seen`` images (this batch included)."""
    now = min(float(horizon), RAMP_UP * images_seen)
    return exp(-batch_size / now) if now > 0 else 0.0


@torch.no_grad()
def update(averaged: Iterable[Tensor], current: Iterable[Tensor], weight: float | Tensor) -> None:
    """Move ``averaged`` towards ``current`` in place; both in the same order and shapes.

    Args:
        averaged: θ̄.
        current: θ.
        weight: 1 − β; a 0-d tensor on their device is read when the launches of a step are
            replayed.
    """
    averaged, current = list(averaged), [c.detach() for c in current]
    if not isinstance(weight, Tensor):
        torch._foreach_lerp_(averaged, current, weight)
        return
    changes = torch._foreach_sub(current, averaged)  # lerp takes no weight from memory
    torch._foreach_mul_(changes, weight)
    torch._foreach_add_(averaged, changes)


@contextmanager
def applied(parameters: Mapping[str, Tensor], averaged: Mapping[str, Tensor]) -> Iterator[None]:
    """Let a network have the averaged weights for a while; these have the network's meanwhile.

    Args:
        parameters: the network's, by name; they are as before afterwards.
        averaged: what they are to be; as before afterwards, too.
    """
    _exchange(parameters, averaged)
    try:
        yield
    finally:
        _exchange(parameters, averaged)


@torch.no_grad()
def _exchange(weights: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> None:
    """Exchange the contents of two sets of tensors, one at a time, which needs no memory."""
    for name, weight in weights.items():
        held = weight.clone()
        weight.copy_(others[name])
        others[name].copy_(held)
