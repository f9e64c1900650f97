"""Cells of the matrix, several at a time: ``python -m benchmarks.evidence.run screening``.

What ``dvc repro`` runs one after the other. Cells that are there are left alone, so it may be
stopped and started at will, and a cell that was stopped goes on where it was; ``dvc commit`` in
benchmarks/evidence then tells DVC of the results.
"""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.evidence import images
from benchmarks.evidence.cell import CELLS, SETS, WORK
from benchmarks.evidence.plan import Cell, Params, cells, entry, plan, read_matrix
from maskdm.runtime.command import run
from maskdm.runtime.errors import UserError


def main(
    part: Annotated[str, typer.Argument(help="a part of the matrix, such as screening")],
    only: Annotated[list[str] | None, typer.Option(help="matrices of it; by default all")] = None,
    jobs: Annotated[
        int | None, typer.Option(help="cells at a time; by default one a processor core")
    ] = None,
    own: Annotated[
        Path | None, typer.Option(help="a folder of images to use in place of its datasets")
    ] = None,
) -> None:
    """Compute the cells of a part of the matrix that are not there yet."""
    matrix = read_matrix()
    wanted = cells(matrix, part, only)
    if own is not None:
        if not own.is_dir():
            raise UserError(f"There is no folder {own}: name one that holds images.")
        wanted = list(dict.fromkeys(replace(cell, dataset="own") for cell in wanted))
    for dataset in dict.fromkeys(name for cell in wanted for name in datasets(matrix, cell)):
        images.make(dataset, str(own) if own else None)
    missing = [cell for cell in wanted if not is_there(matrix, cell)]
    print(f"{len(wanted) - len(missing)} of {len(wanted)} cells are there", flush=True)
    # Cells side by side on a core each are faster than one on all of them.
    cores = os.cpu_count() or 1
    jobs = max(1, min(jobs or cores, len(missing)))
    threads = max(1, cores // jobs)
    with ThreadPoolExecutor(jobs) as pool:
        done = list(pool.map(lambda cell: compute(cell, threads), missing))
    failed = [cell.name for cell, well in zip(missing, done, strict=True) if not well]
    if failed:
        raise UserError(f"These cells failed ({WORK}/….log says why): {', '.join(failed)}.")


def datasets(matrix: Params, cell: Cell) -> list[str]:
    """Return the datasets that a cell needs: its own, then the one that it is pretrained on."""
    other = entry(matrix, "datasets", cell.dataset).get("pretrained_on")
    return [cell.dataset, *([other] if other else [])]


def is_there(matrix: Params, cell: Cell) -> bool:
    """Return whether a cell has been computed with its parameters, on the images that are there."""
    result = CELLS / f"{cell.name}.json"
    if not result.exists():
        return False
    kept = json.loads(result.read_text(encoding="utf-8"))
    made = [
        json.loads((SETS / name / "data/prepared/dataset.json").read_text())["hash"]
        for name in datasets(matrix, cell)
    ]
    images = {"finetune": made[0], "pretrain": made[-1]}
    same = kept["params"] == json.loads(json.dumps(plan(matrix, cell)))
    return same and all(leg["data"] == images[leg["phase"]] for leg in kept["training"])


def command(cell: Cell) -> list[str]:
    """Return the command that computes a cell; dvc.yaml has the same."""
    options = ((f"--{name}", f"{getattr(cell, name)}") for name in ("tuning", "share", "seed"))
    words = ["benchmarks.evidence.cell", cell.part, cell.dataset, cell.arm]
    return [sys.executable, "-m", *words, *(word for option in options for word in option)]


def compute(cell: Cell, threads: int) -> bool:
    """Compute a cell on so many threads; return whether it went well."""
    log = WORK / f"{cell.name.replace('/', '_')}.log"
    log.parent.mkdir(exist_ok=True)
    environment = {"OMP_NUM_THREADS": str(threads)} | os.environ | {"TQDM_DISABLE": "1"}
    with log.open("w", encoding="utf-8") as file:
        said = subprocess.run(command(cell), stdout=file, stderr=file, env=environment)
    print(cell.name, "failed" if said.returncode else "done", flush=True)
    return not said.returncode


if __name__ == "__main__":
    run(main)
