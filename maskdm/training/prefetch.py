"""Prefetching: the next batches are made and sent while an accelerator computes this step.

A batch is a function of its step, so any thread may make it at any time. On a CPU nothing is gained
by making it beside the computation, and each batch is made when it is needed.
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import torch

from maskdm.runtime.threads import background_threads
from maskdm.training.batches import CPU, Batch

PREFETCHED = 4  # batches under way, each in a thread of its own


@contextmanager
def prefetched(
    make: Callable[[int, torch.device], Batch], steps: int, device: torch.device
) -> Iterator[Callable[[int], Batch]]:
    """Provide a function from a step to its batch on ``device``, for steps in turn.

    Args:
        make: from a step (from 0) and a device to its batch there.
        steps: there are no batches from this step on.
        device: the destination.
    """
    if device.type == "cpu":
        yield lambda step: make(step, device)
        return
    beside = _MadeBeside(make, device) if device.type == "cuda" else None
    under_way: dict[int, Future[Any]] = {}

    def prepare(step: int) -> Any:
        return beside.begin(step) if beside else make(step, CPU)

    def take(step: int) -> Batch:
        for later in range(step, min(step + PREFETCHED, steps)):
            if later not in under_way:
                under_way[later] = pool.submit(prepare, later)
        found = under_way.pop(step).result()
        return beside.end(*found) if beside else found.to(device)

    pool = background_threads(PREFETCHED, "batches")
    try:
        yield take
    finally:
        pool.shutdown(cancel_futures=True)


class _MadeBeside:
    """Has batches made for a GPU on a stream of their own, while it computes on another."""

    def __init__(self, make: Callable[[int, torch.device], Batch], device: torch.device) -> None:
        self.make, self.device = make, device
        # Of high priority, since those are not among the streams on which steps are recorded.
        self.stream = torch.cuda.Stream(device, priority=-1)
        self.taken: deque[torch.cuda.Event] = deque()

    def begin(self, step: int) -> tuple[Batch, torch.cuda.Event]:
        """Make a batch; return it, and what says that it is there."""
        # A thread begins on the first GPU, and to go back there would open it for this process.
        with torch.cuda.device(self.device), torch.cuda.stream(self.stream):
            return self.make(step, self.device), self.stream.record_event()

    def end(self, batch: Batch, there: torch.cuda.Event) -> Batch:
        """Return a batch, on which the computing stream may build from here on.

        The host runs ahead of the GPU by a few steps alone, since their batches take memory.
        """
        computing = torch.cuda.current_stream(self.device)
        self.taken.append(computing.record_event())
        if len(self.taken) > PREFETCHED:
            self.taken.popleft().synchronize()
        computing.wait_event(there)
        for tensor in batch:
            if tensor is not None:
                tensor.record_stream(computing)
        return batch
