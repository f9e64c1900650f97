"""What masked pretraining saves, FLOP by FLOP: scratch's compute at equal error − the arm's.

While the curve rises, a masked FLOP saves more than it costs; where it falls, whole images would
have been better from there on. Above 0 the arm is ahead. A network whose learning rate has been
lowered to 0 is better than on the way there, so what has cooled down, on either side, is left out:
the curves say nothing about the ends of such runs.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import mean

from benchmarks.evidence.regimes import PARTS, Arm, comparable, last_error, with_scratch
from benchmarks.evidence.results import Curve, Result, first_reached, read_results

# Of the many arms and tunings that were screened with one seed, the map is enough.
SHOWN = tuple(part for part in PARTS if "screening" not in part)


@dataclass(frozen=True)
class Saving:
    """An arm's course.

    Attributes:
        part: of the matrix.
        dataset: the images.
        arm: its name, tuning, share of its first phase, and share of the part's budget.
        tokens: of a whole image.
        primed: training FLOPs of its first phase.
        points: the arm's training FLOPs so far, and what they have saved, the mean over seeds.
        seeds: how many.
    """

    part: str
    dataset: str
    arm: Arm
    tokens: int
    primed: float
    points: Curve
    seeds: int


def savings(parts: Sequence[str] = SHOWN) -> list[Saving]:
    """Return the courses of all arms that are there, of each its tuning of the lowest error."""
    return [found for part in parts for found in of_part(read_results(part))]


def of_part(results: Sequence[Result]) -> Iterator[Saving]:
    """Yield the courses of one part of the matrix."""
    best: dict[tuple[str, int, str, float], tuple[float, Saving]] = {}
    for dataset, tokens, arm, pairs in with_scratch(results):
        courses = [saved(one, scratch) for one, scratch in pairs]
        shared = set.intersection(*(set(course) for course in courses))
        points = [(flops, mean(c[flops] for c in courses)) for flops in sorted(shared)]
        if not points:
            continue
        name, _, _, of = arm
        error = mean(last_error(one) for one, _ in pairs)
        course = Saving(
            pairs[0][0].run.part, dataset, arm, tokens, primed(pairs[0][0]), points, len(pairs)
        )
        key = dataset, tokens, name, of
        if key not in best or error < best[key][0]:
            best[key] = error, course
    yield from (course for _, course in best.values())


def saved(one: Result, scratch: Result) -> dict[float, float]:
    """Return what an arm has saved, by its training FLOPs; where scratch's curve can say it."""
    theirs = before_cooling(scratch)
    found = {}
    for flops, error in before_cooling(one):
        reached = first_reached(theirs, error)
        # Where scratch was first measured it may have been there long before.
        if reached is not None and reached > theirs[0][0]:
            found[flops] = reached - flops
    return found


def before_cooling(result: Result) -> Curve:
    """Return the comparable errors of a run as long as its learning rate is constant."""
    finetune, last = result.params["finetune"], result.legs[-1]
    cooling = finetune["cooldown"] / finetune["steps"] * last["flops"]
    end = sum(leg["flops"] for leg in result.legs) - cooling
    return [point for point in comparable(result) if point[0] <= end]


def primed(result: Result) -> float:
    """Return the training FLOPs of a run's first phase."""
    return float(sum(leg["flops"] for leg in result.legs if leg["phase"] == "pretrain"))
