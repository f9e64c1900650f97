"""Everything that only a GPU can show, in one command of at most nine minutes: ``make gpu``.

Piece by piece, what is wanted most first: a piece that this code has measured is not measured
again, so that a second call goes on where the first had to end. What older code has measured stays
in the report until then, and what has no figure at all comes before it. A piece that hangs ends
with the call, and the next one has it last; after one that leaves its process without the device
another process goes on. A report of another torch or other GPUs is begun anew. Steps that turn out
not to be compiled, or not to be replayed, are no figure but a failure; on Apple's GPUs, which have
neither, steps are launched. It also runs on a CPU, where it shows that it runs.
"""

import faulthandler
import gc
import json
import os
import platform
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks.gpu.apart import PATIENCE, PATIENCE_COMPILING
from benchmarks.gpu.attention import attention
from benchmarks.gpu.compiling import compiling
from benchmarks.gpu.exactness import LARGE, MANY_TOKENS, exactness
from benchmarks.gpu.several import compare
from benchmarks.gpu.steps import (
    autocast_and_bf16,
    batches_a_second,
    best_multiply,
    masked,
    measure,
)
from benchmarks.presets import read_preset
from benchmarks.speed.machine import cpu
from maskdm.runtime.command import run
from maskdm.runtime.devices import is_broken
from maskdm.runtime.environment import DEVICE
from maskdm.runtime.errors import reason, shortened
from maskdm.runtime.execution import Execution, Precision
from maskdm.runtime.files import write_json
from maskdm.runtime.numerics import choose_kernels
from maskdm.training.checkpoints.fingerprint import digest, meaning, modules

REPORTS = Path("reports/gpu")
STDERR = 2
GRACE = 30  # seconds, after which a piece that was begun in time is taken to hang
# Seconds that must be left for a piece to be begun whose name contains a word.
# Those two wait for two processes, one after the other.
LEAST = {
    "GPUs as by default": 2 * PATIENCE_COMPILING,
    "GPUs": 2 * PATIENCE,
    "compiling": 2 * PATIENCE,
    "compiled": 75,
    "": 15,
}
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16", "fp16")
RATES = (0.0, 0.5, 0.75, 0.9)
# What is called how: the preset, its mask rates, whether masked batches hold as many tokens.
SIZES = {
    "demo": ("laptop", RATES),
    "MaskDM-small, 64 px": ("celeba64", RATES),
    "MaskDM-base, 256 px": ("celebahq256", (0.9, 0.0)),
}
LENGTHS, HEADS = (7, 26, 64, 256, 1024), 8  # tokens of a set; heads of MaskDM-small
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
    again: Annotated[bool, typer.Option(help="also pieces that did not end")] = True,
) -> None:
    """Measure what is not in the report of this device yet: reports/gpu/DEVICE.json."""
    until = time.monotonic() + 60 * minutes
    with ends_within(60 * minutes + GRACE):
        choose_kernels()
        execution = replace(Execution.from_environment(), strict=True)
        if not DEVICE.get() and torch.backends.mps.is_available():
            execution = replace(execution, device=torch.device("mps"))
        if not DEVICE.get() and execution.device.type == "cpu":
            print("There is no GPU here that this torch can use: the CPU is measured.", flush=True)
        try:
            measure_all(execution, until, only, tag, again)
        except Exception as error:
            if not is_broken(error):
                raise
            print(f"The device is lost to this process, another goes on: {reason(error)}")
            left = f"{(until - time.monotonic()) / 60:.2f}"
            words = ["--minutes", left, "--only", only, "--tag", tag, "--no-again"]
            sys.stdout.flush()
            os.execv(sys.executable, [sys.executable, "-m", "benchmarks.gpu.kit", *words])


def measure_all(
    execution: Execution, until: float, only: str, tag: str, again: bool = True
) -> None:
    """Measure what is not in the report yet, as long as there is time.

    Args:
        execution: where.
        until: no piece is begun after this time, in seconds of ``time.monotonic``.
        only: pieces whose names contain this.
        tag: added to the name of the report.
        again: also pieces that did not end in an earlier call.
    """
    path = REPORTS / f"{device_slug(execution.device)}{tag}.json"
    there, code = about(execution.device), code_of_the_kit()
    report = json.loads(path.read_text()) if path.exists() else {}
    if any(report.get(name) != value for name, value in there.items()):
        report = there | {"pieces": {}, "code": {}}  # another torch, or other GPUs
    hung = report.setdefault("did not end", [])
    measured, codes = report.setdefault("pieces", {}), report.setdefault("code", {})

    def rank(piece: tuple[str, Piece]) -> tuple[bool, bool]:
        name, _ = piece
        return name in hung, name in measured and not failed(measured[name])

    for name, piece in sorted(pieces(execution), key=rank):
        left = until - time.monotonic()
        if only not in name or codes.get(name) == code or (name in hung and not again):
            continue
        if left < next(least for word, least in LEAST.items() if word in name):
            print(f"The time is over before '{name}': run it again to go on.")
            if left < min(LEAST.values()):
                break
            continue  # what comes after it may take less
        started = time.monotonic()
        others = [other for other in hung if other != name]
        report["did not end"] = [*others, name]  # if this is the last that is heard of it
        write_json(path, report)
        found = attempt(piece)
        report["did not end"] = hung = others
        # What has failed is tried again by the next call, and takes no older figure's place.
        if failed(found):
            measured.setdefault(name, found)
        else:
            measured[name], codes[name] = found, code
        if all(codes.get(name) == code for name in measured):
            report.pop("notes", None)  # which were of older figures
        write_json(path, report)
        print(f"{time.monotonic() - started:6.1f} s  {name}: {shown(found)}", flush=True)


@contextmanager
def ends_within(seconds: float) -> Iterator[None]:
    """End this process after so many seconds, wherever it hangs, and say where."""
    faulthandler.dump_traceback_later(seconds, exit=True, file=STDERR)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def pieces(execution: Execution) -> Iterator[tuple[str, Piece]]:
    """Yield what is measured: names, and functions that measure.

    What training does by default, compiled and replayed, comes before what it is compared with.
    """
    device = execution.device
    for precision in PRECISIONS:
        yield f"multiply, {precision}", partial(best_multiply, device, precision)
    for precision in PRECISIONS:
        there = replace(execution, precision=precision, compiles=False)
        yield f"exactness, {precision}", partial(exactness, there)
    records = device.type == "cuda"
    yield from steps(execution, "replayed" if records else "launched")
    for size, (name, rates) in SIZES.items():
        for rate in rates:
            work = read_preset(name), *masked(read_preset(name), rate), device
            yield f"batches, {size}, {rate:.0%}", partial(batches_a_second, *work)
    if records:
        yield from steps(execution, "compiled, replayed")
        yield "exactness, fp32, compiled", partial(exactness, replace(execution, compiles=True))
        for compiles, how in ((False, ""), (True, ", compiled")):
            there = replace(execution, precision="bf16", compiles=compiles)
            yield f"exactness, bf16, a large batch{how}", partial(exactness, there, LARGE)
        for precision in PRECISIONS:  # enough tokens for kernels whose sums have no order
            there = replace(execution, precision=precision, compiles=False)
            name = f"exactness, {precision}, {MANY_TOKENS.grid**2} tokens"
            yield name, partial(exactness, there, MANY_TOKENS)
    for count in counts(device):
        for size, (name, _) in SIZES.items():
            yield f"{count} GPUs, {size}", partial(compare, count, name, 0.0, True)
            yield f"{count} GPUs as by default, {size}", partial(compare, count, name, 0.0, False)
    for length in LENGTHS:
        yield f"attention, sets of {length}", partial(attention, length, HEADS, device)
    for size, (name, _) in SIZES.items():
        whole = read_preset(name), *masked(read_preset(name), 0.0)
        yield f"weights, {size}", partial(autocast_and_bf16, *whole, device)
        if records:
            yield f"compiling, {size}", partial(compiling, name, 0.0)
    if records:
        yield from steps(execution, "launched")


def counts(device: torch.device) -> list[int]:
    """Return how many GPUs are to compute together: 2, 4, 8 …, as far as there are so many."""
    there = torch.cuda.device_count() if device.type == "cuda" else 1
    return [2**power for power in range(1, there.bit_length())]


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


def attempt(piece: Piece) -> Any:
    """Return what a piece finds, or the first line of its error: the next one may work."""
    try:
        return piece()
    except Exception as error:
        if is_broken(error):
            raise  # another process goes on
        first = shortened(reason(error))
        print(f"{type(error).__name__}: {error}"[:2000], file=sys.stderr)
        return {"failed": f"{type(error).__name__}: {first}"}
    finally:
        torch.compiler.reset()
        gc.collect()
        if torch.cuda.is_available():
            with suppress(RuntimeError):
                torch.cuda.empty_cache()


def failed(found: Any) -> bool:
    """Return whether what a piece found is why it found nothing."""
    return isinstance(found, dict) and "failed" in found


def code_of_the_kit() -> str:
    """Return a hash of all code that measures and is measured."""
    files = modules(("benchmarks.gpu.kit",), packages=("benchmarks", "maskdm"))
    return digest({name: meaning(path.read_text("utf-8")) for name, path in files.items()})


def about(device: torch.device) -> dict[str, Any]:
    """Return what is measured on."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {
        "device": name,
        "count": torch.cuda.device_count() if device.type == "cuda" else 1,
        "cpu": cpu(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda or torch.version.hip,
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
