"""The deciding experiment: is an arm at half the budget as good as scratch at the whole?

What is best for each arm is chosen among as many cells for each, at half of the budgets, by the
error on the first half of the held-out images, with a seed that the test does not use; scratch may
also choose its network. The test has five seeds and the other half. ``python -m
benchmarks.evidence.decision`` trains what is not there yet, and ends by itself.
"""

import os
import time
from collections import defaultdict
from typing import Annotated

import typer

from benchmarks.evidence import images
from benchmarks.evidence.matrix import datasets, train_missing
from benchmarks.evidence.plan import Run, read_matrix, runs_of
from benchmarks.evidence.results import read_results
from maskdm.runtime import command

SMALL, TUNING, TEST = "decision-32", "decision-tuning", "decision"
SUFFIX = "-tuning"  # of the datasets by which is chosen
SCRATCH = "scratch"
SEEDS = (1, 2, 3, 4, 5)
# Shares of the budget: the question's, then what shows where it turns.
SHARES = {SCRATCH: (1.0, 0.5), "": (0.5, 0.25)}


def main(
    jobs: Annotated[int | None, typer.Option(help="runs at a time; by default one a core")] = None,
    minutes: Annotated[float, typer.Option(help="no run is begun after them")] = 10**6,
) -> None:
    """Choose what is best for each arm, then test; goes on where it was."""
    until = time.monotonic() + 60 * minutes
    os.environ.setdefault("MASKDM_COMPILE", "0")  # takes as long as a run
    matrix = read_matrix()
    # What is tested at 64 pixels follows from the tuning, so it is asked for when that is done.
    for part in (SMALL, TUNING, TEST):
        if time.monotonic() < until:
            wanted = runs_of_test() if part == TEST else runs_of(matrix, part)
            for dataset in dict.fromkeys(name for run in wanted for name in datasets(matrix, run)):
                images.make(dataset)
            train_missing(matrix, wanted, jobs, until)


def chosen() -> dict[tuple[str, str], Run]:
    """Return, by dataset and arm, the run of the tuning with the lowest error at its end."""
    found = defaultdict(list)
    for result in read_results(TUNING):
        key = result.run.dataset.removesuffix(SUFFIX), result.run.arm
        found[key].append((result.curves["error"][-1][1], result.run.name, result.run))
    return {key: min(results)[2] for key, results in found.items()}


def runs_of_test() -> list[Run]:
    """Return the runs of the test, those that decide first."""
    runs = []
    for rank in range(2):
        for seed in SEEDS:
            for (dataset, arm), best in chosen().items():
                of = SHARES.get(arm, SHARES[""])[rank]
                runs.append(Run(TEST, dataset, arm, best.tuning, best.share, seed, of))
    return runs


if __name__ == "__main__":
    command.run(main)
