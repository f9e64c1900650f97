"""Where masked pretraining pays: of every committed run, tokens × budget → factor of compute.

The factor is scratch's training FLOPs ÷ the arm's, at equal error on held-out images. Scratch is
the one of the lowest error at its end among those with as many tokens, on the same seed. Where the
arm gets to scratch's last error, that is the error at which they are compared; elsewhere it is the
arm's last error, which scratch's curve has passed. Runs that cool down are better at their end than
at any point before: a factor read off the curve of one of them is a bound.
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

Arm = tuple[str, str, float, float]  # arm, tuning, share, of


@dataclass(frozen=True)
class Regime:
    """An arm somewhere on the map.

    Attributes:
        part: of the matrix.
        dataset: the images.
        arm: its name, tuning, share masked, and share of the part's budget.
        tokens: of a whole image.
        budget: training FLOPs of scratch.
        factor: the geometric mean over seeds.
        bound: what that is: ``EXACT``, ``LEAST``, ``MOST``, or ``MIXED``, of seeds of both bounds.
        seeds: how many.
    """

    part: str
    dataset: str
    arm: Arm
    tokens: int
    budget: float
    factor: float
    bound: str
    seeds: int


def regimes(parts: Sequence[str] = PARTS) -> list[Regime]:
    """Return the map's points, from the runs that are there."""
    return [found for part in parts for found in of_part(read_results(part))]


def of_part(results: Sequence[Result]) -> Iterator[Regime]:
    """Yield the points of one part of the matrix."""
    groups: dict[tuple[str, int, Arm], dict[int, Result]] = defaultdict(dict)
    for one in results:
        arm = one.run.arm, one.run.tuning, one.run.share, one.run.of
        groups[one.run.dataset, tokens(one), arm][one.run.seed] = one
    for (dataset, count, arm), seeds in groups.items():
        scratches = [
            other
            for (*where, (name, _, _, of)), other in groups.items()
            if where == [dataset, count] and name == SCRATCH and of == 1 and other.keys() & seeds
        ]
        if arm[0] == SCRATCH or not scratches:
            continue
        scratch = min(scratches, key=lambda other: mean(map(last_error, other.values())))
        pairs = [(one, scratch[seed]) for seed, one in seeds.items() if seed in scratch]
        cooled = bool(pairs[0][0].params["finetune"]["cooldown"])
        for budget in (pairs[0][1].budget,) if cooled else budgets([pairs[0][1]]):
            found = [factor(one, other, budget) for one, other in pairs]
            known = [value for value in found if value is not None]
            if not known or len(known) < len(found):
                continue
            value = geometric_mean(number for number, _ in known)
            bounds = {LEAST if reached else MOST for _, reached in known}
            bound = EXACT if not cooled else bounds.pop() if len(bounds) == 1 else MIXED
            yield Regime(results[0].run.part, dataset, arm, count, budget, value, bound, len(known))


def factor(one: Result, scratch: Result, budget: float) -> tuple[float, bool] | None:
    """Return scratch's compute ÷ an arm's at equal error, and whether the arm got to scratch's.

    None if that cannot be said: neither curve reaches the other's last error.
    """
    own, other = (
        [point for point in comparable(result) if point[0] <= 1.01 * budget]
        for result in (one, scratch)
    )
    if not own:
        return None
    target = other[-1][1]
    before, after = first_reached(other, target), first_reached(own, target)
    if before and after:
        return before / after, True
    passed = first_reached(other, own[-1][1])
    return (passed / own[-1][0], False) if passed else None


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
