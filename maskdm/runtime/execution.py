"""Where and how to compute: one object for what changes results by rounding only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import pairwise
from math import ceil
from typing import TYPE_CHECKING, Any, Literal

from maskdm.runtime.devices import choose_device
from maskdm.runtime.distributed import ALONE, Processes, join
from maskdm.runtime.environment import COMPILE, EXACT, MICRO_BATCH, REPLAY, SHARD

if TYPE_CHECKING:
    import torch

Precision = Literal["fp32", "bf16", "fp16"]


@dataclass(frozen=True)
class Execution:
    """Where and how a computation runs.

    Attributes:
        device: where.
        processes: who shares the work.
        micro_batch: images in one forward pass of a process, to bound memory; None for all.
        precision: fp32, or autocast to bf16 or fp16; unlike the rest a tracked parameter.
        compiles: whether training compiles the network.
        replays: whether training steps are recorded as CUDA graphs and replayed.
        strict: whether it is an error if compiling or replaying does not work here, in place of
            going on without, to other last bits.
    """

    device: torch.device
    processes: Processes = ALONE
    micro_batch: int | None = None
    precision: Precision = "fp32"
    compiles: bool = False
    replays: bool = False
    strict: bool = False

    @classmethod
    def from_environment(cls, precision: Precision = "fp32") -> Execution:
        """Return what the environment asks for, once all processes are there.

        Raises:
            UserError: if a variable, the device or the launcher is wrong.
        """
        device = choose_device()
        processes, cuda = join(device, SHARD.get()), device.type == "cuda"
        return cls(
            device,
            processes,
            MICRO_BATCH.get(),
            precision,
            compiles=cuda and COMPILE.get(),
            # What processes say to each other within a step is not recorded.
            replays=cuda and REPLAY.get() and processes.count == 1,
            strict=EXACT.get(),
        )

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context in which a forward pass runs at this precision."""
        if self.precision == "fp32":
            return nullcontext()
        import torch

        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float16
        return torch.autocast(self.device.type, dtype)

    def passes(self, batch_size: int) -> Iterator[slice]:
        """Yield the slices of this process's part of a batch that pass through a network at once.

        All processes make equally many passes, so that their gradients meet; where their shares
        differ by an image, a pass may be an image longer than the micro-batch.

        Args:
            batch_size: images of the global batch.
        """
        count = self.processes.count
        largest, smallest = ceil(batch_size / count), batch_size // count
        passes = min(smallest, ceil(largest / (self.micro_batch or largest)))
        own = self.processes.part(batch_size)
        length = own.stop - own.start
        for first, last in pairwise(length * number // passes for number in range(passes + 1)):
            yield slice(first, last)
