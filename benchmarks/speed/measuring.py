"""How things are measured: interleaved, repeated until the medians stand still.

A machine's speed drifts, so what is to be compared takes turns (A B A B …), and every round gives
one number of each.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from math import pi, sqrt
from pathlib import Path
from statistics import median, quantiles
from typing import TYPE_CHECKING

from maskdm.runtime.errors import UserError

if TYPE_CHECKING:
    import torch

TOLERANCE = 0.01  # relative standard error of a median that counts as standing still
SHORTEST = 0.1  # seconds a measurement should last, for the clock and the scheduler

# Linux counts a process's memory from its parent's when it is started: so a small process starts
# the command, and the benchmark's own memory stays out of it.
PEAK = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""
# Told before the process ends: torch's libraries for CUDA then read in 130 MiB of themselves.
PEAK_OF_CODE = """
import atexit, resource, sys
atexit.register(lambda: print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))
code = sys.argv.pop()
exec(code)
"""


def interleaved(
    measurements: Mapping[str, Callable[[], float]], least: int, most: int
) -> dict[str, float]:
    """Return the median of each measurement, taken in turns, and tell stderr how it goes.

    Args:
        measurements: by name, functions that measure once.
        least: rounds at least, two or more.
        most: rounds at most, where the medians do not stand still before.
    """
    taken: dict[str, list[float]] = {name: [] for name in measurements}
    for done in range(1, most + 1):
        for name, measure in measurements.items():
            taken[name].append(measure())
        print(f"\r  {done} of {least} to {most} rounds", end="", file=sys.stderr, flush=True)
        if done >= least and doubt(taken) <= TOLERANCE:
            break
    print(f", medians ±{doubt(taken):.1%}", file=sys.stderr)
    return {name: median(values) for name, values in taken.items()}


def doubt(taken: Mapping[str, Sequence[float]]) -> float:
    """Return the relative standard error of the least certain median.

    For normal noise √(π/2) · σ / √n, with σ from the quartiles, which outliers do not move.
    """
    errors = []
    for values in taken.values():
        lower, middle, upper = quantiles(values, n=4, method="inclusive")
        errors.append(sqrt(pi / 2) * (upper - lower) / 1.349 / sqrt(len(values)) / middle)
    return max(errors)


def timer(call: Callable[[], object], device: "torch.device") -> Callable[[], float]:
    """Return a function that measures the seconds of one ``call``, warmed up.

    Args:
        call: what to time; short calls are timed several at once.
        device: whose computing is waited for.
    """

    def measure(calls: int) -> float:
        finish(device)
        started = time.perf_counter()
        for _ in range(calls):
            call()
        finish(device)
        return (time.perf_counter() - started) / calls

    measure(calls=2)
    calls = max(1, round(SHORTEST / measure(calls=1)))
    return lambda: measure(calls)


def finish(device: "torch.device") -> None:
    """Wait for what a device still computes."""
    if device.type != "cpu":
        import torch

        torch.accelerator.synchronize(device)


def execute(command: Sequence[str], folder: Path) -> str:
    """Run a command of this environment in ``folder`` and return what it printed.

    Raises:
        UserError: with the end of its messages, if it fails.
    """
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    environment = os.environ | {"PATH": path}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        messages = "\n".join((done.stdout + done.stderr).splitlines()[-20:])
        raise UserError(f"{' '.join(command)} failed:\n{messages}")
    return done.stdout


def execution(command: Sequence[str], folder: Path) -> Callable[[], float]:
    """Return a function that measures the seconds that a command takes as a process."""

    def measure() -> float:
        started = time.perf_counter()
        execute(command, folder)
        return time.perf_counter() - started

    return measure


def peak_memory(command: Sequence[str], folder: Path) -> float:
    """Run a command and return the GiB of the largest process among it and its children."""
    *_, peak = execute(["python", "-c", PEAK, *command], folder).splitlines()
    return _gib(peak)


def peak_memory_of_code(code: str, folder: Path) -> float:
    """Run Python code in a process and return the GiB that this takes, until its end begins."""
    command = ["python", "-c", PEAK, "python", "-c", PEAK_OF_CODE, code]
    *_, peak, _with_end = execute(command, folder).splitlines()
    return _gib(peak)


def _gib(peak: str) -> float:
    """Return the GiB of what the system calls ``ru_maxrss``."""
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    return int(peak) * unit / 2**30
