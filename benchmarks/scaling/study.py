"""The scaling study: ``python -m benchmarks.scaling.study``, cell by cell, resumable.

A cell is (budget, size, variation). Its stages run in a folder of its own, as those of the evidence
do; a cell whose result is there is left alone, and one that was stopped resumes where it was.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.evidence import images
from benchmarks.presets import read_preset, same
from benchmarks.scaling.planning import spend
from maskdm.runtime import command
from maskdm.runtime.environment import PARENT
from maskdm.runtime.errors import UserError
from maskdm.runtime.params import Params, merge, read_params, read_section
from maskdm.sampling.sampler import SampleParams

HERE = Path(__file__).parent
STUDY, RUNS, WORK = HERE / "study.yaml", HERE / "runs", HERE / "work"
DATASET = "openmoji"  # of the evidence


@dataclass(frozen=True)
class Cell:
    """One cell of the study.

    Attributes:
        budget: training FLOPs.
        size: a key of ``sizes`` in study.yaml.
        variation: a key of ``variations``.
    """

    budget: float
    size: str
    variation: str

    @property
    def name(self) -> str:
        """A file name for it."""
        return f"{self.budget:.0e}/{self.size}_{self.variation}".replace("e+", "e")


def read_study() -> Params:
    """Return the study; under ``base``, the whole params of the preset that it starts from."""
    study = read_params(STUDY)
    return study | {"base": read_preset(study["base"])}


def cells(study: Params) -> Iterator[Cell]:
    """Yield all cells, in the order in which they are run."""
    for budget, variations in study["budgets"].items():
        for variation, sizes in variations.items():
            yield from (Cell(float(budget), size, variation) for size in sizes)


def plan(study: Params, cell: Cell) -> Params:
    """Return the params.yaml of a cell.

    Raises:
        UserError: if there is no such size or variation.
    """
    layers = [study["settings"]]
    for kind, name in (("sizes", cell.size), ("variations", cell.variation)):
        if name not in study[kind]:
            known = ", ".join(study[kind])
            raise UserError(f"There is no '{name}' among the {kind} of {STUDY.name}: {known}.")
        layers.append(study[kind][name])
    params = merge(study["base"], *layers)
    how = {key: params.pop(key) for key in ("share", "cooldown") if key in params}
    return merge(params, spend(params, cell.budget, **how))


def samplings(study: Params, params: Params) -> dict[str, Params]:
    """Return the sections ``sample`` with which a cell is measured, by name."""
    primed = params["pretrain"]["steps"] > 0  # an untrained guide leads nowhere
    return {
        name: merge(params["sample"], changes)
        for name, changes in study["samplings"].items()
        if primed or changes["guide_scale"] == 1
    }


def result(study: Params, cell: Cell) -> dict[str, Any] | None:
    """Return the kept result of a cell; None if there is none of these very parameters.

    Those of training, and those of the samples that it was measured by.
    """
    path = RUNS / f"{cell.name}.json"
    if not path.exists():
        return None
    kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if "distances" not in kept:  # of a former study, measured by other samples
        return None
    params = plan(study, cell)
    return kept if same(kept["params"], params) and drawn_alike(study, params, kept) else None


def drawn_alike(study: Params, params: Params, kept: Params) -> bool:
    """Return whether a cell was measured with the samplings that the study has now."""
    wanted = samplings(study, params)
    return kept["samplings"].keys() == wanted.keys() and all(
        read_section({"sample": section}, "sample", SampleParams)
        == read_section({"sample": wanted[name]}, "sample", SampleParams)
        for name, section in kept["samplings"].items()
    )


def main(
    budget: Annotated[float | None, typer.Option(help="cells of it alone")] = None,
    size: Annotated[str | None, typer.Option(help="cells of it alone")] = None,
    variation: Annotated[str | None, typer.Option(help="cells of it alone")] = None,
    jobs: Annotated[
        int, typer.Option(min=1, help="cells at a time, each on its part of the cores")
    ] = 1,
) -> None:
    """Train the cells of the study that are not there yet."""
    study = read_study()
    wanted = [
        cell
        for cell in cells(study)
        if budget in (None, cell.budget)
        and size in (None, cell.size)
        and variation in (None, cell.variation)
    ]
    if not wanted:
        raise UserError(f"{STUDY.name} has no such cell: its budgets say which it has.")
    missing = [cell for cell in wanted if result(study, cell) is None]
    print(f"{len(wanted) - len(missing)} of {len(wanted)} cells are there", flush=True)
    images.make(DATASET)
    with ThreadPoolExecutor(jobs) as pool:
        done = list(pool.map(lambda cell: _in_process(cell, jobs), missing))
    failed = [cell.name for cell, well in zip(missing, done, strict=True) if not well]
    if failed:
        raise UserError(f"These cells failed ({WORK}/….log says why): {', '.join(failed)}.")


def _in_process(cell: Cell, jobs: int) -> bool:
    """Train a cell in a process of its own; return whether it went well."""
    log = WORK / f"{cell.name.replace('/', '_')}.log"
    log.parent.mkdir(exist_ok=True)
    threads = max(1, (os.cpu_count() or 1) // jobs)
    # Compiling would take longer than a cell trains.
    own = {"OMP_NUM_THREADS": f"{threads}", "MASKDM_COMPILE": "0"}
    environment = own | os.environ | {"TQDM_DISABLE": "1"}
    environment[PARENT.name] = str(os.getpid())  # to leave with this process, if that is killed
    words = ["benchmarks.scaling.cell", f"{cell.budget!r}", cell.size, cell.variation]
    with log.open("w", encoding="utf-8") as file:
        ended = subprocess.run(
            [sys.executable, "-m", *words], stdout=file, stderr=file, env=environment
        )
    print(cell.name, "failed" if ended.returncode else "done", flush=True)
    return not ended.returncode


if __name__ == "__main__":
    command.run(main)
