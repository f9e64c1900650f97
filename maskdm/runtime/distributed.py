"""The processes that compute one thing together, one a GPU or a few on CPUs.

Every process runs the same command. Each computes its slice of a batch, gradients are summed, and
the main process writes the files; so the number of processes changes results by rounding only.
``torch.distributed`` does the work: gloo between CPUs, NCCL between GPUs; DDP, or FSDP2 where the
network is to be sharded.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from maskdm.runtime.environment import WORKER
from maskdm.runtime.errors import UserError

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
ENDED = "The same command goes on from the last checkpoint."
GLOO = ("gloo/transport", "Connection closed by peer", "Connection reset by peer")
PATIENCE = timedelta(hours=2)  # one process may write or download while the others wait


@dataclass(frozen=True)
class Processes:
    """This process among ``count`` that compute together.

    Attributes:
        rank: its number, from 0; process 0 is the main one, which writes files.
        count: how many there are.
        cpu_group: the group in which CPU tensors and objects travel; None for a single process.
        sharded: whether weights, gradients and moments are spread over the processes (FSDP2).
    """

    rank: int = 0
    count: int = 1
    cpu_group: Any = None
    sharded: bool = False

    @property
    def is_main(self) -> bool:
        """Whether it is the process that writes files and prints."""
        return self.rank == 0

    def part(self, length: int) -> slice:
        """Return this process's slice of a batch of ``length`` samples."""
        return slice(length * self.rank // self.count, length * (self.rank + 1) // self.count)

    def shard(self, backbone: nn.Module, device: torch.device) -> None:
        """Spread a network's weights over the processes, block by block, if they are sharded."""
        if self.sharded:
            from torch import nn
            from torch.distributed.device_mesh import init_device_mesh
            from torch.distributed.fsdp import fully_shard

            # The warning is about outputs that are views: none is changed in place here.
            warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
            mesh = init_device_mesh(device.type, (self.count,))
            for module in backbone.modules():
                if isinstance(module, nn.ModuleList):
                    for block in module:
                        fully_shard(block, mesh=mesh)
            # Validation changes the weights between two passes: none may stay gathered.
            fully_shard(backbone, mesh=mesh, reshard_after_forward=True)

    def data_parallel(
        self, backbone: nn.Module, call: Callable[..., Tensor]
    ) -> Callable[..., Tensor]:
        """Return the network to train with: its gradients are averaged over the processes.

        Args:
            backbone: the network that holds the gradients.
            call: the network itself, or compiled.
        """
        if self.count == 1 or self.sharded:
            return call
        from torch import nn
        from torch.nn.parallel import DistributedDataParallel

        class Called(nn.Module):
            """DDP accepts modules only, and a compiled network with a fallback is none."""

            def __init__(self) -> None:
                super().__init__()
                self.backbone = backbone

            def forward(self, *inputs: Tensor | None) -> Tensor:
                return call(*inputs)

        # Looking for unused parameters keeps DDP from rebuilding its buckets after the first step:
        # a resumed run would then sum in another order than the run that it continues.
        return DistributedDataParallel(Called(), find_unused_parameters=True)

    def no_sync(self, network: Any, last: bool) -> AbstractContextManager[None]:
        """Return the context of a forward and backward pass; gradients are averaged in the last."""
        waits = self.count > 1 and not self.sharded and not last
        return network.no_sync() if waits else nullcontext()

    def sum(self, value: Tensor) -> Tensor:
        """Return the sum of a tensor over the processes."""
        if self.count > 1:
            import torch.distributed as dist

            dist.all_reduce(value)
        return value

    def full_tensor(self, tensor: Tensor) -> Tensor:
        """Return a whole tensor from one that may be sharded; all processes must call."""
        return tensor.full_tensor() if self.sharded and hasattr(tensor, "full_tensor") else tensor

    def gather(self, tensors: Mapping[str, Tensor], copied: bool) -> dict[str, Tensor]:
        """Return whole tensors on the CPU in the main process; nothing in the others.

        All processes must call. One tensor is gathered at a time, so that a device never holds
        more than one of them whole.

        Args:
            tensors: by name.
            copied: whether tensors that are on the CPU already are copied, too.
        """
        found = {}
        for name, tensor in tensors.items():
            full = self.full_tensor(tensor.detach())
            if self.is_main:
                found[name] = full.to("cpu", copy=copied).contiguous()
        return found

    def broadcast(self, target: Tensor, source: Tensor | None) -> None:
        """Copy a tensor of the main process into a tensor of every process.

        Args:
            target: the destination, perhaps sharded, on any device.
            source: the values, on the CPU; None in all processes but the main one.
        """
        import torch

        full = torch.empty(target.shape, dtype=target.dtype) if source is None else source
        if self.count > 1:
            import torch.distributed as dist

            dist.broadcast(full, 0, group=self.cpu_group)
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
        dist.all_reduce(raised, dist.ReduceOp.MAX, group=self.cpu_group)
        return [bool(flag) for flag in raised.tolist()]

    def broadcast_object(self, content: Item) -> Item:
        """Return what the main process passed."""
        if self.count == 1:
            return content
        import torch.distributed as dist

        box = [content]
        dist.broadcast_object_list(box, 0, group=self.cpu_group)
        return box[0]

    def map(
        self, items: Sequence[Item], work: Callable[[Item], Result]
    ) -> Iterator[tuple[Item, Result]]:
        """Yield items with the results of ``work``, in order, in the main process.

        As many items are worked on at once as there are processes. The other processes yield
        nothing, but must be iterated to the end.
        """
        for start in range(0, len(items), self.count):
            turn = items[start : start + self.count]
            result = work(turn[self.rank]) if self.rank < len(turn) else None
            if self.count == 1:
                results: list[Any] = [result]
            else:
                import torch.distributed as dist

                results = [None] * self.count
                dist.gather_object(result, results if self.is_main else None, group=self.cpu_group)
            if self.is_main:
                yield from zip(turn, results, strict=False)


ALONE = Processes()


def _shard_as(full: Tensor, target: Any) -> Tensor:
    """Return a whole tensor spread over the processes like the sharded ``target``."""
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(full.to(target.device), target.device_mesh, target.placements)


@dataclass(frozen=True)
class Worker:
    """What a launcher tells a process: its number, their count, its number on its host."""

    rank: int
    count: int
    local_rank: int


def worker() -> Worker | None:
    """Return what the launcher says; None without one.

    Slurm's numbers count only where the stage itself called srun (MASKDM_WORKER): a batch script
    has them too.
    """
    for names in NAMES:
        if all(name in os.environ for name in names) and (names[0] == "RANK" or WORKER.get()):
            try:
                return Worker(*(int(os.environ[name]) for name in names))
            except ValueError:
                said = ", ".join(f"{name}={os.environ[name]}" for name in names)
                raise UserError(
                    f"A launcher set {said}, which are not all numbers: unset them, or start the "
                    "stage through the launcher again."
                ) from None
    return None


def rank() -> int:
    """Return this process's number, 0 without a launcher; known before the others are there."""
    try:
        numbers = worker()
    except UserError:  # said by whoever needs more than the number
        numbers = None
    return numbers.rank if numbers else 0


def another_has_ended(error: Exception) -> bool:
    """Return whether an error comes of another of the processes, which is there no longer."""
    if not isinstance(error, RuntimeError) or worker() is None:
        return False
    import torch.distributed as dist

    if not dist.is_available():
        return False
    # gloo's are plain RuntimeErrors.
    return isinstance(error, dist.DistError) or any(said in str(error) for said in GLOO)


def join(device: torch.device, sharded: bool = False) -> Processes:
    """Return this process among those that its launcher started, once all are there.

    Args:
        device: where this process computes.
        sharded: whether to spread the network's weights over the processes.

    Raises:
        UserError: if a launcher started this process and did not say which one it is.
    """
    numbers = worker()
    if numbers is None and WORKER.get():
        raise UserError(
            "The launcher started this process, but gave it no number (RANK, WORLD_SIZE and "
            "LOCAL_RANK, or Slurm's): see MASKDM_LAUNCHER in docs/running.md."
        )
    if numbers is None or numbers.count == 1:
        return ALONE
    import torch.distributed as dist

    number, count = numbers.rank, numbers.count
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
    cpu_group = dist.new_group(backend="gloo", timeout=PATIENCE)
    return Processes(number, count, cpu_group, sharded)


def leave() -> None:
    """Take leave of the other processes, if there are any."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
