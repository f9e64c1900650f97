"""Several GPUs: the images a second that they make, and the losses of one GPU's run.

``python -m benchmarks.gpu.several FILE`` is what each of the processes runs; ``compare`` starts
them, as a stage would, by ``MASKDM_PROCESSES``. One process could record its steps, and several
cannot, so all of them launch theirs where like is compared with like.
"""

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.gpu.apart import PATIENCE, PATIENCE_COMPILING, apart
from benchmarks.gpu.exactness import run as small_run
from benchmarks.gpu.steps import masked, measure
from benchmarks.presets import read_preset
from maskdm.runtime.command import run
from maskdm.runtime.environment import COMPILE, PROCESSES, REPLAY
from maskdm.runtime.execution import Execution
from maskdm.runtime.files import write_json
from maskdm.runtime.launch import on_all_processes


def compare(count: int, preset: str, rate: float, launched: bool) -> dict[str, float]:
    """Return what ``count`` processes make of what one makes: a GPU each, or CPUs together.

    Args:
        count: of processes.
        preset: whose steps are timed.
        rate: of masked patches.
        launched: has all of them launch their steps, not compiled: like with like. Otherwise they
            are as a user has them.

    Returns:
        ``images/s`` of the preset's batch, shared out, and of one that is ``count`` times as large;
        each divided by ``count`` times the images/s of one process (1: as many times faster);
        and, launched, the largest relative ``difference of a loss`` in a small run in fp32.
    """
    one, several = (
        on_processes(processes, preset, rate, processes, launched) for processes in (1, count)
    )
    found = {}
    for batch in ("batch shared", "batch each"):
        found[f"images/s, {batch}"] = several[batch]
        found[f"of {count} times one, {batch}"] = several[batch] / one[batch] / count
    if launched:
        differences = (
            abs(a - b) / abs(a) for a, b in zip(one["losses"], several["losses"], strict=True)
        )
        found["difference of a loss"] = max(differences)
    return found


@cache
def on_processes(
    count: int, preset: str, rate: float, batches: int, launched: bool
) -> dict[str, Any]:
    """Return what ``main`` finds with so many processes.

    Raises:
        RuntimeError: if they fail or hang.
    """
    words = ["--preset", preset, "--rate", str(rate), "--batches", str(batches)]
    environment = {PROCESSES.name: str(count)}
    if launched:
        words.append("--launched")
        environment |= {REPLAY.name: "0", COMPILE.name: "0"}
    patience = PATIENCE if launched else PATIENCE_COMPILING
    return apart("benchmarks.gpu.several", words, environment, patience)


def main(
    found: Annotated[Path, typer.Argument(help="the file that is written")],
    preset: Annotated[str, typer.Option(help="whose steps are timed")] = "celeba64",
    rate: Annotated[float, typer.Option(help="of masked patches")] = 0.0,
    batches: Annotated[int, typer.Option(help="in the larger batch")] = 1,
    launched: Annotated[bool, typer.Option("--launched", help="note losses, too")] = False,
) -> None:
    """Time steps on all processes together, and note the losses of a small run."""
    execution = replace(Execution.from_environment(), strict=True)
    losses = small_run(execution)["history.losses"].tolist() if launched else []
    mask, params = masked(read_preset(preset), rate)
    timed = replace(execution, precision=params.precision)
    rates = {}
    for name, times in {"batch shared": 1, "batch each": batches}.items():
        larger = params.model_copy(update={"batch_size": times * params.batch_size})
        rates[name] = measure(read_preset(preset), mask, larger, timed)["images/s"]
    if execution.processes.is_main:
        write_json(found, rates | {"losses": losses})


if __name__ == "__main__":
    run(on_all_processes(main))
