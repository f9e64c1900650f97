"""The least memory that a phase can do with, from the cost model: what cannot be, is not begun."""

import os

import torch

from maskdm.backbones.denoiser import Denoiser
from maskdm.runtime.errors import UserError
from maskdm.training.schedule import Schedule

NUMBER = 4  # bytes of one in fp32
PER_WEIGHT = 5  # the weight, its gradient, AdamW's two moments, its average
PER_TOKEN = 8  # activations of width ``dim`` that a block keeps for its backward pass, at least


def least_bytes(network: Denoiser, schedule: Schedule, dim: int, depth: int) -> int:
    """Return the bytes that a phase needs at least, with one image at a time.

    Args:
        network: its sizes count, not its values.
        schedule: of the phase.
        dim: width of the network.
        depth: its blocks.
    """
    weights = sum(parameter.numel() for parameter in network.parameters())
    tokens = max(leg.mask.shown for leg in schedule.legs)
    return NUMBER * (PER_WEIGHT * weights + PER_TOKEN * tokens * dim * depth)


def machine_bytes() -> int | None:
    """Return the memory where training runs, of the GPU or of the machine; None if unknown."""
    if torch.cuda.is_available():
        return int(torch.cuda.get_device_properties(0).total_memory)
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return None


def check_memory(phase: str, least: int, there: int | None, sharded: bool) -> None:
    """Check that a phase can fit into memory.

    Args:
        phase: ``"pretrain"`` or ``"finetune"``.
        least: the bytes that it needs at least.
        there: the bytes that there are; None if unknown.
        sharded: whether several processes share what it needs, which may then be on several hosts.

    Raises:
        UserError: saying what to change.
    """
    if there is not None and least > there and not sharded:
        raise UserError(
            f"{phase} needs at least {least / 2**30:.1f} GiB of memory, and there are "
            f"{there / 2**30:.1f}: lower model.dim, model.depth or data.resolution, or spread the "
            "weights over several processes with MASKDM_SHARD=1."
        )
