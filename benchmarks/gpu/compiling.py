"""How long the compiler takes: when it has seen nothing yet, and when it finds what it made."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from tempfile import TemporaryDirectory

import torch

from benchmarks.gpu.steps import FIRST, endless
from benchmarks.speed.measuring import finish
from maskdm.diffusion.masking import Mask
from maskdm.runtime.execution import Execution
from maskdm.runtime.params import Params
from maskdm.training.phases import PhaseParams

CACHES = "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"


def compiling(
    preset: Params, mask: Mask, params: PhaseParams, execution: Execution
) -> dict[str, float]:
    """Return the seconds of the first steps, compiled: with nothing in the cache, then with all."""
    with TemporaryDirectory() as folder, caching_in(folder):
        return {
            name: first_steps(preset, mask, params, execution)
            for name in ("cold, s", "from the cache, s")
        }


def first_steps(preset: Params, mask: Mask, params: PhaseParams, execution: Execution) -> float:
    """Return the seconds of as many steps as are made before the compiler has nothing to do."""
    torch.compiler.reset()
    started, steps = time.perf_counter(), endless(preset, mask, params, execution)
    for _ in range(FIRST):
        next(steps)
    finish(execution.device)
    steps.close()
    return time.perf_counter() - started


@contextmanager
def caching_in(folder: str) -> Iterator[None]:
    """Have the compiler keep what it makes in a folder, while the context lasts."""
    usual = {name: os.environ.pop(name, None) for name in CACHES}
    os.environ[CACHES[0]] = folder  # the other one follows from it
    try:
        yield
    finally:
        for name, value in usual.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
