"""One cell of the matrix, from its parameters to its curve: ``python -m benchmarks.evidence.cell``.

It runs the pipeline's own stages in a folder of its own, on images that ``benchmarks.evidence.
images`` has prepared: pretrain, then finetune, sample and fid at every point of the budget that is
to be measured, each time going on from the state of the time before. A cell that was interrupted
goes on where it was. What is kept is a small JSON file and a picture of its first samples.
"""

import csv
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks.evidence.plan import HERE, Cell, Params, entry, plan, points, read_matrix
from maskdm.backbones.model_folder import load_config
from maskdm.evaluation.features.registry import EXTRACTORS
from maskdm.figures import grid, save
from maskdm.runtime.command import run
from maskdm.runtime.errors import UserError
from maskdm.runtime.files import write_json
from maskdm.runtime.numerics import choose_kernels
from maskdm.training.checkpoints.fingerprint import code_hash
from maskdm.training.setup import COMPUTES_STEPS
from stages import fid, finetune, pretrain, sample

CELLS = HERE / "cells"
SETS = HERE / "sets"
WORK = HERE / "work"
SHOWN = 40  # samples in the picture of a cell


def main(
    part: Annotated[str, typer.Argument(help="a key of parts in the matrix's params.yaml")],
    dataset: Annotated[str, typer.Argument(help="a key of datasets")],
    arm: Annotated[str, typer.Argument(help="a key of arms")],
    tuning: Annotated[str, typer.Option(help="a key of tunings")] = "base",
    share: Annotated[float, typer.Option(help="of the budget that is spent masked")] = 0.0,
    seed: Annotated[int, typer.Option(help="of weights, order, masks, times and noise")] = 0,
) -> None:
    """Train one cell and measure it on the way."""
    cell = Cell(part, dataset, arm, tuning, share, seed)
    matrix = read_matrix()
    target = (CELLS / cell.name).resolve()
    folder = (WORK / cell.name).resolve()
    choose_kernels()
    with workspace(folder):
        result = computed(matrix, cell)
        target.parent.mkdir(parents=True, exist_ok=True)
        if result["points"]:
            samples = np.load("data/samples/samples.npy")[:SHOWN]
            save(grid(samples, columns=10), target.with_name(f"{target.name}.png"))
        write_json(target.with_name(f"{target.name}.json"), result)
    shutil.rmtree(folder)


@contextmanager
def workspace(folder: Path) -> Iterator[None]:
    """Be in a folder in which the stages keep their states."""
    folder.mkdir(parents=True, exist_ok=True)
    before, root = Path.cwd(), os.environ.pop("DVC_ROOT", None)
    os.environ["MASKDM_STATES"] = str(folder / "states")
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
        if root is not None:
            os.environ["DVC_ROOT"] = root


def computed(matrix: Params, cell: Cell) -> dict[str, Any]:
    """Run the stages of a cell in this folder; return what came of it."""
    params, part = plan(matrix, cell), entry(matrix, "parts", cell.part)
    other = entry(matrix, "datasets", cell.dataset).get("pretrained_on", cell.dataset)
    write_params(params)
    use(other)
    pretrain.main()
    use(cell.dataset)
    measured = []
    for steps in points(matrix, cell):
        write_params(params | {"finetune": params["finetune"] | {"steps": steps}})
        finetune.main()
        if part["distance_at"]:
            sample.main()
            fid.main()
            measured.append(distances(json.loads(Path("reports/metrics.json").read_text())))
    config = load_config(Path("models/finetune"))
    timing = {
        phase: json.loads(Path(f"reports/timing/{phase}.json").read_text())
        for phase in ("pretrain", "finetune")
    }
    return {
        "cell": vars(cell) | {"budget": part["budget"]},
        "training": [made.model_dump() for made in config.training],
        "curve": curve(),
        "points": measured,
        "params": params,
        "seconds": {phase: told["seconds"] for phase, told in timing.items()},
        "arithmetic": timing["finetune"]["arithmetic"],
        "code": code_hash(*COMPUTES_STEPS),
    }


def use(dataset: str) -> None:
    """Let ``data/prepared`` and ``data/reference`` be those of a dataset."""
    data = SETS.resolve() / dataset / "data"
    if not (data / "reference").is_dir():
        raise UserError(
            f"The images of {dataset} are not prepared: python -m benchmarks.evidence.images "
            f"{dataset}"
        )
    for name in ("prepared", "reference"):
        link = Path("data") / name
        link.parent.mkdir(exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(data / name)


def write_params(params: Params) -> None:
    """Write params.yaml; JSON is YAML too."""
    Path("params.yaml").write_text(json.dumps(params), encoding="utf-8")


def distances(metrics: dict[str, Any]) -> dict[str, float]:
    """Return a point of the curve of distances: where it is, and what they are."""
    extractor = EXTRACTORS[metrics["features"]["extractor"]]
    point = {key: metrics["training"][key] for key in ("flops", "images")}
    return point | {
        name: metrics[key]
        for name, key in (("fd", extractor.frechet), ("kid", extractor.kernel))
        if key in metrics
    }


def curve() -> list[dict[str, float]]:
    """Return the validation errors of both phases over one axis of compute."""
    rows: list[dict[str, float]] = []
    images = 0
    for phase in ("pretrain", "finetune"):
        with Path(f"reports/{phase}/validation.tsv").open(encoding="utf-8") as file:
            found = [
                {
                    "flops": int(row["flops"]),
                    "images": images + int(row["images"]),
                    "error": float(row["averaged"]),
                    "raw": float(row["raw"]),
                }
                for row in csv.DictReader(file, delimiter="\t")
            ]
        rows += [row for row in found if row["flops"] > (rows[-1]["flops"] if rows else 0)]
        images = int(found[-1]["images"])
    return rows


if __name__ == "__main__":
    run(main)
