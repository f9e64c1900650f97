"""How long each mask rate pays: the legs of a masked phase from one calibration run a rate.

A leg should end when the next rate goes on at less compute, so that the marginal rate between the
two is 1. Taken that the error says where a training stands, whatever rate brought it there, the
runs' curves say what every way through the rates costs, from the highest down to whole images; the
cheapest one to scratch's last error is taken. Its compute against scratch's is what the legs
promise; what they keep is for a test to say. ``python -m benchmarks.evidence.calibrate`` prints
them; the matrix has them as arms.
"""

from collections import defaultdict
from collections.abc import Mapping
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


def main(
    part: Annotated[str, typer.Argument(help="a part of the matrix with a run a rate")] = PART,
) -> None:
    """Print how long each mask rate pays, by dataset."""
    ways = calibrated(part)
    if not ways:
        raise UserError(
            f"There are no runs of {part} with scratch among them: train them first, with python "
            f"-m benchmarks.evidence.matrix {part}."
        )
    for dataset, way in ways.items():
        total = sum(way.legs.values())
        print(f"{dataset}: error {way.error:.4f}, scratch {way.scratch:.3g} FLOPs")
        for rate, flops in way.legs.items():
            print(f"  rate {rate:g}: {flops:.3g} FLOPs")
        print(f"  together {total:.3g}, {way.scratch / total:.2f} times less")


def calibrated(part: str = PART) -> dict[str, Way]:
    """Return the cheapest ways, by dataset, from the runs that are there."""
    curves: dict[str, dict[float, Curve]] = defaultdict(dict)
    for result in read_results(part):
        rate = 0.0 if result.run.arm == SCRATCH else result.params["mask"]["rate"]
        curves[result.run.dataset][rate] = of_its_rate(result)
    return {dataset: cheapest(rates) for dataset, rates in curves.items() if 0 in rates}


def of_its_rate(result: Result) -> Curve:
    """Return a run's errors without those after its masked phase."""
    masked = primed(result)
    return [point for point in result.curves["error"] if not masked or point[0] <= masked]


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


if __name__ == "__main__":
    command.run(main)
