"""Distance against the scale of guidance by the primer.

``python -m benchmarks.speed.guidance`` measures it.

It draws from models/finetune, led away from the guide that params.yaml names, with several scales
and intervals of times, from several noises, and measures the kernel distance to the training
images' features in data/reference (so ``dvc repro`` comes first). Passes through a network are what
a cell costs: the guide's are among them. Every value is kept in reports/guidance.json as soon as it
is there, and is not computed again for the same models; the figure is reports/guidance.png. Takes
twenty minutes a solver on two cores.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, stdev
from typing import Annotated, Any

import typer

from benchmarks.speed.solver_nfe import PARAMS, begun, measured, setting
from maskdm.runtime.command import run
from maskdm.runtime.errors import UserError
from maskdm.runtime.files import write_bytes, write_json
from maskdm.runtime.params import read_section
from maskdm.sampling.sampler import SampleParams

REPORT = Path("reports/guidance.json")
FIGURE = Path("reports/guidance.png")
SOLVERS = {"ddpm": 25, "dpmpp-2m": 16}  # and their evaluations
SCALES = (1.5, 2.0, 2.5, 3.0)
INTERVALS = ((0.0, 1.0), (0.2, 0.9), (0.2, 0.8))
COUNT = 640  # images of a draw
DRAWS = 3  # of a cell, each from another noise


def main(
    count: Annotated[int, typer.Option(help="images of a draw")] = COUNT,
    draws: Annotated[int, typer.Option(help="of a cell, each from another noise", min=1)] = DRAWS,
    solver: Annotated[str | None, typer.Option(help="cells of this one alone")] = None,
) -> None:
    """Measure several scales and intervals of guidance by the guide; draw the figure."""
    params = read_section(PARAMS, "sample", SampleParams)
    if params.guide is None:
        raise UserError("sample.guide is null: there is nothing to be guided by.")
    varied = ("solver", "nfe", "eta", "guide_scale", "guide_interval")
    report = begun(REPORT, setting(params, count, varied) | {"draws": draws})
    for changes in cells():
        if solver not in (None, changes["solver"]):
            continue
        if any(changes.items() <= cell.items() for cell in report["cells"]):
            continue
        cell = params.model_copy(update={**changes, "eta": 0.0, "count": count})
        report["cells"].append({**changes, **drawn(cell, report["extractor"], draws)})
        write_json(REPORT, report)
        print(report["cells"][-1], file=sys.stderr)
    draw(report)


def drawn(params: SampleParams, extractor: str, draws: int) -> dict[str, float]:
    """Return the means of what ``measured`` returns over several draws.

    With more than one, the deviation of the kernel distance is that between them.
    """
    found = [
        measured(params.model_copy(update={"seed": params.seed + draw}), extractor)
        for draw in range(draws)
    ]
    if draws == 1:
        return found[0]
    name = next(key for key in found[0] if key.startswith("kid"))
    spread = {f"{name}_std": float(f"{stdev(one[name] for one in found):.2g}")}
    means = {key: float(f"{mean(one[key] for one in found):.4g}") for key in found[0]}
    return means | spread | {"network_passes": found[0]["network_passes"]}


def cells() -> Iterator[dict[str, Any]]:
    """Yield what differs between the cells; without guidance there is one a solver."""
    for solver, nfe in SOLVERS.items():
        how = {"solver": solver, "nfe": nfe}
        yield {**how, "guide_scale": 1.0, "guide_interval": [0.0, 1.0]}
        for interval in INTERVALS:
            for scale in SCALES:
                yield {**how, "guide_scale": scale, "guide_interval": list(interval)}


def draw(report: dict[str, Any]) -> None:
    """Draw the report as reports/guidance.png: a line a solver and interval."""
    import vl_convert

    name = next(key for key in report["cells"][0] if key.startswith("kid"))
    rows = []
    for cell in report["cells"]:
        lines = INTERVALS if cell["guide_scale"] == 1 else [cell["guide_interval"]]
        for low, high in lines:
            how = f"{cell['solver']}, {cell['nfe']} evaluations, times {low:g} to {high:g}"
            rows.append({"scale": cell["guide_scale"], "value": cell[name], "how": how})
    chart = {
        "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
        "width": 420,
        "height": 280,
        "background": "white",
        "data": {"values": rows},
        "mark": {"type": "line", "point": True},
        "encoding": {
            "x": {
                "field": "scale",
                "type": "quantitative",
                "title": "scale of guidance by the primer (1: none)",
                "scale": {"zero": False},
                "axis": {"values": [1, *SCALES]},
            },
            "y": {
                "field": "value",
                "type": "quantitative",
                "title": f"{name}, mean of {report['draws']} × {report['images']} samples",
                "scale": {"zero": False},
            },
            "color": {"field": "how", "type": "nominal", "title": None},
        },
        "config": {"legend": {"labelLimit": 400}},
    }
    write_bytes(FIGURE, vl_convert.vegalite_to_png(json.dumps(chart), scale=2))
    print(FIGURE)


if __name__ == "__main__":
    run(main)
