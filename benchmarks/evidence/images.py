"""The images of a dataset of the matrix, prepared, and their features: once for all its cells."""

import os
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.evidence.cell import HERE, MATRIX, write_params
from benchmarks.evidence.plan import Cell, settings_of
from maskdm.params import read_params
from stages import prepare, reference
from stages.command import run


def main(
    dataset: Annotated[str, typer.Argument(help="a key of datasets in the matrix's params.yaml")],
) -> None:
    """Run the stages prepare and reference for a dataset, in a folder of its own."""
    matrix = read_params(MATRIX)
    cell = Cell(dataset, next(iter(matrix["arms"])), next(iter(matrix["tunings"])), 0.0, 0, 0.0)
    params = settings_of(matrix, read_params(matrix["base"]), cell)
    folder = HERE / "sets" / dataset
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    Path("data").mkdir(exist_ok=True)
    write_params(params)
    prepare.main()
    reference.main()


if __name__ == "__main__":
    run(main)
