"""How long a masked leg pays, from calibration runs: two rules for where to end it.

A leg should end when its marginal rate is 1: when a further masked FLOP saves no more than a FLOP
of training from scratch. Where a masked training stands can be read in two ways.

Off its own error on whole images (``cheapest``): there is a run a rate, masked to its end, and of
all ways through the rates, from the highest down to whole images, the cheapest to scratch's last
error is taken. This takes a training to stand where its error says, whatever rate brought it there.
A masked network's error says too little: it has not seen whole images, and learns the rest of what
it lacks in a few steps of them. So these legs are too short, and what they promise is too little.

Off the error after a short branch on whole images (``Branch``): what scratch would have spent to be
there, less all that was spent, is what the masked phase has saved; where that is highest as its
length grows, it should end.

``python -m benchmarks.evidence.calibrate`` prints both; the matrix has the legs of the first as an
arm of the test.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import typer

from benchmarks.evidence.results import Curve, Result, first_reached, read_results
from benchmarks.evidence.saved import primed
from benchmarks.evidence.summary import SCRATCH
from maskdm.runtime import command
from maskdm.runtime.errors import UserError

PART = "decision-8-calibration"
CHANGES = 200  # errors at which a leg may end


@dataclass(frozen=True)
class Way:
    """The cheapest way to an error.

    Attributes:
        legs: training FLOPs by mask rate, the highest rate first; whole images have the rate 0.
        error: where it ends.
        scratch: training FLOPs after which scratch is there.
    """

    legs: dict[float, float]
    error: float
    scratch: float


@dataclass(frozen=True)
class Branch:
    """A masked phase of some length, and a few steps on whole images behind it.

    Attributes:
        arm: its name.
        masked: training FLOPs of the masked phase.
        flops: of both.
        error: at its end.
        scratch: training FLOPs after which scratch is there; None if it never is.
    """

    arm: str
    masked: float
    flops: float
    error: float
    scratch: float | None

    @property
    def saved(self) -> float | None:
        """What the masked phase has saved so far."""
        return None if self.scratch is None else self.scratch - self.flops


def main(
    part: Annotated[str, typer.Argument(help="a part of the matrix with a run a rate")] = PART,
) -> None:
    """Print how long masked legs pay, by dataset."""
    results = read_results(part)
    ways = cheapest_of_all(results)
    if not ways:
        raise UserError(
            f"There are no runs of {part} with scratch among them: train them first, with python "
            f"-m benchmarks.evidence.matrix {part}."
        )
    for dataset, way in ways.items():
        total = sum(way.legs.values())
        print(f"{dataset}: scratch gets to {way.error:.4f} in {way.scratch:.3g} FLOPs")
        for rate, flops in way.legs.items():
            print(f"  by errors: rate {rate:g} for {flops:.3g} FLOPs")
        print(f"  by errors: together {total:.3g}, {way.scratch / total:.2f} times less")
        for branch in branches(results, dataset):
            saved = "scratch never is" if branch.saved is None else f"{branch.saved:+.3g} saved"
            print(
                f"  by branches: {branch.arm} for {branch.masked:.3g} FLOPs, then whole images, "
                f"{branch.flops:.3g} in all: {branch.error:.4f}, {saved}"
            )


def cheapest_of_all(results: Sequence[Result]) -> dict[str, Way]:
    """Return the cheapest ways, by dataset, where scratch is there."""
    curves: dict[str, dict[float, Curve]] = defaultdict(dict)
    for result in results:
        if result.run.arm == SCRATCH:
            curves[result.run.dataset][0.0] = result.curves["error"]
        elif result.run.share == 1:
            curves[result.run.dataset][result.params["mask"]["rate"]] = while_masked(result)
    return {dataset: cheapest(rates) for dataset, rates in curves.items() if 0 in rates}


def while_masked(result: Result) -> Curve:
    """Return a run's errors without those after its masked phase."""
    return [point for point in result.curves["error"] if point[0] <= primed(result)]


def cheapest(curves: Mapping[float, Curve]) -> Way:
    """Return the cheapest way to scratch's lowest error, from higher mask rates to lower ones.

    Args:
        curves: by mask rate, training FLOPs and error; with the rate 0, scratch.
    """
    error = float(min(value for _, value in curves[0]))
    highest = max(value for curve in curves.values() for _, value in curve)
    errors = np.geomspace(highest, error, CHANGES)
    # What it costs to be at each error, from the start on; the start itself has no error.
    cost = np.concatenate([[0.0], np.full(CHANGES, np.inf)])
    spent = {rate: compute_to(curves[rate], errors) for rate in sorted(curves, reverse=True)}
    entered = {}
    for rate, there in spent.items():
        with np.errstate(invalid="ignore"):
            leg = there[None, :] - there[:, None]  # from row to column; errors only fall
        ways = cost[:, None] + np.where(np.triu(np.isfinite(leg)), leg, np.inf)
        np.fill_diagonal(ways, cost)  # the rate is left out
        entered[rate] = ways.argmin(axis=0)
        cost = ways.min(axis=0)
    legs, end = {}, CHANGES
    for rate in reversed(spent):
        begin = int(entered[rate][end])
        if begin < end:
            legs[rate] = float(spent[rate][end] - spent[rate][begin])
        end = begin
    return Way(dict(reversed(legs.items())), error, float(spent[0.0][-1]))


def compute_to(curve: Curve, errors: np.ndarray) -> np.ndarray:
    """Return after which training FLOPs a curve is at the start, 0, and at errors.

    Infinite where it never is, and above its first measurement, which does not say when it was.
    """
    reached = [first_reached(curve, error) if error <= curve[0][1] else None for error in errors]
    return np.array([0.0, *(np.inf if flops is None else flops for flops in reached)])


def branches(results: Sequence[Result], dataset: str) -> list[Branch]:
    """Return the branches of a dataset, the shortest masked phase first.

    Raises:
        UserError: if scratch was run more than once on it, or never.
    """
    return sorted(_branches(results, dataset), key=lambda branch: (branch.arm, branch.masked))


def _branches(results: Sequence[Result], dataset: str) -> Iterator[Branch]:
    here = [result for result in results if result.run.dataset == dataset]
    scratches = [result.curves["error"] for result in here if result.run.arm == SCRATCH]
    if len(scratches) != 1:
        raise UserError(
            f"{here[0].run.part} has {len(scratches)} runs of scratch on {dataset}, where a "
            f"calibration has one: take {PART}."
        )
    for result in here:
        if 0 < result.run.share < 1:
            flops, error = result.curves["error"][-1]
            there = first_reached(scratches[0], error)
            yield Branch(result.run.arm, primed(result), flops, error, there)


if __name__ == "__main__":
    command.run(main)
