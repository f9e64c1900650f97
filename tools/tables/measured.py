"""The measurements in reports/: tables of docs/speed.md and docs/scaling.md."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.scaling.planning import SIZES
from benchmarks.scaling.seams import PICTURES, images_of, seams
from benchmarks.speed.results import Row

REPORTS = Path("reports")


def speed() -> str:
    """Return the table of ``make bench``, under the machine of the measurement."""
    report = _read("bench.json")
    rows = [
        (
            row.name,
            f"{number(row.value)} {row.unit}",
            f"{number(row.limit)} {row.unit}",
            f"{row.ratio:.2f}",
            f"{'≥' if row.higher_is_better else '≤'} {row.goal:g}"
            + ("" if row.meets_goal else ", missed"),
        )
        for row in map(Row.of, report["rows"])
    ]
    return f"{_machine(report)}\n\n{in_markdown(('', 'value', 'limit', 'ratio', 'goal'), rows)}"


def growth() -> str:
    """Return the exponents of reports/growth.json, under the machine."""
    report = _read("growth.json")
    rows = []
    for whole in report["overall"]:
        of = ("factor", "quantity")
        along = [row for row in report["rows"] if all(row[key] == whole[key] for key in of)]
        goal = whole["goal"]
        met = goal is None or whole["exponent_measured"] <= goal
        rows.append(
            (
                whole["quantity"],
                f"{whole['factor']} " + " → ".join(f"{row['value']:,}" for row in along),
                " → ".join(number(row["measured"]) for row in along) + f" {along[0]['unit']}",
                f"{whole['exponent_measured']:.2f}",
                f"{whole['exponent_computed']:.2f}"
                if goal is None
                else f"≤ {goal:g}" + ("" if met else ", missed"),
            )
        )
    head = ("", "grows with", "measured", "exponent", "of the FLOPs, or goal")
    return f"{_machine(report)}\n\n{in_markdown(head, rows)}"


def shards() -> str:
    """Return the figures of reports/shards.json: MiB a second by client, batches by place."""
    report = _read("shards.json")
    rows = [
        (f"read with {name} {report['versions'][name]}", f"{number(value)} MiB/s")
        for name, value in report["MiB_per_second_read"].items()
    ]
    rows.append(("written with s3fs, once", f"{number(report['MiB_per_second_written'])} MiB/s"))
    rows += [
        (f"batches from the {place}", f"{number(value)} a second")
        for place, value in report["batches_per_second"].items()
    ]
    return f"{_machine(report)}\n\n{in_markdown(('', 'median of three'), rows)}"


def evaluations() -> str:
    """Return the distances of reports/solvers.json, a solver a row."""
    report = _read("solvers.json")
    cells = report["cells"]
    name = next(key for key in cells[0] if key.startswith("kid"))
    found = {(cell["solver"], cell["nfe"]): cell[name] for cell in cells}
    counts = sorted({nfe for _, nfe in found})
    solvers = list(dict.fromkeys(solver for solver, _ in found))
    rows = [
        (f"`{solver}`", *(number(found.get((solver, nfe))) for nfe in counts)) for solver in solvers
    ]
    table = in_markdown((f"`{name}` after …", *(f"{nfe} evaluations" for nfe in counts)), rows)
    deviation = max(cell[f"{name}_std"] or 0.0 for cell in cells)
    said = f"{report['images']} images a cell, deviation over subsets at most {deviation:.2g}:"
    return f"{said}\n\n{table}"


def guidance() -> str:
    """Return the distances of reports/guidance.json, a solver and interval of times a row."""
    report = _read("guidance.json")
    cells = report["cells"]
    name = next(key for key in cells[0] if key.startswith("kid"))
    scales = sorted({cell["guide_scale"] for cell in cells})
    plain = {cell["solver"]: cell for cell in cells if cell["guide_scale"] == 1}
    lines: dict[tuple[str, float, float], dict[float, Any]] = {}
    for cell in cells:
        if cell["guide_scale"] != 1:
            line = lines.setdefault((cell["solver"], *cell["guide_interval"]), {})
            line[cell["guide_scale"]] = cell
    measures = (name, *(key for key in ("precision", "recall", "coverage") if key in cells[0]))
    rows = [
        (
            f"`{solver}`, {plain[solver]['nfe']} evaluations, times {low:g} to {high:g}",
            f"{plain[solver]['network_passes']} → {next(iter(line.values()))['network_passes']}",
            f"`{measure}`",
            *(number({1.0: plain[solver], **line}.get(scale, {}).get(measure)) for scale in scales),
        )
        for measure in measures
        for (solver, low, high), line in lines.items()
    ]
    head = ("at scale …", "passes", "", *(f"{scale:g}" for scale in scales))
    draws = report.get("draws", 1)
    said = f"Means of {draws} × {report['images']} images a cell; scale 1 is no guidance:"
    return f"{said}\n\n{in_markdown(head, rows)}"


def averages() -> str:
    """Return what averages of reports/averages.json measure, by the cool-down of their run."""
    report = _read("averages.json")
    cells = report["cells"]
    name = next(key for key in cells[0] if key.startswith("kid"))
    rows = [
        (
            f"{cell['cooldown']:,} of {report['steps']:,} steps",
            cell["average"],
            f"{cell['error']:.4f}",
            f"{cell[name]:.4f} ± {cell[f'{name}_std']:.4f}",
        )
        for cell in cells
    ]
    head = ("cool-down", "average", "error", f"`{name}` of {report['samples']} samples")
    return in_markdown(head, rows)


def scaling() -> str:
    """Return the cells of reports/scaling.json, the best first within a budget."""
    report = _read("scaling.json")
    cells = sorted(report["cells"], key=lambda cell: (cell["budget"], cell["error"]))
    rows = [
        (
            f"{cell['budget']:.0e}".replace("e+", "e"),
            cell["size"],
            cell["variation"],
            f"{cell['steps'][0]:,} + {cell['steps'][1]:,}",
            f"{cell['images']:,}",
            f"{cell['error']:.4f}",
            *(
                number(cell[name][measure]) if name in cell else ""
                for name in ("plain", "guided")
                for measure in ("fd", "kid")
            ),
        )
        for cell in cells
    ]
    head = ("FLOPs", "size", "variation", "steps", "images", "error", "FD", "KID",
            "FD guided", "KID guided")  # fmt: skip
    return in_markdown(head, rows)


def sizes() -> str:
    """Return what ``tools.plan`` takes for a budget, and what that stands on."""
    rows = [
        (
            f"{size.budget:.0e}".replace("e+", "e") if size.budget else "0",
            f"{size.dim}",
            f"{size.depth}",
            " / ".join(map(str, size.batches)),
            f"{size.lr:g}",
            f"{size.ema_images:,}",
            size.stands_on,
        )
        for size in SIZES
    ]
    head = ("from FLOPs", "width", "blocks", "batches", "learning rate", "average, images",
            "width stands on")  # fmt: skip
    return in_markdown(head, rows)


def of_patches() -> str:
    """Return how flat areas of the pictures of samples differ across and within patches of 4."""
    rows = []
    for picture, side in PICTURES.items():
        found = seams(images_of(Path(picture), side), patch=4)
        levels = (found.across, found.within, found.ratio)
        rows.append((f"`{picture}`", f"{found.windows}", *(f"{level:.2f}" for level in levels)))
    head = ("80 samples", "flat windows", "levels across seams", "within patches", "ratio")
    return in_markdown(head, rows)


def _read(name: str) -> Any:
    return json.loads((REPORTS / name).read_text(encoding="utf-8"))


def number(value: float | None) -> str:
    """Return three significant digits; a dash for what could not be measured."""
    if value is None:
        return "–"
    return f"{float(f'{value:.3g}'):,g}"


def _machine(report: dict[str, Any]) -> str:
    """Return a sentence on the machine and the versions of the measurement."""
    machine, versions = report["machine"], report["versions"]
    return (
        f"On {machine['cpu']}, {machine['cores']} cores, {machine['memory']}, device "
        f"{machine['device']}; Python {versions['python']}, torch {versions['torch']}:"
    )


def in_markdown(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """Return a table in Markdown."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ("---",) * len(head), *rows))
