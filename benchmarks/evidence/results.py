"""What cells have found, read back: runs, and where they were after how much compute.

Values between two measurements lie on the line between them in logarithms of both, as a power law
has it. Seconds are not the cells' own, which depend on what else the machine did: they are the
cost of every kind of step, measured in turns on an idle machine (``pace.py``), times their number.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from math import log
from pathlib import Path
from typing import Any

from benchmarks.evidence.cell import CELLS
from benchmarks.evidence.plan import ROOT, Cell, read_matrix

PACE = ROOT / "reports/timing/pace.json"

Curve = list[tuple[float, float]]  # (training FLOPs, value), FLOPs ascending


@dataclass(frozen=True)
class Kind:
    """A kind of training step, which takes a time of its own."""

    size: int
    channels: int
    model: str  # the section model, as JSON
    visible: int  # patches
    batch_size: int


@dataclass(frozen=True)
class Run:
    """A cell that has been computed.

    Attributes:
        cell: which.
        budget: training FLOPs that it was given.
        curves: by measure (``error``, ``fd``, ``kid``), what it was after how many FLOPs.
        legs: pretraining and finetuning, as config.json has them.
        params: its params.yaml.
        about: everything else of its file.
        path: that file.
    """

    cell: Cell
    budget: float
    curves: dict[str, Curve]
    legs: list[dict[str, Any]]
    params: dict[str, Any]
    about: dict[str, Any]
    path: Path

    @property
    def of(self) -> tuple[str, str, str, float]:
        """What it has in common with runs of other seeds."""
        return self.cell.dataset, self.cell.arm, self.cell.tuning, self.cell.share

    def kind(self, visible: int, batch_size: int) -> Kind:
        """Return a kind of step of its network."""
        data, model = self.params["data"], json.dumps(self.params["model"], sort_keys=True)
        return Kind(data["size"], data["channels"], model, visible, batch_size)

    def steps(self) -> list[tuple[float, dict[Kind, float]]]:
        """Return every leg's FLOPs, and how many steps of which kind it made."""
        patches = (self.params["data"]["resolution"] // self.params["model"]["patch"]) ** 2
        found = []
        for leg in self.legs:
            batch = leg["batch_size"]
            whole = self.kind(patches, batch)
            counts = {self.kind(leg["visible"], batch): 0.0, whole: 0.0}
            counts[self.kind(leg["visible"], batch)] += (leg["images"] - leg["full_images"]) / batch
            counts[whole] += leg["full_images"] / batch
            found.append((leg["flops"], {kind: n for kind, n in counts.items() if n}))
        return found

    @property
    def elsewhere(self) -> bool:
        """Whether it was pretrained on other images than it was finetuned on."""
        return len({leg["data"] for leg in self.legs}) > 1

    def ends(self) -> dict[str, float]:
        """Return its last values by measure, and the lowest error of finetuning."""
        found = {measure: curve[-1][1] for measure, curve in self.curves.items()}
        masked = sum(leg["flops"] for leg in self.legs if leg["phase"] == "pretrain")
        errors = (value for place, value in self.curves["error"] if place > masked)
        return found | {"lowest_error": min(errors)}

    def seconds(self, pace: Mapping[Kind, float], flops: float) -> float | None:
        """Return the seconds after so many FLOPs, None if a kind of its steps was not measured."""
        corners = [(0.0, 0.0)]
        for cost, counts in self.steps():
            if not pace.keys() >= counts.keys():
                return None
            spent = sum(pace[kind] * count for kind, count in counts.items())
            corners.append((corners[-1][0] + cost, corners[-1][1] + spent))
        return linear(corners, flops)


def read_runs(part: str, folder: Path = CELLS) -> list[Run]:
    """Return the cells of a part of the matrix that are there, in the order of the matrix."""
    matrix = read_matrix()
    places = [
        {name: place for place, name in enumerate(matrix[kind])}
        for kind in ("datasets", "arms", "tunings")
    ]

    def order(run: Run) -> tuple[float, ...]:
        names = (run.cell.dataset, run.cell.arm, run.cell.tuning)
        # What the matrix does not know any more comes last.
        found = (place.get(name, len(place)) for place, name in zip(places, names, strict=True))
        return (*found, run.cell.share, run.cell.seed)

    return sorted(map(read_run, sorted((folder / part).rglob("*.json"))), key=order)


def read_run(path: Path) -> Run:
    """Return what a cell's file holds."""
    found = json.loads(path.read_text(encoding="utf-8"))
    cell = {name: found["cell"][name] for name in ("dataset", "arm", "tuning", "share", "seed")}
    curves: dict[str, Curve] = {"error": [(row["flops"], row["error"]) for row in found["curve"]]}
    for name in ("fd", "kid"):
        points = [(row["flops"], row[name]) for row in found["points"] if name in row]
        if points:
            curves[name] = points
    rest = ("arithmetic", "code", "curve", "points", "seconds")
    about = {name: found[name] for name in rest}
    part = found["cell"].get("part", path.parent.parent.name)
    budget = found["cell"]["budget"]
    legs, params = found["training"], found["params"]
    return Run(Cell(part=part, **cell), budget, curves, legs, params, about, path)


def read_pace() -> dict[Kind, float]:
    """Return the seconds of every kind of step that was measured."""
    if not PACE.exists():
        return {}
    rows = json.loads(PACE.read_text(encoding="utf-8"))["kinds"]
    return {Kind(**{f.name: row[f.name] for f in fields(Kind)}): row["seconds"] for row in rows}


def at(curve: Sequence[tuple[float, float]], flops: float) -> float | None:
    """Return the value of a curve at some compute, None where it does not reach.

    A measurement that is within one hundredth of ``flops`` is taken to be there: steps are whole.
    """
    for place, value in curve:
        if abs(place / flops - 1) < 0.01:
            return value
    for (before, low), (after, high) in pairwise(curve):
        if before <= flops <= after:
            return between(flops, before, after, low, high)
    return None


def first_reached(curve: Sequence[tuple[float, float]], target: float) -> float | None:
    """Return the least compute after which a curve is at ``target`` or below, None if never.

    Of a curve that begins there it is where it begins: less may have been enough.
    """
    before: tuple[float, float] | None = None
    for place, value in curve:
        if value <= target:
            if before is None:
                return place
            return between(target, before[1], value, before[0], place)
        before = (place, value)
    return None


def between(x: float, left: float, right: float, low: float, high: float) -> float:
    """Return the height at ``x`` of the power law through (left, low) and (right, high).

    A kernel distance may be 0 or below, where there is no such law: then the line through both.
    """
    if min(left, right, low, high) <= 0:
        return low + (x - left) / (right - left) * (high - low)
    share = log(x / left) / log(right / left)
    return high if share == 1 else low * (high / low) ** share


def linear(corners: Sequence[tuple[float, float]], x: float) -> float:
    """Return the height at ``x`` of a line through corners, going on straight at its end."""
    for before, after in pairwise(corners):
        if x <= after[0] or after is corners[-1]:
            share = (x - before[0]) / (after[0] - before[0])
            return before[1] + share * (after[1] - before[1])
    raise ValueError("a line needs two corners")
