"""Runs of the matrix, several at a time: ``python -m benchmarks.evidence.matrix screening``.

A run whose result is there is left alone, and one that was stopped resumes where it was: the
command may be stopped and started at will.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from math import inf
from pathlib import Path
from queue import SimpleQueue
from typing import Annotated

import torch
import typer

from benchmarks.evidence import images
from benchmarks.evidence.plan import Run, entry, plan, read_matrix, runs_of
from benchmarks.evidence.train import RUNS, SETS, WORK, images_of_first_phase
from benchmarks.presets import same
from maskdm.runtime import command
from maskdm.runtime.environment import DEVICE, PARENT
from maskdm.runtime.errors import UserError
from maskdm.runtime.params import Params


def main(
    part: Annotated[str, typer.Argument(help="a part of the matrix, such as screening")],
    only: Annotated[list[str] | None, typer.Option(help="matrices of it; by default all")] = None,
    jobs: Annotated[
        int | None, typer.Option(help="runs at a time; by default one a processor core")
    ] = None,
    own: Annotated[
        Path | None, typer.Option(help="a folder of images to use in place of its datasets")
    ] = None,
) -> None:
    """Train the runs of a part of the matrix that are not there yet."""
    matrix = read_matrix()
    wanted = runs_of(matrix, part, only)
    if own is not None:
        if not own.is_dir():
            raise UserError(f"There is no folder {own}: name one that holds images.")
        wanted = list(dict.fromkeys(replace(run, dataset="own") for run in wanted))
    make_images(matrix, wanted, str(own) if own else None)
    train_missing(matrix, wanted, jobs)


def make_images(matrix: Params, runs: Sequence[Run], own: str | None = None) -> None:
    """Prepare the images of runs, with the features of those to which distances are measured.

    Args:
        matrix: the matrix.
        runs: which.
        own: the folder of images of the dataset own.
    """
    measured = {run.dataset for run in runs if entry(matrix, "parts", run.part)["distance_at"]}
    for dataset in dict.fromkeys(name for run in runs for name in datasets(matrix, run)):
        images.make(dataset, own, features=dataset in measured)


def train_missing(
    matrix: Params, wanted: Sequence[Run], jobs: int | None = None, until: float = inf
) -> None:
    """Train runs that are not there yet, several at a time, in their order.

    Args:
        matrix: the matrix.
        wanted: the runs.
        jobs: runs at a time; by default one a processor core.
        until: no run is begun after this time, in seconds of ``time.monotonic``.

    Raises:
        UserError: if a run failed, once all are done.
    """
    missing = [run for run in wanted if not is_there(matrix, run)]
    if aside := sum(put_aside(run) for run in missing):
        print(f"{aside} results of other parameters or images are in {WORK / 'former'} now")
    print(f"{len(wanted) - len(missing)} of {len(wanted)} runs are there", flush=True)
    # Runs side by side on a core each are faster than one on all of them.
    cores = os.cpu_count() or 1
    jobs = max(1, min(jobs or cores, len(missing)))
    threads = max(1, cores // jobs)
    gpus = free_gpus(jobs)

    def make(run: Run) -> bool:
        if time.monotonic() > until:
            return True
        gpu = gpus.get()
        try:
            return train(run, threads, gpu)
        finally:
            gpus.put(gpu)

    with ThreadPoolExecutor(jobs) as pool:
        done = list(pool.map(make, missing))
    failed = [run.name for run, well in zip(missing, done, strict=True) if not well]
    if failed:
        raise UserError(f"These runs failed ({WORK}/….log says why): {', '.join(failed)}.")


def datasets(matrix: Params, run: Run) -> list[str]:
    """Return the datasets that a run needs: its own, then the one that it is pretrained on."""
    return list(dict.fromkeys([run.dataset, images_of_first_phase(matrix, run)]))


def is_there(matrix: Params, run: Run) -> bool:
    """Return whether a run has a result of its parameters, on the images that are there.

    Of images that are not prepared on this machine it is not asked which they were.
    """
    result = RUNS / f"{run.name}.json"
    if not result.exists():
        return False
    kept = json.loads(result.read_text(encoding="utf-8"))
    names = datasets(matrix, run)
    images = {"finetune": prepared_hash(names[0]), "pretrain": prepared_hash(names[-1])}
    return same(kept["params"], plan(matrix, run)) and all(
        images[leg["phase"]] in (None, leg["data"]) for leg in kept["training"]
    )


def put_aside(run: Run) -> bool:
    """Move a result of other parameters or images out of the way; return whether there was one.

    Whoever compares results before all are there would pair it with what was trained since.
    """
    there = (RUNS / f"{run.name}.json").exists()
    for suffix in (".json", ".png"):
        result = RUNS / f"{run.name}{suffix}"
        if result.exists():
            former = WORK / "former" / f"{run.name}{suffix}"
            former.parent.mkdir(parents=True, exist_ok=True)
            result.replace(former)
    return there


def prepared_hash(dataset: str) -> str | None:
    """Return the hash of the prepared images of a dataset, None where they are not prepared."""
    path = SETS / dataset / "data/prepared/dataset.json"
    return str(json.loads(path.read_text())["hash"]) if path.exists() else None


def free_gpus(jobs: int) -> SimpleQueue[str | None]:
    """Return what each of so many runs at a time takes: GPUs by turns; None: what a run chooses."""
    count = 0 if DEVICE.get() else torch.cuda.device_count()
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = shown.split(",") if shown else [str(number) for number in range(count)]
    free: SimpleQueue[str | None] = SimpleQueue()
    for job in range(jobs):
        free.put(names[job % count] if count > 1 else None)
    return free


def train(run: Run, threads: int, gpu: str | None = None) -> bool:
    """Train a run in a process with so many threads; return whether it went well.

    Args:
        run: which.
        threads: of the CPU.
        gpu: the only one that it sees, by CUDA's name; None: those that this process sees.
    """
    log = WORK / f"{run.name.replace('/', '_')}.log"
    log.parent.mkdir(exist_ok=True)
    environment = {"OMP_NUM_THREADS": str(threads)} | os.environ | {"TQDM_DISABLE": "1"}
    environment[PARENT.name] = str(os.getpid())  # to leave with this process, if that is killed
    if gpu is not None:
        environment["CUDA_VISIBLE_DEVICES"] = gpu
    options = ((f"--{name}", f"{getattr(run, name)}") for name in ("tuning", "share", "seed", "of"))
    words = ["benchmarks.evidence.train", run.part, run.dataset, run.arm]
    words += [word for option in options for word in option]
    with log.open("w", encoding="utf-8") as file:
        ended = subprocess.run(
            [sys.executable, "-m", *words], stdout=file, stderr=file, env=environment
        )
    print(run.name, "failed" if ended.returncode else "done", flush=True)
    return not ended.returncode


if __name__ == "__main__":
    command.run(main)
