"""Prefetching: the next batches are made and copied while an accelerator computes this step.

A batch is a function of its step, so any thread may make it at any time. On a CPU nothing is gained
by making it beside the computation, and each batch is made when it is needed.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager

import torch

from maskdm.runtime.threads import background_threads
from maskdm.training.batches import Batch

PREFETCHED = 4  # batches under way, each in a thread of its own


@contextmanager
def prefetched(
    make: Callable[[int], Batch], steps: int, device: torch.device
) -> Iterator[Callable[[int], Batch]]:
    """Provide a function from a step to its batch on ``device``, for steps in turn.

    Args:
        make: from a step (from 0) to its batch on the CPU.
        steps: there are no batches from this step on.
        device: the destination.
    """
    if device.type == "cpu":
        yield make
        return
    pinned = device.type == "cuda"
    under_way: dict[int, Future[Batch]] = {}

    def prepare(step: int) -> Batch:
        batch = make(step)
        return batch.pinned() if pinned else batch

    def take(step: int) -> Batch:
        for later in range(step, min(step + PREFETCHED, steps)):
            if later not in under_way:
                under_way[later] = pool.submit(prepare, later)
        return under_way.pop(step).result().to(device)

    pool = background_threads(PREFETCHED, "batches")
    try:
        yield take
    finally:
        pool.shutdown(cancel_futures=True)
