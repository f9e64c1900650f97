"""The next batches, made and carried over while an accelerator computes the present step.

A batch is a function of its step, so any thread may make it at any time. On CPUs there is nobody to
do it beside the computing, and each batch is made when it is needed.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager

import torch

from maskdm.batches import Batch
from maskdm.beside import threads_beside

AHEAD = 4  # batches under way, each in a thread of its own


@contextmanager
def made_ahead(
    make: Callable[[int], Batch], steps: int, device: torch.device
) -> Iterator[Callable[[int], Batch]]:
    """Provide a function from a step to its batch on ``device``, for steps in turn.

    Args:
        make: from a step (from 0) to its batch on the CPU.
        steps: there are no batches from this step on.
        device: where they are to be.
    """
    if device.type == "cpu":
        yield make
        return
    pinned = device.type == "cuda"
    under_way: dict[int, Future[Batch]] = {}

    def carry(step: int) -> Batch:
        batch = make(step)
        return batch.pinned() if pinned else batch

    def take(step: int) -> Batch:
        for later in range(step, min(step + AHEAD, steps)):
            if later not in under_way:
                under_way[later] = pool.submit(carry, later)
        return under_way.pop(step).result().to(device)

    pool = threads_beside(AHEAD, "batches")
    try:
        yield take
    finally:
        pool.shutdown(cancel_futures=True)
