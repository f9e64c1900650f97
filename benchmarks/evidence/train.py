"""One run of the matrix, from its parameters to its curve: ``python -m benchmarks.evidence.train``.

The pipeline's own stages run in a folder of their own, on images that
``benchmarks.evidence.images`` has prepared: pretrain, then finetune, sample and fid at every point
of the budget that is to be measured, each time from the checkpoint of the time before. An
interrupted run resumes where it was. What is committed is a small JSON file and a picture of the
first samples; the models of runs that were sampled stay on this machine, in ``weights/``, so that
more samples can be drawn.
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

from benchmarks.evidence.plan import HERE, Run, entry, plan, points, read_matrix
from maskdm.backbones.model_folder import WEIGHTS as OF_MODEL
from maskdm.backbones.model_folder import load_config
from maskdm.evaluation.features.registry import EXTRACTORS
from maskdm.figures import grid, save
from maskdm.runtime import command
from maskdm.runtime.environment import CHECKPOINTS
from maskdm.runtime.errors import UserError
from maskdm.runtime.files import file_hash, write_json
from maskdm.runtime.numerics import choose_kernels
from maskdm.runtime.params import Params
from maskdm.training.checkpoints.fingerprint import code_hash
from maskdm.training.setup import COMPUTES_STEPS
from stages import fid, finetune, pretrain, sample

RUNS = HERE / "runs"
SETS = HERE / "sets"
WORK = HERE / "work"
WEIGHTS = HERE / "weights"
SHOWN = 40  # samples in the picture of a run


def main(
    part: Annotated[str, typer.Argument(help="a key of parts in matrix.yaml")],
    dataset: Annotated[str, typer.Argument(help="a key of datasets")],
    arm: Annotated[str, typer.Argument(help="a key of arms")],
    tuning: Annotated[str, typer.Option(help="a key of tunings")] = "base",
    share: Annotated[float, typer.Option(help="of the budget that is spent masked")] = 0.0,
    seed: Annotated[int, typer.Option(help="of weights, order, masks, times and noise")] = 0,
    of: Annotated[float, typer.Option(help="the share of the part's budget that it has")] = 1.0,
) -> None:
    """Train one run of the matrix and measure it on the way."""
    run = Run(part, dataset, arm, tuning, share, seed, of)
    matrix = read_matrix()
    target = (RUNS / run.name).resolve()
    folder = (WORK / run.name).resolve()
    choose_kernels()
    with workspace(folder):
        result = result_of(matrix, run)
        target.parent.mkdir(parents=True, exist_ok=True)
        if result["points"]:
            samples = np.load("data/samples/samples.npy")[:SHOWN]
            save(grid(samples, columns=10), target.with_name(f"{target.name}.png"))
            keep_models(Path("models"), (WEIGHTS / run.name).resolve())
        write_json(target.with_name(f"{target.name}.json"), result)
    shutil.rmtree(folder)


def keep_models(models: Path, target: Path) -> None:
    """Keep the models of a run, in place of those of an earlier one."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(models, target)


@contextmanager
def workspace(folder: Path) -> Iterator[None]:
    """Change to a folder, in which the stages keep their checkpoints too."""
    folder.mkdir(parents=True, exist_ok=True)
    before, root = Path.cwd(), os.environ.pop("DVC_ROOT", None)
    os.environ[CHECKPOINTS.name] = str(folder / "checkpoints")
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
        if root is not None:
            os.environ["DVC_ROOT"] = root


def result_of(matrix: Params, run: Run) -> dict[str, Any]:
    """Run the stages in this folder; return the result that is kept."""
    params, part = plan(matrix, run), entry(matrix, "parts", run.part)
    write_params(params)
    use(images_of_first_phase(matrix, run), features=False)
    pretrain.main()
    use(run.dataset, features=bool(part["distance_at"]))
    measured = []
    for steps in points(matrix, run):
        write_params(params | {"finetune": params["finetune"] | {"steps": steps}})
        finetune.main()
        if part["distance_at"]:
            sample.main()
            fid.main()
            measured.append(distances())
    config = load_config(Path("models/finetune"))
    timing = {
        phase: json.loads(Path(f"reports/timing/{phase}.json").read_text())
        for phase in ("pretrain", "finetune")
    }
    return {
        "run": vars(run) | {"budget": run.of * part["budget"]},
        "training": [leg.model_dump() for leg in config.training],
        "training_images": {
            "pretrain": training_images(images_of_first_phase(matrix, run)),
            "finetune": training_images(run.dataset),
        },
        "curve": curve(),
        "points": measured,
        "levels": errors_by_level(),
        "params": params,
        "seconds": {phase: timed["seconds"] for phase, timed in timing.items()},
        "numerics": timing["finetune"]["numerics"],
        "code": code_hash(*COMPUTES_STEPS),
        "weights": file_hash(Path("models/finetune") / OF_MODEL),
    }


def images_of_first_phase(matrix: Params, run: Run) -> str:
    """Return the dataset of pretraining: the run's, another one, or the same at half the side.

    Raises:
        UserError: if there is none of half the side.
    """
    dataset, arm = entry(matrix, "datasets", run.dataset), entry(matrix, "arms", run.arm)
    if "primer" in arm and run.share:
        if "half_as_large" not in dataset:
            raise UserError(f"{run.arm} needs smaller images, which {run.dataset} does not name.")
        return str(dataset["half_as_large"])
    return str(dataset.get("pretrained_on", run.dataset))


def errors_by_level() -> dict[str, float]:
    """Return the last validation's errors of the averaged weights by λ."""
    with Path("reports/finetune/validation.tsv").open(encoding="utf-8") as file:
        *_, last = csv.DictReader(file, delimiter="\t")
    return {
        name.removeprefix("averaged[").removesuffix("]"): float(value)
        for name, value in last.items()
        if name.startswith("averaged[") and value
    }


def training_images(dataset: str) -> int:
    """Return how many images a prepared dataset has to train on."""
    about = json.loads((SETS / dataset / "data/prepared/dataset.json").read_text(encoding="utf-8"))
    return int(about["train"]["count"])


def use(dataset: str, features: bool = True) -> None:
    """Link ``data/prepared`` and, where it is wanted, ``data/reference`` to those of a dataset.

    Raises:
        UserError: if they are not there.
    """
    data = SETS.resolve() / dataset / "data"
    names = ("prepared", "reference") if features else ("prepared",)
    if not all((data / name).is_dir() for name in names):
        raise UserError(
            f"The images of {dataset} are not prepared: python -m benchmarks.evidence.images "
            f"{dataset}"
        )
    for name in names:
        link = Path("data") / name
        link.parent.mkdir(exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(data / name)


def write_params(params: Params) -> None:
    """Write params.yaml; JSON is YAML too."""
    Path("params.yaml").write_text(json.dumps(params), encoding="utf-8")


def distances() -> dict[str, float]:
    """Return what the stage fid has just reported: the compute, and the distances."""
    metrics, how = (
        json.loads(Path(f"reports/{name}.json").read_text(encoding="utf-8"))
        for name in ("metrics", "measured")
    )
    extractor = EXTRACTORS[how["features"]["extractor"]]
    point = {key: metrics["training"][key] for key in ("flops", "images")}
    return point | {
        name: metrics[key]
        for name, key in (("fd", extractor.frechet), ("kid", extractor.kernel))
        if key in metrics
    }


def curve() -> list[dict[str, float]]:
    """Return the validation errors of both phases along one axis of compute."""
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
    command.run(main)
