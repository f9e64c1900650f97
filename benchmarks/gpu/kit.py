"""Everything that only a GPU can show, in one command of at most nine minutes: ``make gpu``.

Smallest first, piece by piece: a piece that is in the report is not measured again, so that a
second call goes on where the first had to end. It also runs on a CPU, in a quarter of an hour,
where it shows that it runs.
"""

import gc
import json
import platform
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks.gpu.exactness import exactness
from benchmarks.gpu.steps import batches_a_second, best_multiply, measure
from benchmarks.presets import read_preset
from benchmarks.speed.machine import cpu
from maskdm.backbones.registry import ModelParams
from maskdm.data.registry import DataParams
from maskdm.diffusion.masking import Mask, MaskParams, make_mask, nothing_masked
from maskdm.runtime.command import run
from maskdm.runtime.execution import Execution, Precision
from maskdm.runtime.files import write_json
from maskdm.runtime.numerics import choose_kernels
from maskdm.runtime.params import Params, read_section
from maskdm.training.phases import FinetuneParams

REPORTS = Path("reports/gpu")
LEAST = 15  # seconds that must be left for a piece to be begun
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16", "fp16")
RATES = (0.0, 0.5, 0.75, 0.9)
# What is called how: the preset, its mask rates, whether masked batches hold as many tokens.
SIZES = {
    "demo": ("laptop", RATES),
    "MaskDM-small, 64 px": ("celeba64", RATES),
    "MaskDM-base, 256 px": ("celebahq256", (0.9, 0.0)),
}
# How steps are made: whether the network is compiled, whether launches are replayed.
WAYS = {
    "launched": (False, False),
    "replayed": (False, True),
    "compiled, replayed": (True, True),
}

Piece = Callable[[], Any]


def main(
    minutes: Annotated[float, typer.Option(help="no piece is begun after them")] = 8.5,
    only: Annotated[str, typer.Option(help="pieces whose names contain this")] = "",
    tag: Annotated[str, typer.Option(help="added to the name of the report")] = "",
) -> None:
    """Measure what is not in the report of this device yet: reports/gpu/DEVICE.json."""
    began = time.monotonic()
    choose_kernels()
    execution = Execution.from_environment()
    path = REPORTS / f"{device_slug(execution.device)}{tag}.json"
    report = json.loads(path.read_text()) if path.exists() else about(execution.device)
    report["pieces"] = report.get("pieces", {})
    for name, piece in pieces(execution):
        left = 60 * minutes - (time.monotonic() - began)
        if only not in name or name in report["pieces"]:
            continue
        if left < LEAST:
            print(f"The time is over before '{name}': run it again to go on.")
            break
        started = time.monotonic()
        report["pieces"][name] = found = attempt(piece)
        write_json(path, report)
        print(f"{time.monotonic() - started:6.1f} s  {name}: {shown(found)}", flush=True)


def pieces(execution: Execution) -> Iterator[tuple[str, Piece]]:
    """Yield what is measured: names, and functions that measure; what is compiled comes last."""
    device = execution.device
    for precision in PRECISIONS:
        yield f"multiply, {precision}", partial(best_multiply, device, precision)
    for precision in PRECISIONS:
        there = replace(execution, precision=precision, compiles=False)
        yield f"exactness, {precision}", partial(exactness, there)
    yield from steps(execution, "replayed")
    for size, (name, rates) in SIZES.items():
        for rate in rates:
            work = read_preset(name), *masked(read_preset(name), rate)
            yield f"batches, {size}, {rate:.0%}", partial(batches_a_second, *work)
    yield from steps(execution, "launched")
    yield from steps(execution, "compiled, replayed")
    yield "exactness, fp32, compiled", partial(exactness, replace(execution, compiles=True))


def steps(execution: Execution, way: str) -> Iterator[tuple[str, Piece]]:
    """Yield the timing of all sizes and mask rates in one way of making steps."""
    compiles, replays = WAYS[way]
    for size, (name, rates) in SIZES.items():
        for rate in rates:
            mask, params = masked(read_preset(name), rate)
            there = replace(
                execution, precision=params.precision, compiles=compiles, replays=replays
            )
            yield (
                f"steps, {size}, {rate:.0%}, {params.precision}, {way}",
                partial(measure, read_preset(name), mask, params, there),
            )


def masked(preset: Params, rate: float) -> tuple[Mask, FinetuneParams]:
    """Return a mask, and a phase whose batches have as many tokens as whole images have, in bf16.

    Args:
        preset: all sections.
        rate: of single patches.
    """
    grid = (
        read_section(preset, "data", DataParams).resolution
        // read_section(preset, "model", ModelParams).patch
    )
    mask = nothing_masked(grid)
    if rate:
        mask = make_mask(MaskParams(strategy="patch", rate=rate, block_size=1), grid)
    params = read_section(preset, "finetune", FinetuneParams)
    images = round(params.batch_size * grid**2 / mask.visible)
    return mask, params.model_copy(update={"batch_size": images, "precision": "bf16"})


def attempt(piece: Piece) -> Any:
    """Return what a piece finds, or the first line of its error: the next one may work."""
    try:
        return piece()
    except Exception as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        print(f"{type(error).__name__}: {error}"[:2000], file=sys.stderr)
        return {"failed": f"{type(error).__name__}: {first}"}
    finally:
        torch.compiler.reset()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def about(device: torch.device) -> dict[str, Any]:
    """Return what is measured on."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {
        "device": name,
        "count": torch.cuda.device_count() if device.type == "cuda" else 1,
        "cpu": cpu(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
    }


def device_slug(device: torch.device) -> str:
    """Return the name of a device as a file name."""
    return re.sub(r"[^a-z0-9]+", "-", about(device)["device"].lower()).strip("-")


def shown(found: Any) -> str:
    """Return what a piece found in one line."""
    if not isinstance(found, dict):
        return f"{found:.3g}"
    return ", ".join(
        f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in found.items()
    )


if __name__ == "__main__":
    run(main)
