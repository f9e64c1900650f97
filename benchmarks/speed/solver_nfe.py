"""Distance against network evaluations, for every solver.

``python -m benchmarks.speed.solver_nfe`` measures it.

It draws from the trained model in models/finetune, guided as params.yaml says, with every solver at
several numbers of network evaluations (NFE), all from the same starting noise, and measures the
kernel distance to the training images' features in data/reference (so ``dvc repro`` comes first).
Every value is kept in reports/solvers.json as soon as it is there, and is not computed again for
the same model; the figure is reports/solvers.png. Takes a quarter of an hour on two cores.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from maskdm.backbones.model_folder import weights_hash
from maskdm.diffusion.paths import PATHS
from maskdm.evaluation.distances import kernel_distance
from maskdm.evaluation.features.extraction import extract
from maskdm.evaluation.features.registry import load_network
from maskdm.evaluation.manifold import manifold
from maskdm.runtime.command import run
from maskdm.runtime.devices import choose_device
from maskdm.runtime.files import write_bytes, write_json
from maskdm.runtime.params import read_section
from maskdm.sampling.model import TrainedModel, load_guided, sample_batches
from maskdm.sampling.sampler import SampleParams, network_passes
from maskdm.sampling.solvers import SOLVERS

PARAMS = Path("params.yaml")
MODEL = Path("models/finetune")
REFERENCE = Path("data/reference")
REPORT = Path("reports/solvers.json")
FIGURE = Path("reports/solvers.png")
EVALUATIONS = (7, 13, 25, 49)  # odd, as heun needs
COUNT = 400  # images of a cell


def main(
    count: Annotated[int, typer.Option(help="images of a cell")] = COUNT,
    evaluations: Annotated[
        list[int] | None, typer.Option(help="NFE, odd; repeat for several")
    ] = None,
) -> None:
    """Measure every solver at several numbers of network evaluations; draw the figure."""
    params = read_section(PARAMS, "sample", SampleParams)
    report = begun(REPORT, setting(params, count, varied=("solver", "nfe", "eta")))
    there = {(cell["solver"], cell["nfe"]) for cell in report["cells"]}
    for nfe in evaluations or EVALUATIONS:
        for solver in SOLVERS:
            if (solver, nfe) in there:
                continue
            cell = params.model_copy(
                update={"solver": solver, "nfe": nfe, "eta": 0.0, "count": count}
            )
            found = measured(cell, report["extractor"])
            report["cells"].append({"solver": solver, "nfe": nfe, **found})
            write_json(REPORT, report)
            print(report["cells"][-1], file=sys.stderr)
    draw(report)


def setting(params: SampleParams, count: int, varied: Sequence[str]) -> dict[str, Any]:
    """Return what all cells of a report have in common.

    Args:
        params: the section ``sample``.
        count: images of a cell.
        varied: parameters of it that the cells set themselves.
    """
    about = json.loads((REFERENCE / "reference.json").read_text(encoding="utf-8"))
    guide = {"guide": weights_hash(Path(params.guide))} if params.guide else {}
    return {
        "model": weights_hash(MODEL),
        **guide,
        "reference": about["hash"],
        "extractor": about["features"]["extractor"],
        "images": count,
        "sample": params.model_dump(mode="json", exclude={"count", *varied}),
    }


def begun(path: Path, common: dict[str, Any]) -> dict[str, Any]:
    """Return the report in a file if its cells have this in common, else one without cells."""
    common = json.loads(json.dumps(common))
    if path.exists():
        kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if common == {name: value for name, value in kept.items() if name != "cells"}:
            return kept
    return {**common, "cells": []}


def measured(params: SampleParams, extractor: str) -> dict[str, float]:
    """Return what a cell costs, and how its samples compare with the training images.

    The kernel distance by its honest name, precision, recall, density and coverage.
    """
    model = load_guided(MODEL, params)
    path = PATHS[model.config.diffusion.path]
    return {
        "network_passes": network_passes(params, path, conditional=bool(model.classes)),
        **compared(model, params, extractor),
    }


def compared(model: TrainedModel, params: SampleParams, extractor: str) -> dict[str, float]:
    """Return how samples of a model compare with the training images, as ``measured`` does."""
    network = load_network(extractor, choose_device())
    drawn = []
    for indices in sample_batches(params.count):
        drawn.append(model.draw(params, indices, model.labels(None, params.seed, indices)))
    features = extract(np.concatenate(drawn), network)
    train = np.load(REFERENCE / "train.npy")
    distance, deviation = kernel_distance(features, train, seed=0)
    name = network.extractor.kernel
    return {
        name: float(f"{distance:.4g}"),
        f"{name}_std": float(f"{deviation:.2g}"),
        **{key: round(value, 3) for key, value in manifold(features, train).items()},
    }


def draw(report: dict[str, Any]) -> None:
    """Draw the report as reports/solvers.png, both axes logarithmic."""
    import vl_convert

    name = next(key for key in report["cells"][0] if key.startswith("kid"))
    counts = sorted({cell["nfe"] for cell in report["cells"]})
    chart = {
        "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
        "width": 480,
        "height": 300,
        "background": "white",
        "data": {"values": report["cells"]},
        "mark": {"type": "line", "point": True},
        "encoding": {
            "x": {
                "field": "nfe",
                "type": "quantitative",
                "title": "network evaluations an image",
                "scale": {"type": "log", "domain": [0.9 * counts[0], 1.1 * counts[-1]]},
                "axis": {"values": counts},
            },
            "y": {
                "field": name,
                "type": "quantitative",
                "title": f"{name} of {report['images']} samples",
                "scale": {"type": "log", "zero": False, "nice": False},
                "axis": {"format": "~g"},
            },
            "color": {"field": "solver", "type": "nominal", "sort": list(SOLVERS)},
        },
    }
    write_bytes(FIGURE, vl_convert.vegalite_to_png(json.dumps(chart), scale=2))
    print(FIGURE)


if __name__ == "__main__":
    run(main)
