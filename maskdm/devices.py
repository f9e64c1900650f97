"""Where the computing happens: chosen from the environment, never from tracked parameters.

A device, a thread count or a micro-batch must not enter ``params.yaml``: the same experiment on
another machine would then count as another experiment.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, TypeVar

from maskdm.errors import UserError
from maskdm.processes import worker

if TYPE_CHECKING:
    import torch

Default = TypeVar("Default", int, None)


def choose_device(wanted: str | None = None) -> torch.device:
    """Return the device to compute on: a GPU if there is one (each process its own), else the CPU.

    Args:
        wanted: ``cpu``, ``cuda``, ``cuda:1``, ``mps``; by default what the environment variable
            ``MASKDM_DEVICE`` says, if anything.

    Raises:
        UserError: if the device that was asked for does not exist here.
    """
    import torch

    where = "MASKDM_DEVICE" if wanted is None else "The device"
    wanted = os.environ.get("MASKDM_DEVICE", "") if wanted is None else wanted
    numbers = worker()
    if wanted in ("", "cuda") and numbers and torch.cuda.is_available():
        # A launcher may show each process one GPU alone, which is then number 0.
        device = torch.device("cuda", numbers[2] % torch.cuda.device_count())
        torch.cuda.set_device(device)  # what shards weights asks for the current one
        return device
    if not wanted:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wanted)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{where} is '{wanted}', which this machine cannot use ({reason}). "
            "Use 'cpu', 'cuda', 'cuda:N' or 'mps', or nothing to have it chosen."
        ) from None
    return device


def switched_on(variable: str) -> bool:
    """Return whether an environment variable is 1; 0 and nothing are no.

    Raises:
        UserError: if it is set to anything else.
    """
    text = os.environ.get(variable, "") or "0"
    if text not in ("0", "1"):
        raise UserError(f"{variable} is '{text}', but must be 0 or 1.")
    return text == "1"


def whole_number(variable: str, default: Default) -> int | Default:
    """Return the positive whole number in an environment variable.

    Raises:
        UserError: if it is set to anything else.
    """
    text = os.environ.get(variable, "")
    if not text:
        return default
    if not text.isdigit() or int(text) < 1:
        raise UserError(f"{variable} is '{text}', but must be a whole number >= 1.")
    return int(text)
