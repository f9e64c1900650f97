"""Cells of the matrix, several at a time: ``python -m benchmarks.evidence.run screening``.

What ``dvc repro`` runs one after the other. Cells that are there are left alone, so it may be
stopped and started at will; ``dvc commit`` in benchmarks/evidence then tells DVC of the results.
"""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import product
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.evidence.cell import HERE, MATRIX
from benchmarks.evidence.plan import Cell, Params, plan
from maskdm.errors import UserError
from maskdm.params import read_params
from stages.command import run

OUT = HERE / "cells"


def main(
    part: Annotated[str, typer.Argument(help="a part of the matrix, such as screening")],
    only: Annotated[list[str] | None, typer.Option(help="matrices of it; by default all")] = None,
    jobs: Annotated[int, typer.Option(help="cells at a time")] = 1,
) -> None:
    """Compute the cells of a part of the matrix that are not there yet."""
    matrix = read_params(MATRIX)
    base = read_params(matrix["base"])
    out = OUT / part
    missing = [
        cell
        for cell in cells(matrix[part], only)
        if not is_there(out / f"{cell.name}.json", plan(matrix, base, cell))
    ]
    distance_at = matrix[part]["distance_at"]
    with ThreadPoolExecutor(jobs) as pool:
        done = list(pool.map(partial(compute, out, distance_at), missing))
    failed = [cell.name for cell, well in zip(missing, done, strict=True) if not well]
    if failed:
        raise UserError(f"These cells failed (see work/*.log there): {', '.join(failed)}.")


def cells(part: Params, only: list[str] | None = None) -> list[Cell]:
    """Return the cells of a part of the matrix, those of its matrices in turn."""
    found = []
    for name, axes in part["matrices"].items():
        if only and name not in only:
            continue
        for values in product(*axes.values()):
            found.append(Cell(**dict(zip(axes, values, strict=True)), budget=part["budget"]))
    return found


def is_there(result: Path, params: Params) -> bool:
    """Return whether a cell has been computed with these parameters."""
    if not result.exists():
        return False
    kept = json.loads(result.read_text(encoding="utf-8"))["params"]
    return bool(kept == json.loads(json.dumps(params)))


def command(cell: Cell, distance_at: list[float], out: Path) -> list[str]:
    """Return the command that computes a cell; dvc.yaml has the same."""
    words = [sys.executable, "-m", "benchmarks.evidence.cell", cell.dataset, cell.arm]
    for name in ("share", "tuning", "seed", "budget"):
        words += [f"--{name}", str(getattr(cell, name))]
    for share in distance_at:
        words += ["--distance-at", str(share)]
    return [*words, "--out", str(out)]


def compute(out: Path, distance_at: list[float], cell: Cell) -> bool:
    """Compute a cell; return whether it went well."""
    log = HERE / "work" / f"{cell.name.replace('/', '_')}.log"
    log.parent.mkdir(exist_ok=True)
    environment = os.environ | {"TQDM_DISABLE": "1"}
    with log.open("w", encoding="utf-8") as file:
        said = subprocess.run(
            command(cell, distance_at, out), stdout=file, stderr=file, env=environment
        )
    print(cell.name, "failed" if said.returncode else "done", flush=True)
    return not said.returncode


if __name__ == "__main__":
    run(main)
