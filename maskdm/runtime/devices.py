"""Where the computing happens: chosen from the environment, never from tracked parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING

from maskdm.runtime.distributed import worker
from maskdm.runtime.environment import DEVICE, device_name
from maskdm.runtime.errors import UserError, reason

if TYPE_CHECKING:
    import torch

# CUDA's numbers of what a recording of launches refuses (cudaErrorStreamCapture…): the device is as
# it was.
REFUSED_IN_RECORDING = range(900, 909)


def choose_device(wanted: str | None = None) -> torch.device:
    """Return the device to compute on: a GPU if there is one (each process its own), else the CPU.

    Args:
        wanted: ``cpu``, ``cuda``, ``cuda:1``, ``mps``; by default what the environment variable
            ``MASKDM_DEVICE`` says, if anything.

    Raises:
        UserError: if the device that was asked for does not exist here.
    """
    import torch

    asked_in = DEVICE.name if wanted is None else "The device"
    wanted = DEVICE.get() if wanted is None else wanted
    numbers = worker()
    if wanted in ("", "cuda") and numbers and torch.cuda.is_available():
        # A launcher may show each process one GPU alone, which is then number 0.
        device = torch.device("cuda", numbers.local_rank % torch.cuda.device_count())
        torch.cuda.set_device(device)  # what shards weights asks for the current one
        return device
    if not wanted:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(device_name(wanted))
        torch.zeros(1, device=device)
    except ValueError as allowed:
        raise UserError(f"{asked_in} is '{wanted}', but must be {allowed}.") from None
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"{asked_in} is '{wanted}', which this machine cannot use ({reason(error)}). "
            "Use 'cpu', 'cuda', 'cuda:N' or 'mps', or nothing to have it chosen."
        ) from None
    return device


def is_broken(error: BaseException) -> bool:
    """Return whether an error says that this process can do nothing more on its device.

    torch raises one class for that and for what cannot be recorded in a CUDA graph.
    """
    import torch

    number = getattr(error, "error_code", None)  # as torch calls CUDA's
    return isinstance(error, torch.AcceleratorError) and number not in REFUSED_IN_RECORDING
