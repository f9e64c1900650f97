"""What the deciding experiments found: ``python -m benchmarks.evidence.decided``.

Every arm is compared with scratch of the same seed: the difference of what they end with, its mean
over seeds with a 95 % t-interval, and the one-sided paired t-test of "the arm is no better". The
question is asked of arms at half of the budget against scratch at the whole, in error and KID; a
second one, asked later, of arms against scratch at as much, both at half of the budget or both at
the whole. The p-values of a question, over sets and measures, are corrected by Holm's method, of
each arm for itself and against each setting of scratch (an arm that is to be as good has to be so
against all of them, which needs no correction). What else is compared describes: FD, which says
what KID says; other shares of the budget; the error by other means (``by_image``, and the geometric
mean over noise levels, which gives all of them the same weight). Writes reports/decision.json; of a
part that is named, such as ``reduced``, it prints the answer and writes nothing.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import ArrayLike

from benchmarks.evidence.by_image import by_image
from benchmarks.evidence.decision import ARMS, LARGE, SCRATCH, SMALL, TESTS
from benchmarks.evidence.regimes import EXACT, of_part
from benchmarks.evidence.results import Result, read_results
from maskdm.runtime.command import run
from maskdm.runtime.errors import UserError
from maskdm.runtime.files import write_json

REPORT = Path("reports/decision.json")
PARTS = (SMALL, *TESTS.values(), *LARGE)
MEASURES = ("error", "kid", "fd")
LEAST = 3  # seeds that a comparison needs
ASKED = ("error", "kid")  # measures of the question
FAMILY = 2 * len(ASKED)  # of p-values: two sets, also where one has not been run
# Shares of the budget that an arm and scratch have: the question's, and the second's.
HALF, AS_MUCH = {(0.5, 1.0)}, {(0.5, 0.5), (1.0, 1.0)}
MARGIN = 0.05  # of scratch's value: how much worse is also asked about

Group = tuple[str, str, str, float, float]  # dataset, arm, tuning, share, of


def main(
    part: Annotated[
        str | None,
        typer.Argument(help="of the matrix, to be answered alone; by default those of the report"),
    ] = None,
) -> None:
    """Compare the runs that are there; write reports/decision.json."""
    if part is not None:
        print("\n".join(answer(part)))
        return
    report = {
        "comparisons": [row for part in PARTS for row in comparisons(read_results(part))],
        "tuning": [tuned(result) for part in (*TESTS, ARMS) for result in read_results(part)],
        "levels": [row for part in PARTS for row in levels(read_results(part))],
        "geometric": [row for part in PARTS for row in geometric(read_results(part))],
        "by_image": [row for part in PARTS for row in finer(read_results(part))],
        "factors": [row for part in PARTS for row in factors(read_results(part))],
    }
    write_json(REPORT, report)
    for row in report["comparisons"]:
        print(
            f"{row['part']} {row['dataset']} {row['arm']} ({row['of']:g} of the budget) against "
            f"{row['against']}: {row['measure']} {row['mean']:+.4g} {row['interval']}, "
            f"p = {row['p']:.3f}, {len(row['seeds'])} seeds"
        )


def answer(part: str) -> list[str]:
    """Return whether the arms of a part are as good as scratch, a line a comparison.

    Raises:
        UserError: if it has no arm with scratch beside it on enough seeds.
    """
    rows = comparisons(read_results(part))
    if not rows:
        raise UserError(
            f"There are no {LEAST} seeds of {part} yet that have both an arm and scratch: "
            f"python -m benchmarks.evidence.matrix {part}."
        )
    return [said(row) for row in rows if row["against_of"] == 1]


def said(row: Mapping[str, Any]) -> str:
    """Return a comparison in words."""
    (low, high), scratch = row["interval"], mean(row["scratch"])
    return (
        f"{row['dataset']}, {row['measure']}: {row['arm']} at {row['of']:.0%} of the compute "
        f"{mean(row['values']):.4g}, scratch at all of it {scratch:.4g}; difference {low:+.2g} … "
        f"{high:+.2g} (95 %, {len(row['seeds'])} seeds). At least as good: {verdict(low, high)}. "
        f"No more than {MARGIN:.0%} worse: {verdict(low, high, MARGIN * scratch)}."
    )


def verdict(low: float, high: float, allowed: float = 0.0) -> str:
    """Return whether a difference is no more than what is allowed, by its interval.

    Args:
        low: where it begins; above 0 the arm is worse.
        high: where it ends.
        allowed: 0, or how much worse the arm may be.
    """
    if high <= allowed:
        return "yes"
    return "no" if low > allowed else "not decided"


def comparisons(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Return a row for each arm, scratch at the whole budget or at as much as the arm, and measure.

    Scratch has a row for each of its tunings.
    """
    rows = []
    for arm, scratch, sides in pairs(results):
        seeds = list(sides)
        ends = [(own.ends(), other.ends()) for own, other in sides.values()]
        for measure in MEASURES if len(seeds) >= LEAST else ():
            # A set of few images has no Fréchet distance.
            if any(measure not in end for pair in ends for end in pair):
                continue
            values = [(own[measure], other[measure]) for own, other in ends]
            first = sides[seeds[0]]  # as many steps for every seed
            rows.append(
                {
                    **named(results, arm, scratch),
                    "measure": measure,
                    "seeds": seeds,
                    "flops": [sum(leg["flops"] for leg in one.legs) for one in first],
                    "steps": [by_phase(one.legs, "steps") for one in first],
                    "images": [by_phase(one.legs, "images") for one in first],
                    "epochs": [epochs(one) for one in first],
                    "values": [own for own, _ in values],
                    "scratch": [other for _, other in values],
                    **paired(values),
                }
            )
    families = defaultdict(list)
    for row in filter(is_asked, rows):
        families[row["arm"], row["of"], row["against"], row["against_of"]].append(row)
    for family in families.values():
        better = holm([row["p"] for row in family], FAMILY)
        worse = holm([1 - row["p"] for row in family], FAMILY)
        for row, *corrected in zip(family, better, worse, strict=True):
            row["p_holm"], row["p_worse_holm"] = corrected
    return rows


def pairs(
    results: Sequence[Result],
) -> Iterator[tuple[Group, Group, dict[int, tuple[Result, Result]]]]:
    """Yield an arm, each scratch that it is compared with, and the results of both by seed.

    Results of other images, as they are there while runs are made anew, are no pair; nor are errors
    that were measured otherwise.
    """
    found: dict[Group, dict[int, Result]] = defaultdict(dict)
    for result in results:
        found[group(result)][result.run.seed] = result
    for arm, of_arm in found.items():
        for scratch, of_scratch in found.items():
            if arm[1] != SCRATCH and scratch[:2] == (arm[0], SCRATCH) and scratch[4] in (1, arm[4]):
                yield (
                    arm,
                    scratch,
                    {
                        seed: (of_arm[seed], of_scratch[seed])
                        for seed in sorted(of_arm.keys() & of_scratch.keys())
                        if measured_by(of_arm[seed]) == measured_by(of_scratch[seed])
                    },
                )


def measured_by(result: Result) -> tuple[list[str], bool]:
    """Return the hashes of the images that a run was finetuned on, and how it was measured.

    In bf16, the error of averaged weights was once measured with 16-bit copies of the raw ones, of
    runs that did not yet note the hash of their weights.
    """
    images = [leg["data"] for leg in result.legs if leg["phase"] == "finetune"]
    once = result.params["finetune"]["precision"] == "bf16" and result.about["weights"] is None
    return images, once


def named(results: Sequence[Result], arm: Group, scratch: Group) -> dict[str, Any]:
    """Return what is compared, in words."""
    return {
        "part": results[0].run.part,
        "dataset": arm[0],
        "arm": arm[1],
        "share": arm[3],
        "of": arm[4],
        "against": scratch[2],
        "against_of": scratch[4],
    }


def is_asked(row: Mapping[str, Any]) -> bool:
    """Return whether a comparison is one of the questions'."""
    return (row["of"], row["against_of"]) in HALF | AS_MUCH and row["measure"] in ASKED


def group(result: Result) -> Group:
    """Return what a result has in common with those of other seeds."""
    run = result.run
    return run.dataset, run.arm, run.tuning, run.share, run.of


def by_phase(legs: Sequence[dict[str, Any]], what: str) -> list[int]:
    """Return the steps, or the images, of a run's first phase, if it has one, and of its last."""
    phases = dict.fromkeys(leg["phase"] for leg in legs)
    return [sum(leg[what] for leg in legs if leg["phase"] == phase) for phase in phases]


def epochs(result: Result) -> list[float]:
    """Return how often each phase saw an image of its training set, on average.

    Empty for a result of before this was kept.
    """
    of_set = result.about["training_images"]
    if not of_set:
        return []
    phases = dict.fromkeys(leg["phase"] for leg in result.legs)
    seen = by_phase(result.legs, "images")
    return [images / of_set[phase] for phase, images in zip(phases, seen, strict=True)]


def paired(values: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """Return mean difference, its 95 % interval, and p of the arm being no lower than scratch.

    Args:
        values: (the arm's value, scratch's), a seed each; lower is better.
    """
    from scipy import stats

    own, other = zip(*values, strict=True)
    test = stats.ttest_rel(own, other, alternative="less")
    return {
        "mean": float(mean(a - b for a, b in values)),
        "interval": interval(own, other),
        "p": float(test.pvalue),
    }


def geometric(results: Sequence[Result]) -> Iterator[dict[str, Any]]:
    """Yield the paired differences of log errors, their mean over noise levels.

    The error is ruled by the levels where it is large; here a per cent is a per cent everywhere.
    """
    for arm, scratch, sides in pairs(results):
        if len(sides) >= LEAST:
            errors = [(_log_error(own), _log_error(other)) for own, other in sides.values()]
            yield named(results, arm, scratch) | {"seeds": list(sides)} | paired(errors)


def _log_error(result: Result) -> float:
    return float(np.log(list(result.about["levels"].values())).mean())


def factors(results: Sequence[Result]) -> Iterator[dict[str, Any]]:
    """Yield how many times scratch's compute is an arm's at equal error, seed by seed.

    The mean is geometric; it has a 95 % t-interval where every seed's factor is measured and none
    is a bound.
    """
    for one in of_part(results):
        arm, tuning, share = one.arm
        values = [value for value, _ in one.seeds.values()]
        if len(values) >= LEAST:
            logs = np.log(values)
            yield {
                "part": one.part,
                "dataset": one.dataset,
                "arm": arm,
                "tuning": tuning,
                "share": share,
                "against": one.against,
                "budget": one.budget,
                "seeds": list(one.seeds),
                "values": values,
                "bounds": [bound for _, bound in one.seeds.values()],
                "mean": one.factor,
                "bound": one.bound,
                "interval": np.exp(interval(logs, np.zeros_like(logs))).tolist()
                if one.bound == EXACT
                else None,
            }


def finer(results: Sequence[Result]) -> Iterator[dict[str, Any]]:
    """Yield the differences of errors by image, with intervals over seeds and over images.

    Each interval takes the other for given; images are taken to be independent.
    """
    for arm, scratch, sides in pairs(results):
        errors = {seed: [by_image(result) for result in pair] for seed, pair in sides.items()}
        seeds = [seed for seed, pair in errors.items() if all(of is not None for of in pair)]
        if len(seeds) >= 2:
            own, other = (np.array([errors[seed][side] for seed in seeds]) for side in (0, 1))
            yield named(results, arm, scratch) | {
                "seeds": seeds,
                "images": own.shape[1],
                "values": own.mean(axis=1).tolist(),
                "scratch": other.mean(axis=1).tolist(),
                **paired(list(zip(own.mean(axis=1), other.mean(axis=1), strict=True))),
                "over_images": interval(own.mean(axis=0), other.mean(axis=0)),
            }


def interval(own: ArrayLike, other: ArrayLike) -> list[float]:
    """Return the 95 % t-interval of the mean of paired differences."""
    from scipy import stats

    low, high = stats.ttest_rel(own, other).confidence_interval(0.95)
    return [float(low), float(high)]


def holm(values: Sequence[float], number: int = 0) -> list[float]:
    """Return p-values corrected for their number (Holm 1979).

    Args:
        values: those that are there.
        number: how many there are to be, if more: the others count as larger than these.
    """
    order = sorted(range(len(values)), key=values.__getitem__)
    corrected, highest = [1.0] * len(values), 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (max(number, len(values)) - rank) * values[index]))
        corrected[index] = highest
    return corrected


def tuned(result: Result) -> dict[str, Any]:
    """Return what a run of the tuning ended with."""
    run = result.run
    return {
        "part": run.part,
        "dataset": run.dataset,
        "arm": run.arm,
        "tuning": run.tuning,
        "share": run.share,
        "of": run.of,
        "patch": result.params["model"]["patch"],
        "steps": sum(by_phase(result.legs, "steps")),
        "epochs": epochs(result),
        "error": result.curves["error"][-1][1],
        "raw": result.about["curve"][-1]["raw"],
    }


def levels(results: Sequence[Result]) -> Iterator[dict[str, Any]]:
    """Yield, for each group of runs, the mean error at its end by λ."""
    found: dict[Group, list[dict[str, float]]] = defaultdict(list)
    for result in results:
        found[group(result)].append(result.about["levels"])
    for (dataset, arm, tuning, share, of), errors in found.items():
        yield {
            "part": results[0].run.part,
            "dataset": dataset,
            "arm": arm,
            "tuning": tuning,
            "share": share,
            "of": of,
            "runs": len(errors),
            "errors": {level: mean(e[level] for e in errors) for level in errors[0]},
        }


if __name__ == "__main__":
    run(main)
