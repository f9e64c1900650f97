"""Where masked pretraining pays: of every committed run, tokens × budget → factor of compute.

The factor is scratch's training FLOPs ÷ the arm's, at equal error on held-out images. Scratch is
the one of the lowest error at its end among those with as many tokens, on the same seed. Where the
arm gets to scratch's last error, that is the error at which they are compared; elsewhere it is the
arm's last error, which scratch has passed.

Runs that cool down are better at their end than at any point before, so of these the ends of all
budgets that there are make the curve, with a power law between two; where one side is ahead of the
other from its first end on, the factor is a bound.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import geometric_mean, mean

from benchmarks.evidence.results import Curve, Result, first_reached, read_results
from benchmarks.evidence.summary import SCRATCH, budgets

# Transfer is left out: its pretraining is outside the budget.
PARTS = (
    "screening", "confirmation", "fine-screening", "fine",
    "decision-32", "decision-8", "decision-4", "decision-tuning", "decision",
)  # fmt: skip
EXACT, LEAST, MOST, MIXED = "measured", "at least", "at most", "a mean of both"

Arm = tuple[str, str, float]  # arm, tuning, share
Factor = tuple[float, str]  # and whether that is EXACT, or a bound: LEAST or MOST
# What has ended, of every budget; and the whole course of the longest, which is never better than
# what ends there.
Side = tuple[Curve, Curve]


@dataclass(frozen=True)
class Regime:
    """An arm somewhere on the map.

    Attributes:
        part: of the matrix.
        dataset: the images.
        arm: its name, tuning and share masked.
        against: scratch's tuning.
        tokens: of a whole image.
        budget: training FLOPs of scratch.
        seeds: seed → its factor.
    """

    part: str
    dataset: str
    arm: Arm
    against: str
    tokens: int
    budget: float
    seeds: dict[int, Factor]

    @property
    def factor(self) -> float:
        """The geometric mean over seeds."""
        return geometric_mean(value for value, _ in self.seeds.values())

    @property
    def bound(self) -> str:
        """What the mean is: ``MIXED`` if some seeds have the one bound and some the other."""
        bounds = {bound for _, bound in self.seeds.values()} - {EXACT}
        return EXACT if not bounds else bounds.pop() if len(bounds) == 1 else MIXED


def regimes(parts: Sequence[str] = PARTS) -> list[Regime]:
    """Return the map's points, from the runs that are there."""
    return [found for part in parts for found in of_part(read_results(part))]


def of_part(results: Sequence[Result]) -> Iterator[Regime]:
    """Yield the points of one part of the matrix."""
    # Images, tokens and arm → seed → its runs, of the least budget first.
    groups: dict[tuple[str, int, Arm], dict[int, list[Result]]] = defaultdict(dict)
    for one in sorted(results, key=lambda one: one.run.of):
        key = one.run.dataset, tokens(one), (one.run.arm, one.run.tuning, one.run.share)
        groups[key].setdefault(one.run.seed, []).append(one)
    for (dataset, count, arm), seeds in groups.items():
        scratches = [
            whole
            for (*where, (name, _, _)), other in groups.items()
            if where == [dataset, count] and name == SCRATCH
            if (whole := {seed: runs for seed, runs in other.items() if runs[-1].run.of == 1})
            and whole.keys() & seeds
        ]
        if arm[0] == SCRATCH or not scratches:
            continue
        scratch = min(
            scratches, key=lambda other: mean(last_error(runs[-1]) for runs in other.values())
        )
        pairs = {seed: (runs, scratch[seed]) for seed, runs in seeds.items() if seed in scratch}
        (_, first), *_ = pairs.values()
        for budget in (first[-1].budget,) if has_cooled(first[-1]) else budgets(first[-1:]):
            found = {
                seed: factor(side(own, budget), side(other, budget))
                for seed, (own, other) in pairs.items()
            }
            known = {seed: value for seed, value in found.items() if value}
            if len(known) == len(found):
                yield Regime(
                    first[-1].run.part, dataset, arm, first[-1].run.tuning, count, budget, known
                )


def side(runs: Sequence[Result], budget: float) -> Side:
    """Return the curves of an arm's, or scratch's, runs of one seed up to a budget.

    Args:
        runs: of the least budget first.
        budget: training FLOPs.
    """
    course = [point for point in comparable(runs[-1]) if point[0] <= 1.01 * budget]
    return ([comparable(one)[-1] for one in runs] if has_cooled(runs[-1]) else course), course


def factor(own: Side, scratch: Side) -> Factor | None:
    """Return scratch's compute ÷ an arm's at equal error.

    None if that cannot be said: neither curve reaches the other's last error.
    """
    (ends, course), (other, other_course) = own, scratch
    if not ends:
        return None
    target = other[-1][1]
    before, after = first_reached(other, target), first_reached(ends, target)
    if before and after:
        if after > ends[0][0]:
            return before / after, EXACT
        return before / min(after, first_reached(course, target) or after), LEAST
    passed = first_reached(other, ends[-1][1])
    if passed is None:
        return None
    if passed > other[0][0]:
        return passed / ends[-1][0], EXACT
    return min(passed, first_reached(other_course, ends[-1][1]) or passed) / ends[-1][0], MOST


def has_cooled(result: Result) -> bool:
    """Return whether a run's learning rate was lowered to 0 at its end."""
    return bool(result.params["finetune"]["cooldown"])


def comparable(result: Result) -> Curve:
    """Return the errors of a run; a primer on smaller images has errors of its own, left out."""
    if not result.pretrained_elsewhere:
        return result.curves["error"]
    primed = sum(leg["flops"] for leg in result.legs if leg["phase"] == "pretrain")
    return [(flops, error) for flops, error in result.curves["error"] if flops > primed]


def last_error(result: Result) -> float:
    """Return the error at a run's end."""
    return result.curves["error"][-1][1]


def tokens(result: Result) -> int:
    """Return the patches of a whole image of a run."""
    return int(result.params["data"]["resolution"] // result.params["model"]["patch"]) ** 2
