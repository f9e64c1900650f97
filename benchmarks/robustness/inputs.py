"""What becomes of bad and odd inputs: ``python -m benchmarks.robustness.inputs``.

Reads every case of the corpus as ``prepare`` does and compares it with what was put in; then spends
some time on files that are damaged at random. Writes reports/robustness.json.
"""

import resource
import sys
import tempfile
import time
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from benchmarks.robustness import corpus
from benchmarks.robustness.corpus import DAMAGED, Case
from benchmarks.robustness.report import write_report
from maskdm.data.contract import Source
from maskdm.data.images import read_image
from maskdm.data.inventory import inventory
from maskdm.data.registry import DataParams, open_source
from maskdm.runtime import command
from maskdm.runtime.errors import UserError
from maskdm.runtime.params import validate

MEMORY = 2 * 2**30  # bytes that reading may take, beyond what the process has
SIDE = 1024  # nothing in the corpus is decoded smaller
PARAMS = {
    "source": "folder",
    "resolution": SIDE,
    "channels": 3,
    "background": "white",
    "heldout": 0.5,
    "group": "file",
    "classes": False,
    "limit": None,
    "max_unreadable": 0.99,
}
# What a decoder may raise for a damaged file; anything else is taken for a defect of ours.
SKIPS = (OSError, ValueError, SyntaxError, RuntimeError, MemoryError)


def main(
    seconds: Annotated[float, typer.Option(help="time for files damaged at random")] = 60.0,
    names: Annotated[int, typer.Option(help="files in the largest folder")] = 10**6,
) -> None:
    """Read the corpus, a folder of many names, then damaged files; write what became of them."""
    bound_memory()
    with tempfile.TemporaryDirectory() as folder:
        made, source = opened(Path(folder) / "images")
        became = Counter(outcome(source, case) for case in made)
    report = {
        "inputs": {"cases": len(made), **dict(sorted(became.items()))},
        "left_out": dict(sorted(source.left_out.items())),
        "looking_at_a_folder": looking(names),
        "damaged_at_random": damaged_at_random(seconds),
    }
    write_report(**report)
    print(report)
    if wrong := [name for name in became if name.startswith("wrong")]:
        raise UserError(f"Some inputs were not treated as they should be: {', '.join(wrong)}.")


def bound_memory() -> None:
    """Let this process have no more than ``MEMORY`` beyond what it has."""
    if sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def opened(folder: Path) -> tuple[list[Case], Source]:
    """Lay out the corpus in a folder, and list it as ``prepare`` does."""
    made = corpus.lay(folder)
    params = validate(PARAMS | {"path": str(folder)}, "data", DataParams)
    return made, open_source(params, folder)


def outcome(source: Source, case: Case) -> str:
    """Return what became of a case: ``picture``, ``skipped``, ``not taken``, or what is wrong."""
    listed = {picture.name for picture in source.pictures}
    if not case.taken:
        return f"wrong: {case.name!r} is taken" if case.name in listed else "not taken"
    if case.name not in listed:
        return f"wrong: {case.name!r} is not listed"
    try:
        found = np.asarray(source.read(case.name))
    except SKIPS as error:
        if case.picture is None or case.either:
            return "skipped"
        return f"wrong: {case.name!r} is skipped ({error})"
    if case.picture is None:
        return "picture" if case.either else f"wrong: {case.name!r} is read"
    if found.shape != case.picture.shape:
        return f"wrong: {case.name!r} has shape {found.shape}, not {case.picture.shape}"
    off = float(np.abs(found.astype(int) - case.picture).mean())
    return "picture" if off <= case.tolerance else f"wrong: {case.name!r} is off by {off:.2f}"


def looking(names: int) -> dict[str, int | float]:
    """Take the inventory of a folder of many empty files, as the stage ``source`` does every time.

    Returns:
        How many names, the seconds it took, and the bytes of Python's objects at the most.
    """
    with tempfile.TemporaryDirectory() as folder:
        for number in range(names):
            Path(folder, f"{number:07}.png").touch()
        params = validate(PARAMS | {"path": folder}, "data", DataParams)
        started = time.perf_counter()
        found = inventory(params)
        seconds = time.perf_counter() - started
        tracemalloc.start()
        inventory(params)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return {"names": int(found["files"]), "seconds": round(seconds, 2), "bytes": most}


def damaged_at_random(seconds: float) -> dict[str, int | float]:
    """Read files with random bytes changed, cut out and put in, for a time.

    Returns:
        How many were read, how many of them as pictures and skips, and the longest time for one.

    Raises:
        Exception: whatever ``read_image`` raises that is no skip.
    """
    random = np.random.default_rng(0)
    whole = [corpus.encode(corpus.picture(), kind) for kind in DAMAGED]
    counts, longest, end = Counter[str](), 0.0, time.monotonic() + seconds
    while (start := time.monotonic()) < end:
        content = bytearray(whole[random.integers(len(whole))])
        for _ in range(random.integers(1, 9)):
            at, length = int(random.integers(len(content) + 1)), int(random.integers(1, 9))
            kind = random.integers(3)
            content[at : at + length * (kind != 1)] = random.bytes(length * int(kind != 2))
        try:
            read_image(bytes(content), SIDE, "white", 10**6)
            counts["pictures"] += 1
        except SKIPS:
            counts["skips"] += 1
        longest = max(longest, time.monotonic() - start)
    return {"files": counts.total(), **counts, "longest_seconds": round(longest, 3)}


if __name__ == "__main__":
    command.run(main)
