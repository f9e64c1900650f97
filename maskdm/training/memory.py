"""The least memory that the pipeline can do with, from the cost model: what cannot be is not begun.

Every figure is a lower bound, far below what is really taken: only what no setting of the
environment can make fit is refused.
"""

import os
from dataclasses import dataclass

import torch

from maskdm.backbones.denoiser import Denoiser
from maskdm.backbones.transformer import OUTER
from maskdm.diffusion.masking import Mask, nothing_masked
from maskdm.runtime.environment import DEVICE, LAUNCHER, SHARD
from maskdm.runtime.errors import UserError
from maskdm.training.schedule import Schedule

NUMBER = 4  # bytes of one in fp32
PER_WEIGHT = 5  # the weight, its gradient, AdamW's two moments, its average
PER_TOKEN = 8  # activations of width ``dim`` that a block keeps for its backward pass, at least
GIB = 2**30


@dataclass(frozen=True)
class Memory:
    """How much memory there is, in bytes; None where it is unknown or shared by several hosts.

    Attributes:
        device: where weights and activations are.
        host: where batches and samples are.
    """

    device: int | None
    host: int | None

    @classmethod
    def of_this_machine(cls) -> "Memory":
        """Return the memory where the environment would have the stages run."""
        if LAUNCHER.get():  # on other machines, which are not known here
            return cls(None, None)
        host, asked = _host_bytes(), DEVICE.get()
        device = host if asked in ("cpu", "mps") else _gpu_bytes(asked) or host
        return cls(None if SHARD.get() else device, host)


def _host_bytes() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return None


def _gpu_bytes(asked: str) -> int | None:
    """Return the memory of the GPU asked for (``cuda:1``), of the first by default; None if none.

    A GPU that is not there is for the stages to refuse.
    """
    if not torch.cuda.is_available():
        return None
    number = asked.partition(":")[2]
    index = int(number) if number.isdecimal() else 0
    there = index < torch.cuda.device_count()
    return int(torch.cuda.get_device_properties(index).total_memory) if there else None


def least_bytes(network: Denoiser, schedule: Schedule, dim: int, depth: int) -> int:
    """Return the bytes that a phase needs on its device at least, with one image at a time.

    Args:
        network: its sizes count, not its values.
        schedule: of the phase.
        dim: width of the network.
        depth: its blocks.
    """
    weights = sum(parameter.numel() for parameter in network.parameters())

    def tokens(mask: Mask) -> int:
        """Return how many tokens all blocks together see."""
        outer = min(2 * OUTER, depth)
        return outer * mask.shown + (depth - outer) * (mask.in_middle or mask.shown)

    most = max(map(tokens, _masks(schedule)))
    return NUMBER * (PER_WEIGHT * weights + PER_TOKEN * most * dim)


def batch_bytes(schedule: Schedule, values: int) -> int:
    """Return the bytes of the largest batch of a phase: its patches and their noise.

    Args:
        schedule: of the phase.
        values: numbers of a patch, p²·C.
    """
    whole = nothing_masked(schedule.legs[0].mask.grid).shown
    patches = (
        leg.batch_size * (whole if schedule.full_share else leg.mask.shown) for leg in schedule.legs
    )
    return max(patches) * values * 2 * NUMBER


def _masks(schedule: Schedule) -> list[Mask]:
    """Return all masks of a phase, that of the mixture's whole images too."""
    masks = [leg.mask for leg in schedule.legs]
    return [*masks, nothing_masked(masks[0].grid)] if schedule.full_share else masks


def check_memory(what: str, least: int, there: int | None, change: str) -> None:
    """Check that something can fit into memory.

    Args:
        what: that needs it.
        least: the bytes that it needs at least.
        there: the bytes that there are; None if unknown.
        change: what to do where there are too few.

    Raises:
        UserError: with both numbers and what to change.
    """
    if there is not None and least > there:
        raise UserError(
            f"{what} needs at least {least / GIB:.1f} GiB of memory, and there are "
            f"{there / GIB:.1f}: {change}."
        )
