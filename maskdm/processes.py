"""The processes that compute one thing together, one a GPU or a few on CPUs.

Every process runs the same command. A batch is cut by the place of a sample in it, gradients are
summed, and the first process writes the files; so the number of processes changes results by
rounding only. ``torch.distributed`` carries it: gloo between CPUs, NCCL between GPUs, DDP, or
FSDP2 where the network is to be sharded.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from maskdm.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

Item = TypeVar("Item")
Result = TypeVar("Result")

# What launchers call a worker's number, their count and its number on its host: torchrun, Slurm.
NAMES = (
    ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
    ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"),
)
PATIENCE = timedelta(hours=2)  # one process may write or download while the others wait


@dataclass(frozen=True)
class Processes:
    """One of ``count`` processes.

    Attributes:
        rank: its number, from 0; the first one writes files.
        count: how many there are.
        host: the group in which CPU tensors and objects travel; None if it is alone.
        sharded: whether weights, gradients and moments are spread over the processes (FSDP2).
    """

    rank: int = 0
    count: int = 1
    host: Any = None
    sharded: bool = False

    @property
    def first(self) -> bool:
        """Whether it is the one that writes files and speaks."""
        return self.rank == 0

    def part(self, length: int) -> slice:
        """Return which samples of a batch of ``length`` are this process's."""
        return slice(length * self.rank // self.count, length * (self.rank + 1) // self.count)

    def shard(self, backbone: nn.Module, device: torch.device) -> None:
        """Spread a network's weights over the processes, block by block, if they are sharded."""
        if self.sharded:
            from torch import nn
            from torch.distributed.device_mesh import init_device_mesh
            from torch.distributed.fsdp import fully_shard

            # Of outputs that are views: nothing here changes an output in place.
            warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
            mesh = init_device_mesh(device.type, (self.count,))
            for module in backbone.modules():
                if isinstance(module, nn.ModuleList):
                    for block in module:
                        fully_shard(block, mesh=mesh)
            # Validation changes the weights between two passes: none may stay gathered.
            fully_shard(backbone, mesh=mesh, reshard_after_forward=True)

    def synchronised(
        self, backbone: nn.Module, call: Callable[..., Tensor]
    ) -> Callable[..., Tensor]:
        """Return what to train with: its gradients are averaged over the processes.

        Args:
            backbone: whose gradients.
            call: the network itself, or compiled.
        """
        if self.count == 1 or self.sharded:
            return call
        from torch import nn
        from torch.nn.parallel import DistributedDataParallel

        class Called(nn.Module):
            """DDP takes modules alone, which a compiled network with a fallback is not."""

            def __init__(self) -> None:
                super().__init__()
                self.backbone = backbone

            def forward(self, *inputs: Tensor | None) -> Tensor:
                return call(*inputs)

        # Looking for unused parameters keeps DDP from laying out its buckets anew after the first
        # step: a resumed run would then sum in another order than the run it goes on from.
        return DistributedDataParallel(Called(), find_unused_parameters=True)

    def synchronising(self, network: Any, last: bool) -> AbstractContextManager[None]:
        """Return the context of a forward and backward pass; gradients travel after the last."""
        waits = self.count > 1 and not self.sharded and not last
        return network.no_sync() if waits else nullcontext()

    def total(self, value: Tensor) -> Tensor:
        """Return the sum of a tensor over the processes."""
        if self.count > 1:
            import torch.distributed as dist

            dist.all_reduce(value)
        return value

    def whole(self, tensor: Tensor) -> Tensor:
        """Return a tensor that may be sharded as a whole; all processes must ask."""
        return tensor.full_tensor() if self.sharded and hasattr(tensor, "full_tensor") else tensor

    def gathered(self, tensors: Mapping[str, Tensor], copied: bool) -> dict[str, Tensor]:
        """Return tensors on the CPU, whole, in the first process; nothing in the others.

        All processes must ask. One tensor is gathered at a time, so that a device never holds
        more than one of them whole.

        Args:
            tensors: by name.
            copied: whether what is on the CPU already is copied, since it will be changed.
        """
        found = {}
        for name, tensor in tensors.items():
            whole = self.whole(tensor.detach())
            if self.first:
                found[name] = whole.to("cpu", copy=copied).contiguous()
        return found

    def fill(self, target: Tensor, source: Tensor | None) -> None:
        """Put a tensor that the first process has into that of every process.

        Args:
            target: where it goes, perhaps sharded, on any device.
            source: what it is, on the CPU; None but in the first process.
        """
        import torch

        full = torch.empty(target.shape, dtype=target.dtype) if source is None else source
        if self.count > 1:
            import torch.distributed as dist

            dist.broadcast(full, 0, group=self.host)
        with torch.no_grad():
            if self.sharded and hasattr(target, "full_tensor"):
                target.copy_(_shard_as(full, target))
            else:
                target.copy_(full)

    def any(self, *flags: bool) -> list[bool]:
        """Return for each flag whether any process has set it."""
        if self.count == 1:
            return list(flags)
        import torch
        import torch.distributed as dist

        raised = torch.tensor(flags, dtype=torch.int32)
        dist.all_reduce(raised, dist.ReduceOp.MAX, group=self.host)
        return [bool(flag) for flag in raised.tolist()]

    def told(self, content: Item) -> Item:
        """Return what the first process gave."""
        if self.count == 1:
            return content
        import torch.distributed as dist

        box = [content]
        dist.broadcast_object_list(box, 0, group=self.host)
        return box[0]

    def spread(
        self, items: Sequence[Item], work: Callable[[Item], Result]
    ) -> Iterator[tuple[Item, Result]]:
        """Yield items with what ``work`` makes of them, in order, in the first process.

        Every process takes its turn, so as many items are worked on at once as there are
        processes. The others yield nothing, but must be iterated to the end.
        """
        for start in range(0, len(items), self.count):
            turn = items[start : start + self.count]
            result = work(turn[self.rank]) if self.rank < len(turn) else None
            if self.count == 1:
                results: list[Any] = [result]
            else:
                import torch.distributed as dist

                results = [None] * self.count
                dist.gather_object(result, results if self.first else None, group=self.host)
            if self.first:
                yield from zip(turn, results, strict=False)


ALONE = Processes()


def _shard_as(full: Tensor, target: Any) -> Tensor:
    """Return a whole tensor spread over the processes like the sharded ``target``."""
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(full.to(target.device), target.device_mesh, target.placements)


def worker() -> tuple[int, int, int] | None:
    """Return rank, count and rank on this host as the launcher says; None without one.

    Slurm's numbers count only where the stage itself was the one to call srun (MASKDM_WORKER): a
    batch script has them too.
    """
    for names in NAMES:
        if all(name in os.environ for name in names) and (
            names[0] == "RANK" or "MASKDM_WORKER" in os.environ
        ):
            rank, count, local = (int(os.environ[name]) for name in names)
            return rank, count, local
    return None


def rank() -> int:
    """Return this process's number, 0 if it is alone; known before the others are there."""
    numbers = worker()
    return numbers[0] if numbers else 0


def join(device: torch.device, sharded: bool = False) -> Processes:
    """Return this process among those that its launcher started, once all are there.

    Args:
        device: where this process computes.
        sharded: whether to spread the network's weights over the processes.

    Raises:
        UserError: if a launcher started this process and did not say which one it is.
    """
    numbers = worker()
    if numbers is None and "MASKDM_WORKER" in os.environ:
        raise UserError(
            "The launcher started this process, but told it no number (RANK, WORLD_SIZE and "
            "LOCAL_RANK, or Slurm's): see MASKDM_LAUNCHER in docs/running.md."
        )
    if numbers is None or numbers[1] == 1:
        return ALONE
    import torch.distributed as dist

    number, count, _ = numbers
    backend = "nccl" if device.type == "cuda" else "gloo"
    if not dist.is_initialized():
        dist.init_process_group(
            backend,
            rank=number,
            world_size=count,
            init_method="env://",
            timeout=PATIENCE,
            device_id=device if device.type == "cuda" else None,
        )
    host = dist.new_group(backend="gloo", timeout=PATIENCE)
    return Processes(number, count, host, sharded)


def leave() -> None:
    """Take leave of the other processes, if there are any."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
