"""The results of runs, read back: their curves, and the seconds that their steps take.

Values between two measurements lie on the line between them in logarithms of both, as a power law
has it. Seconds are not the runs' own, which depend on what else the machine did: they are the time
of every kind of step, measured in turns on an idle machine (``step_times.py``), times their number.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from math import log
from pathlib import Path
from typing import Any

from benchmarks.evidence.plan import ROOT, Run, read_matrix
from benchmarks.evidence.train import RUNS

STEP_TIMES = ROOT / "reports/timing/step_times.json"

NEAR = 0.01  # of a compute: a measurement so near to it is at it, since steps are whole

Curve = list[tuple[float, float]]  # (training FLOPs, value), FLOPs ascending


@dataclass(frozen=True)
class Kind:
    """A kind of training step; all steps of a kind take the same time."""

    resolution: int
    channels: int
    model: str  # the section model, as JSON
    visible: int  # patches
    batch_size: int


@dataclass(frozen=True)
class Result:
    """The result of a run.

    Attributes:
        run: which.
        budget: its training FLOPs.
        curves: by measure (``error``, ``fd``, ``kid``), values against training FLOPs.
        legs: those of pretraining and finetuning, as in config.json.
        params: its params.yaml.
        about: everything else in its file.
        path: that file.
    """

    run: Run
    budget: float
    curves: dict[str, Curve]
    legs: list[dict[str, Any]]
    params: dict[str, Any]
    about: dict[str, Any]
    path: Path

    @property
    def group(self) -> tuple[str, str, str, float]:
        """What it has in common with runs of other seeds."""
        return self.run.dataset, self.run.arm, self.run.tuning, self.run.share

    def kind(self, visible: int, batch_size: int) -> Kind:
        """Return a kind of step of its network."""
        data, model = self.params["data"], json.dumps(self.params["model"], sort_keys=True)
        return Kind(data["resolution"], data["channels"], model, visible, batch_size)

    def steps(self) -> list[tuple[float, dict[Kind, float]]]:
        """Return every leg's FLOPs, and how many steps of which kinds it made."""
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
    def pretrained_elsewhere(self) -> bool:
        """Whether it was pretrained on other images than it was finetuned on."""
        return len({leg["data"] for leg in self.legs}) > 1

    def ends(self) -> dict[str, float]:
        """Return its last values by measure, and the lowest error of finetuning."""
        found = {measure: curve[-1][1] for measure, curve in self.curves.items()}
        masked = sum(leg["flops"] for leg in self.legs if leg["phase"] == "pretrain")
        errors = (value for flops, value in self.curves["error"] if flops > masked)
        return found | {"lowest_error": min(errors)}

    def seconds(self, step_times: Mapping[Kind, float], flops: float) -> float | None:
        """Return the seconds of so many FLOPs, None if a kind of its steps was not timed."""
        corners = [(0.0, 0.0)]
        for cost, counts in self.steps():
            if not step_times.keys() >= counts.keys():
                return None
            spent = sum(step_times[kind] * count for kind, count in counts.items())
            corners.append((corners[-1][0] + cost, corners[-1][1] + spent))
        return linear(corners, flops)


def read_results(part: str, folder: Path = RUNS) -> list[Result]:
    """Return the results of a part of the matrix that are there, in the order of the matrix."""
    matrix = read_matrix()
    ranks = [
        {name: rank for rank, name in enumerate(matrix[kind])}
        for kind in ("datasets", "arms", "tunings")
    ]

    def order(result: Result) -> tuple[float, ...]:
        run = result.run
        names = (run.dataset, run.arm, run.tuning)
        # Names that are no longer in the matrix come last.
        own = (rank.get(name, len(rank)) for rank, name in zip(ranks, names, strict=True))
        return (*own, run.share, run.seed)

    return sorted(map(read_result, sorted((folder / part).rglob("*.json"))), key=order)


def read_result(path: Path) -> Result:
    """Return the result that a file holds."""
    found = json.loads(path.read_text(encoding="utf-8"))
    names = {field.name for field in fields(Run)}
    run = Run(**{name: value for name, value in found["run"].items() if name in names})
    curves: dict[str, Curve] = {"error": [(row["flops"], row["error"]) for row in found["curve"]]}
    for name in ("fd", "kid"):
        points = [(row["flops"], row[name]) for row in found["points"] if name in row]
        if points:
            curves[name] = points
    about = {name: found[name] for name in ("numerics", "code", "curve", "points", "seconds")}
    about |= {name: found.get(name, {}) for name in ("levels", "training_images")}
    about["weights"] = found.get("weights")  # None of a result of before they were noted
    legs, params = found["training"], found["params"]
    return Result(run, found["run"]["budget"], curves, legs, params, about, path)


def read_step_times() -> dict[Kind, float]:
    """Return the seconds of every kind of step that was timed."""
    if not STEP_TIMES.exists():
        return {}
    rows = json.loads(STEP_TIMES.read_text(encoding="utf-8"))["kinds"]
    return {Kind(**{f.name: row[f.name] for f in fields(Kind)}): row["seconds"] for row in rows}


def at(curve: Sequence[tuple[float, float]], flops: float) -> float | None:
    """Return the value of a curve at some compute, None where it does not reach.

    A measurement that is within ``NEAR`` of ``flops`` is taken to be there.
    """
    for measured, value in curve:
        if abs(measured / flops - 1) < NEAR:
            return value
    for (before, low), (after, high) in pairwise(curve):
        if before <= flops <= after:
            return between(flops, before, after, low, high)
    return None


def first_reached(curve: Sequence[tuple[float, float]], target: float) -> float | None:
    """Return the least compute after which a curve is at ``target`` or below, None if never.

    If a curve begins there, it is the curve's first point: less may have been enough.
    """
    before: tuple[float, float] | None = None
    for flops, value in curve:
        if value <= target:
            if before is None:
                return flops
            return between(target, before[1], value, before[0], flops)
        before = (flops, value)
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
    """Return the height at ``x`` of a line through corners, extended straight at its end."""
    for before, after in pairwise(corners):
        if x <= after[0] or after is corners[-1]:
            share = (x - before[0]) / (after[0] - before[0])
            return before[1] + share * (after[1] - before[1])
    raise ValueError("a line needs two corners")
