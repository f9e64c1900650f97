"""The deciding experiment: is an arm at half the budget as good as scratch at the whole?

What is best for each arm is chosen among as many cells for each, for scratch no fewer, at half of
the budgets, by the error on the first half of the held-out images, with a seed that the test does
not use. The test has five seeds and the other half, and is not begun before its tuning is complete.
``python -m benchmarks.evidence.decision`` trains what is not there yet, and ends by itself.
"""

import os
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Annotated

import typer

from benchmarks.evidence.matrix import is_there, make_images, train_missing
from benchmarks.evidence.plan import Run, read_matrix, runs_of
from benchmarks.evidence.results import read_results
from maskdm.runtime import command
from maskdm.runtime.errors import UserError
from maskdm.runtime.params import Params

SMALL = "decision-32"
# Parts in which is chosen → those in which what was chosen is tested: in scratch's own best network
# first, then with as many tokens as the arms were made for, in a network that suits the budget and
# in a wider one.
TESTS = {
    "decision-8-tuning": "decision-8",
    "decision-4-tuning": "decision-4",
    "decision-tuning": "decision",
}
ARMS = "decision-8-arms"  # one seed: changes to a masked arm, each for itself
NAMED = (SMALL, ARMS)  # the matrix names all of their runs
# More tokens, a wider network and a longer training than a CPU can do, without a tuning. Where they
# can be done they come first: the others can be done elsewhere.
LARGE = ("decision-384", "decision-128")
LARGE_SHARE = 0.5  # of the minutes, after which none of these is begun: one takes some minutes
SUFFIX = "-tuning"  # of the datasets by which is chosen
SCRATCH = "scratch"
SEEDS = (1, 2, 3, 4, 5)
# Shares of the budget: the question's, then what shows where it turns.
SHARES = {SCRATCH: (1.0, 0.5), "": (0.5, 0.25)}


def main(
    jobs: Annotated[int | None, typer.Option(help="runs at a time; by default one a core")] = None,
    minutes: Annotated[float, typer.Option(help="no run is begun after them")] = 10**6,
    large: Annotated[bool, typer.Option("--large", help="first those that want a GPU")] = False,
) -> None:
    """Choose what is best for each arm, then test; goes on where it was."""
    begun, failed = time.monotonic(), []
    os.environ.setdefault("MASKDM_COMPILE", "0")  # takes as long as a run
    matrix = read_matrix()
    # What is tested follows from what was chosen, so it is asked for when that is done.
    steps: list[tuple[Callable[[], list[Run]], float]]
    steps = [(partial(runs_of, matrix, part), LARGE_SHARE) for part in LARGE if large]
    steps += [(partial(runs_of, matrix, part), 1) for part in NAMED]
    for tuning in TESTS:
        steps += [(partial(runs_of, matrix, tuning), 1), (partial(tested, matrix, tuning), 1)]
        steps.append((partial(runs_of, matrix, TESTS[tuning]), 1))  # what the matrix itself names
    for runs, share in steps:
        until = begun + 60 * minutes * share
        if time.monotonic() < until:
            try:
                wanted = runs()
                missing = [run for run in wanted if not is_there(matrix, run)]
                make_images(matrix, missing)
                # Of all: once the images are there, results on others are computed anew.
                train_missing(matrix, wanted, jobs, until)
            except UserError as error:  # what comes after it may go well
                failed.append(str(error))
    if failed:
        raise UserError(" ".join(failed))


def tested(matrix: Params, tuning: str) -> list[Run]:
    """Return the runs that test what was chosen in a tuning.

    Raises:
        UserError: if it is not complete: what did best so far need not be what is best.
    """
    missing = [run for run in runs_of(matrix, tuning) if not is_there(matrix, run)]
    if missing:
        raise UserError(
            f"{TESTS[tuning]} is not begun: its settings are chosen by {tuning}, of which "
            f"{len(missing)} runs are missing (python -m benchmarks.evidence.matrix {tuning})."
        )
    return runs_of_test(tuning)


def chosen(tuning: str) -> dict[tuple[str, str], list[Run]]:
    """Return, by dataset and arm, the runs of a tuning, the lowest error at the end first."""
    found = defaultdict(list)
    for result in read_results(tuning):
        key = result.run.dataset.removesuffix(SUFFIX), result.run.arm
        found[key].append((result.curves["error"][-1][1], result.run.name, result.run))
    return {key: [run for _, _, run in sorted(results)] for key, results in found.items()}


def runs_of_test(tuning: str) -> list[Run]:
    """Return the runs that test what was chosen in a tuning, those that decide first.

    Scratch at the whole budget also has what was second: the choice is by the error, and what is
    best for pictures may be another setting.
    """
    best = chosen(tuning)
    first = [(arm, runs[0], SHARES.get(arm, SHARES[""])) for (_, arm), runs in best.items()]
    also = [
        (arm, runs[1], SHARES[SCRATCH])
        for (_, arm), runs in best.items()
        if arm == SCRATCH and len(runs) > 1
    ]
    test, whole, part = TESTS[tuning], 0, 1
    return [
        Run(test, run.dataset.removesuffix(SUFFIX), arm, run.tuning, run.share, seed, shares[rank])
        for settings, rank in ((first, whole), (also, whole), (first, part))
        for seed in SEEDS
        for arm, run, shares in settings
    ]


if __name__ == "__main__":
    command.run(main)
