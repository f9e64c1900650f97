"""Numerics: what the last bits of a sum depend on, apart from the numbers.

On one device, with one number of threads and processes and one version of torch, training is
reproducible to the bit; where one of these differs, sums are taken in another order. A checkpoint
records under which of these its steps were made. MASKDM_EXACT=1 accepts nothing but the same bits:
kernels that are deterministic on GPUs too (some are not by default), only checkpoints that were
computed as this run computes, from their first step on, and no going on without a compiler or CUDA
graphs where they turn out not to work.
"""

import os
import platform
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch

from maskdm.runtime.environment import EXACT
from maskdm.runtime.execution import Execution


def choose_kernels() -> None:
    """Make torch use deterministic kernels only, if exactness is asked for.

    An operation that has none raises torch's own error, which names it.
    """
    if EXACT.get():
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS: as torch asks for
        torch.use_deterministic_algorithms(True)


def numerics(execution: Execution) -> dict[str, str | int | bool | None]:
    """Return what this run's rounding depends on, for people and for comparison."""
    device = execution.device
    return {
        "device": device_name(device),
        "threads": torch.get_num_threads() if device.type == "cpu" else None,
        "processes": execution.processes.count,
        "sharded": execution.processes.sharded,
        "micro-batch": execution.micro_batch,
        "compiled": execution.compiles,
        "replayed": execution.replays,
        "deterministic kernels": torch.are_deterministic_algorithms_enabled(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }


def device_name(device: torch.device) -> str:
    """Return the kind of a device, down to the instructions and the model."""
    if device.type == "cuda":
        return f"cuda ({torch.cuda.get_device_name(device)})"
    if device.type == "cpu":
        capability = torch.backends.cpu.get_cpu_capability()
        return f"cpu ({', '.join([platform.machine(), capability, *_cpu_model()])})"
    return device.type


def _cpu_model() -> list[str]:
    """Return the model of this machine's CPU, as far as the system tells it."""
    with suppress(OSError):  # Linux has it; a library chooses its kernels by more than capability
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            name, _, model = line.partition(":")
            if name.strip() == "model name" and model.strip():
                return [" ".join(model.split())]
    return [platform.processor()] if platform.processor() else []
