"""What masked pretraining saves, FLOP by FLOP: scratch's compute at equal error − the arm's.

While the curve rises, a masked FLOP saves more than it costs; where it falls, whole images would
have been better from there on. Above 0 the arm is ahead. Scratch's is the least compute of any of
its tunings, on the same seed.

A network whose learning rate has been lowered to 0 is better than on the way there, so what has
cooled down, on either side, is left out: the curves say nothing about the ends of such runs. Where
an arm is better than all that is left of scratch's curves, it has saved *at least* what lies
between it and their end.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev

from benchmarks.evidence.regimes import PARTS, comparable, last_error, tokens
from benchmarks.evidence.results import NEAR, Curve, Result, first_reached, read_results
from benchmarks.evidence.summary import SCRATCH

# Of the many arms and tunings that were screened with one seed, the map is enough. Two parts were
# run in bf16 when what was measured there as the averaged weights' error was nearly the raw
# weights': after a cool-down these are nearly the same, before it, where these curves are, not.
IN_BF16 = ("decision-tuning", "decision")
SHOWN = tuple(part for part in PARTS if "screening" not in part and part not in IN_BF16)


@dataclass(frozen=True)
class Point:
    """A point of an arm's course.

    Attributes:
        flops: the arm's training FLOPs so far.
        saved: what they have saved, the mean over seeds.
        exact: whether it is that; otherwise it is at least that, on some seed.
        deviation: over seeds; 0 for one.
    """

    flops: float
    saved: float
    exact: bool
    deviation: float


@dataclass(frozen=True)
class Course:
    """An arm's course.

    Attributes:
        part: of the matrix.
        dataset: the images.
        tokens: of a whole image.
        arm: its name.
        tuning: its tuning of the lowest error at the end.
        primed: training FLOPs of its first phase.
        points: in order; perhaps none.
        seeds: how many.
    """

    part: str
    dataset: str
    tokens: int
    arm: str
    tuning: str
    primed: float
    points: list[Point]
    seeds: int

    @property
    def after_priming(self) -> Point | None:
        """The point at the end of the first phase, if it was measured there."""
        near = (p for p in self.points if abs(p.flops / self.primed - 1) < NEAR)
        return next(near, None)

    @property
    def last(self) -> Point | None:
        """The last point that is exact, or the last one."""
        exact = [point for point in self.points if point.exact]
        return next(reversed(exact or self.points), None)


def courses(parts: Sequence[str] = SHOWN) -> list[Course]:
    """Return the courses of all arms that are there."""
    return [found for part in parts for found in of_part(read_results(part))]


def of_part(results: Sequence[Result]) -> Iterator[Course]:
    """Yield the courses of one part of the matrix."""
    scratches: dict[tuple[str, int, int], list[Curve]] = defaultdict(list)
    tunings: dict[tuple[str, int, str, float], dict[tuple[str, float], list[Result]]] = {}
    for one in results:
        run, count = one.run, tokens(one)
        if run.arm == SCRATCH and run.of == 1:
            scratches[run.dataset, count, run.seed].append(before_cooling(one))
        elif run.arm != SCRATCH:
            settings = tunings.setdefault((run.dataset, count, run.arm, run.of), {})
            settings.setdefault((run.tuning, run.share), []).append(one)
    for (dataset, count, arm, _), settings in tunings.items():
        best = min(settings.values(), key=lambda runs: mean(map(last_error, runs)))
        paired = [one for one in best if (dataset, count, one.run.seed) in scratches]
        if paired:
            first = paired[0]
            found = [saved(one, scratches[dataset, count, one.run.seed]) for one in paired]
            yield Course(
                first.run.part, dataset, count, arm, first.run.tuning, primed(first),
                list(averaged(found)), len(paired),
            )  # fmt: skip


def saved(one: Result, scratches: Sequence[Curve]) -> dict[float, tuple[float, bool]]:
    """Return what an arm has saved by its training FLOPs, and whether that is exact or at least.

    Args:
        one: the arm.
        scratches: scratch's curves, not empty, before it cools down.
    """
    found = {}
    for flops, error in before_cooling(one):
        reached = [(first_reached(curve, error), curve[0][0]) for curve in scratches]
        known = [(there, begun) for there, begun in reached if there is not None]
        if not known:
            found[flops] = min(curve[-1][0] for curve in scratches) - flops, False
            continue
        there, begun = min(known)
        if there > begun:  # where scratch was first measured it may have been there long before
            found[flops] = there - flops, True
    return found


def averaged(seeds: Sequence[Mapping[float, tuple[float, bool]]]) -> Iterator[Point]:
    """Yield the mean of what all seeds have saved, where all say it."""
    for flops in sorted(set.intersection(*(set(one) for one in seeds))):
        values, exact = zip(*(one[flops] for one in seeds), strict=True)
        deviation = stdev(values) if len(values) > 1 else 0.0
        yield Point(flops, mean(values), all(exact), deviation)


def before_cooling(result: Result) -> Curve:
    """Return the comparable errors of a run as long as its learning rate is constant."""
    finetune, last = result.params["finetune"], result.legs[-1]
    cooling = finetune["cooldown"] / finetune["steps"] * last["flops"]
    end = sum(leg["flops"] for leg in result.legs) - cooling
    return [point for point in comparable(result) if point[0] <= end]


def primed(result: Result) -> float:
    """Return the training FLOPs of a run's first phase."""
    return float(sum(leg["flops"] for leg in result.legs if leg["phase"] == "pretrain"))
