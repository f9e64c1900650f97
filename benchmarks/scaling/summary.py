"""What the study found: ``python -m benchmarks.scaling.summary``.

It writes reports/scaling.json, a row a cell, and reports/scaling.png: the validation error against
training FLOPs, a curve a cell, a colour a size, and in black their envelope.
"""

import json
from collections.abc import Iterable, Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any

from benchmarks.scaling.study import Cell, cells, read_study, result
from maskdm.runtime.command import run
from maskdm.runtime.files import write_bytes, write_json

REPORT, FIGURE = Path("reports/scaling.json"), Path("reports/scaling.png")
BASE = "base"  # the variation that the figure shows


def main() -> None:
    """Collect the cells that are there, and draw them."""
    study = read_study()
    found = {cell: kept for cell in cells(study) if (kept := result(study, cell)) is not None}
    write_json(REPORT, {"cells": [row(cell, kept) for cell, kept in found.items()]})
    draw(found)
    print(f"{len(found)} cells: {REPORT}, {FIGURE}")


def row(cell: Cell, kept: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the table shows of a cell."""
    phases = [kept["params"][phase] for phase in ("pretrain", "finetune")]
    return {
        **vars(cell),
        "steps": [phase["steps"] for phase in phases],
        "images": kept["images"],
        "error": kept["curve"][-1]["error"],
        **kept["distances"],
        "device": kept["numerics"][-1]["device"],
    }


def draw(found: Mapping[Cell, Mapping[str, Any]]) -> None:
    """Draw the curves of the cells of the base recipe as reports/scaling.png."""
    import vl_convert

    rows = [
        {**point, "size": cell.size, "cell": cell.name, "budget": f"{cell.budget:.0e}"}
        for cell, kept in found.items()
        if cell.variation == BASE
        for point in kept["curve"]
        if point["flops"] > 0
    ]
    lowest = [
        {"flops": flops, "error": error}
        for flops, error in envelope([(point["flops"], point["error"]) for point in rows])
    ]
    dashes = {
        "field": "budget",
        "type": "nominal",
        "sort": [f"{budget:.0e}" for budget in sorted({cell.budget for cell in found})],
        "legend": {"symbolType": "stroke", "symbolStrokeColor": "black"},
    }
    chart = {
        "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
        "width": 520,
        "height": 320,
        "background": "white",
        "data": {"values": rows},
        "encoding": {
            "x": {
                "field": "flops",
                "type": "quantitative",
                "title": "training FLOPs",
                "scale": {"type": "log"},
                "axis": {"format": ".0e"},
            },
            "y": {
                "field": "error",
                "type": "quantitative",
                "title": "x0 error on held-out images (averaged weights)",
                "scale": {"type": "log", "nice": False, "zero": False},
                "axis": {"labelExpr": "format(datum.value, '.3f')"},  # else some stay without
            },
            "color": {"field": "size", "type": "nominal", "sort": list(read_study()["sizes"])},
            "detail": {"field": "cell"},
        },
        "layer": [
            {"mark": "line", "encoding": {"strokeDash": dashes}},
            {"mark": {"type": "point", "filled": True, "opacity": 1}},
            {
                "data": {"values": lowest},
                "mark": {"type": "line", "interpolate": "step-after", "strokeWidth": 1},
                "encoding": {"color": {"value": "black"}},
            },
        ],
    }
    write_bytes(FIGURE, vl_convert.vegalite_to_png(json.dumps(chart), scale=2))


def envelope(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the lowest error so far, by training FLOPs, of the points of all curves."""
    flops, errors = zip(*sorted(points), strict=True)
    return list(zip(flops, accumulate(errors, min), strict=True))


if __name__ == "__main__":
    run(main)
