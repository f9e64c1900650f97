"""One cell of the scaling study: ``python -m benchmarks.scaling.cell 1e13 width-96 base``.

The pipeline's own stages run in a folder of their own. An interrupted cell resumes where it was.
What is committed is a small JSON file and pictures of the first samples.
"""

import json
import shutil
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from benchmarks.evidence.train import curve, distances, use, workspace, write_params
from benchmarks.scaling.study import DATASET, RUNS, WORK, Cell, plan, read_study, samplings
from maskdm.backbones.model_folder import load_config
from maskdm.figures import grid, save
from maskdm.runtime import command
from maskdm.runtime.files import write_json
from maskdm.runtime.numerics import choose_kernels
from stages import fid, finetune, pretrain, sample

SHOWN = 40  # samples in the picture of a cell


def main(
    budget: Annotated[float, typer.Argument(help="training FLOPs")],
    size: Annotated[str, typer.Argument(help="a key of sizes in study.yaml")],
    variation: Annotated[str, typer.Argument(help="a key of variations")],
) -> None:
    """Train a cell, draw from it and keep what came out."""
    cell, study = Cell(budget, size, variation), read_study()
    params = plan(study, cell)
    target, folder = (RUNS / cell.name).resolve(), (WORK / cell.name).resolve()
    choose_kernels()
    with workspace(folder):
        write_params(params)
        use(DATASET)
        pretrain.main()
        finetune.main()
        drawn = samplings(study, params)
        measured: dict[str, dict[str, float]] = {}
        for name, section in drawn.items():
            write_params(params | {"sample": section})
            sample.main()
            fid.main()
            measured[name] = distances()
            save(
                grid(np.load("data/samples/samples.npy")[:SHOWN], columns=10),
                target.with_name(f"{target.name}_{name}.png"),
            )
        timing = {
            phase: json.loads(Path(f"reports/timing/{phase}.json").read_text(encoding="utf-8"))
            for phase in ("pretrain", "finetune")
        }
        config = load_config(Path("models/finetune"))
        kept = {
            "cell": vars(cell),
            **{name: config.cost[name] for name in ("flops", "images")},
            "distances": {
                name: {measure: found[measure] for measure in ("fd", "kid") if measure in found}
                for name, found in measured.items()
            },
            "curve": curve(),
            "params": params,
            "samplings": drawn,
            "seconds": {phase: timed["seconds"] for phase, timed in timing.items()},
            "numerics": timing["finetune"]["numerics"],
        }
        write_json(target.with_name(f"{target.name}.json"), kept)
    shutil.rmtree(folder)


if __name__ == "__main__":
    command.run(main)
