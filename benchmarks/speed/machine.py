"""The machine and the versions that figures were measured on and with."""

import os
import platform
from importlib.metadata import version
from pathlib import Path

import torch

from maskdm.runtime.devices import choose_device


def machine() -> dict[str, str | int]:
    """Return what was measured on."""
    device = choose_device()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "cpu": cpu(),
        "cores": os.cpu_count() or 1,
        "memory": f"{memory:.1f} GiB",
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
    }


def cpu() -> str:
    """Return the name of the processor, or of its architecture where no name is to be had."""
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text(encoding="utf-8").splitlines() if listing.exists() else []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def versions() -> dict[str, str]:
    """Return the versions of what the figures depend on."""
    packages = {name: version(name) for name in ("maskdm", "numpy", "dvc")}
    return {"python": platform.python_version(), "torch": torch.__version__, **packages}
