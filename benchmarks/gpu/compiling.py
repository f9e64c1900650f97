"""How long the compiler takes: when it has seen nothing yet, and when it finds what it made.

Each time in a process of its own, ``python -m benchmarks.gpu.compiling FILE``, since a process
remembers what it compiled.
"""

import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from benchmarks.gpu.apart import apart
from benchmarks.gpu.steps import FIRST, endless, masked
from benchmarks.presets import read_preset
from benchmarks.speed.measuring import finish
from maskdm.runtime.command import run
from maskdm.runtime.execution import Execution
from maskdm.runtime.files import write_json
from maskdm.runtime.numerics import choose_kernels

# Where the compiler keeps what it makes; the second follows from the first.
CACHE, TRITONS_CACHE = "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"


def compiling(preset: str, rate: float) -> dict[str, float]:
    """Return the seconds that compiling adds to the first steps, cold and from the cache.

    Args:
        preset: whose steps are compiled.
        rate: of masked patches.
    """
    with TemporaryDirectory() as folder:
        return {
            name: apart(
                "benchmarks.gpu.compiling",
                ["--preset", preset, "--rate", str(rate)],
                {CACHE: folder, TRITONS_CACHE: None},
            )["seconds"]
            for name in ("cold, s", "from the cache, s")
        }


def main(
    found: Annotated[Path, typer.Argument(help="the file that is written")],
    preset: Annotated[str, typer.Option(help="whose steps are compiled")] = "celeba64",
    rate: Annotated[float, typer.Option(help="of masked patches")] = 0.0,
) -> None:
    """Note by how much the first steps take longer than as many later ones."""
    choose_kernels()
    mask, params = masked(read_preset(preset), rate)
    execution = Execution.from_environment(params.precision)
    execution = replace(execution, compiles=True, replays=False, strict=True)
    steps, seconds = endless(read_preset(preset), mask, params, execution), []
    for _ in range(2):
        began = time.perf_counter()
        for _ in range(FIRST):
            next(steps)
        finish(execution.device)
        seconds.append(time.perf_counter() - began)
    write_json(found, {"seconds": seconds[0] - seconds[1]})


if __name__ == "__main__":
    run(main)
