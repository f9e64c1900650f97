"""How cost grows, one factor at a time: reports/growth.json.

``python -m benchmarks.speed.growth`` writes it.

Along resolution, patch and width, the seconds of a training step of the real loop on whole images;
their exponent (the slope of log seconds against log factor) stands beside that of the FLOPs in the
cost model. Along the number of images, what should not grow with it at all: the memory that
preparing takes, the time of a batch, the share of a batch in what an epoch begins with, and a
``dvc repro`` with nothing to do. All else is as in the demo. On a busy machine
the figures mean nothing.
"""

import math
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count, pairwise
from pathlib import Path
from statistics import linear_regression
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from benchmarks.presets import read_preset
from benchmarks.speed.bench import PRESET
from benchmarks.speed.commands import ROOT, nothing_ran, workspace
from benchmarks.speed.machine import machine, versions
from benchmarks.speed.measuring import execute, execution, interleaved, peak_memory, timer
from benchmarks.speed.preparing import write_noise
from benchmarks.speed.training import training_step
from maskdm.backbones.registry import ModelParams, backbone_without_weights
from maskdm.data.prepared import open_prepared
from maskdm.data.registry import DataParams
from maskdm.diffusion.masking import nothing_masked
from maskdm.runtime.command import run
from maskdm.runtime.devices import choose_device
from maskdm.runtime.errors import UserError
from maskdm.runtime.files import write_json
from maskdm.runtime.params import Params, merge, read_section
from maskdm.training.batches import Batches
from maskdm.training.flops import training_flops
from maskdm.training.phases import FinetuneParams
from maskdm.training.schedule import Leg, Schedule

REPORT = ROOT / "reports/growth.json"
# Factor: what its values change in the demo. Batches are small, so that the largest takes seconds.
STEPS: dict[str, dict[int, dict[str, dict[str, Any]]]] = {
    "resolution": {
        size: {"data": {"resolution": size}, "model": {"patch": 4}, "finetune": {"batch_size": 4}}
        for size in (32, 64, 128)
    },
    "patch": {
        patch: {
            "data": {"resolution": 32},
            "model": {"patch": patch},
            "finetune": {"batch_size": 16},
        }
        for patch in (8, 4, 2)
    },
    "dim": {
        dim: {"model": {"dim": dim, "heads": dim // 64}, "finetune": {"batch_size": 8}}
        for dim in (192, 384, 768)
    },
}
IMAGES = (10**3, 10**4, 10**5, 10**6)
FLAT = 0.1  # the largest exponent of what should not grow
BATCH = 20  # images; divides the training images of every set, so that epochs begin with a batch
BATCHES = 40  # that are timed at once
WRITE = "import sys; from pathlib import Path; from benchmarks.speed.preparing import write_noise; "
WRITE += "write_noise(Path(sys.argv[1]), int(sys.argv[2]))"


@dataclass(frozen=True)
class Growth:
    """One quantity along one factor.

    Attributes:
        factor: what varies.
        quantity: what is measured.
        unit: of the quantity.
        measured: the quantity by the factor's value.
        flops: the FLOPs by the factor's value, if the cost model says something about it.
    """

    factor: str
    quantity: str
    unit: str
    measured: Mapping[int, float]
    flops: Mapping[int, int] | None = None

    @property
    def goal(self) -> float | None:
        """The largest exponent that is good; None: the cost model's is there to compare with."""
        return FLAT if self.flops is None else None

    @property
    def meets_goal(self) -> bool:
        """Whether it grows no faster than it should."""
        return self.goal is None or self.exponent() <= self.goal

    def exponent(self, *values: int) -> float:
        """Return the measured exponent between some values of the factor, or over all."""
        return slope(self.measured, values or tuple(self.measured))

    def computed(self, *values: int) -> float | None:
        """Return the exponent of the FLOPs between some values of the factor, or over all."""
        return None if self.flops is None else slope(self.flops, values or tuple(self.flops))

    def rows(self) -> list[dict[str, Any]]:
        """Return a row a value, with the exponents from the value before, as for the report."""
        return [
            {
                "factor": self.factor,
                "value": value,
                "quantity": self.quantity,
                "measured": rounded(amount, 4),
                "unit": self.unit,
                "flops": self.flops[value] if self.flops else None,
                "exponent_measured": rounded(self.exponent(*pair), 3) if pair else None,
                "exponent_computed": rounded(self.computed(*pair), 3) if pair else None,
            }
            for (value, amount), pair in zip(
                self.measured.items(), [(), *pairwise(self.measured)], strict=True
            )
        ]

    def overall(self) -> dict[str, Any]:
        """Return the exponents over all values, as for the report."""
        return {
            "factor": self.factor,
            "quantity": self.quantity,
            "exponent_measured": rounded(self.exponent(), 3),
            "exponent_computed": rounded(self.computed(), 3),
            "goal": self.goal,
        }


def slope(amounts: Mapping[int, float], values: Sequence[int]) -> float:
    """Return the exponent b of the power law a·valueᵇ that fits best in logarithms."""
    logs = [math.log(amounts[value]) for value in values]
    return linear_regression([math.log(value) for value in values], logs).slope


def rounded(number: float | None, digits: int) -> float | None:
    """Return a number with so many significant digits."""
    return None if number is None else float(f"{number:.{digits}g}")


def main() -> None:
    """Measure how cost grows; print a table and write reports/growth.json.

    Takes about two minutes on two idle cores. An exponent that is too large is marked in the table
    and is no failure.
    """
    grown = []
    for factor in STEPS:
        print(f"{factor} …", file=sys.stderr)
        grown.append(steps(factor))
    print("images …", file=sys.stderr)
    grown += images(IMAGES)
    report = {
        "machine": machine(),
        "versions": versions(),
        "rows": [row for growth in grown for row in growth.rows()],
        "overall": [growth.overall() for growth in grown],
    }
    write_json(REPORT, report)
    print(table(grown))


def table(grown: Sequence[Growth]) -> str:
    """Return the measurements as text, a value a line, after each factor the exponents over all."""
    lines = ["factor            measured        exponent  computed"]
    for growth in grown:
        lines.append(f"{growth.quantity} by {growth.factor}")
        for row in growth.rows():
            between = exponents(row["exponent_measured"], row["exponent_computed"])
            lines.append(f"  {row['value']:<9,} {row['measured']:>12.4g} {row['unit']:4}{between}")
        verdict = "" if growth.goal is None else f"  ≤ {growth.goal}"
        verdict += "" if growth.meets_goal else "  MISSED"
        lines.append(
            f"  overall{' ' * 20}{exponents(growth.exponent(), growth.computed())}{verdict}"
        )
    return "\n".join(line.rstrip() for line in lines)


def exponents(measured: float | None, computed: float | None) -> str:
    """Return two columns of the table."""
    return "".join(f"{'' if e is None else f'{e:.2f}':>10}" for e in (measured, computed))


# Training steps


def steps(factor: str) -> Growth:
    """Time training steps on whole images along a factor, in turns."""
    device = choose_device()
    presets = {value: merge(read_preset(PRESET), STEPS[factor][value]) for value in STEPS[factor]}
    flops = {value: step_flops(preset) for value, preset in presets.items()}
    calls = {str(value): timer(step(preset), device) for value, preset in presets.items()}
    seconds = interleaved(calls, least=3, most=5)
    measured = {value: seconds[str(value)] for value in presets}
    return Growth(factor, "training step", "s", measured, flops)


def step(preset: Params) -> Callable[[], object]:
    """Return what makes a finetuning step of a preset."""
    params = read_section(preset, "finetune", FinetuneParams)
    return training_step(preset, nothing_masked(grid(preset)), params).call


def step_flops(preset: Params) -> int:
    """Return the FLOPs of such a step by the cost model."""
    data = read_section(preset, "data", DataParams)
    model = read_section(preset, "model", ModelParams)
    backbone = backbone_without_weights(model, data.resolution, data.channels)
    batch_size = read_section(preset, "finetune", FinetuneParams).batch_size
    return training_flops(backbone, grid(preset) ** 2, batch_size)


def grid(preset: Params) -> int:
    """Return the side of a preset's patch grid."""
    model = read_section(preset, "model", ModelParams)
    return read_section(preset, "data", DataParams).resolution // model.patch


# Images


def images(counts: Sequence[int]) -> list[Growth]:
    """Take what should not grow with the number of images, on sets of grey noise."""
    with TemporaryDirectory() as name:
        sets = {number: Path(name) / str(number) for number in counts}
        memory = {
            number: 1024 * peak_memory(["python", "-c", WRITE, str(path), str(number)], ROOT)
            for number, path in sets.items()
        }
        batches = {number: batches_of(path) for number, path in sets.items()}
        timers = {f"batch {number}": batch_timer(batches[number]) for number in counts}
        timers |= {f"epoch {number}": epoch_timer(batches[number]) for number in counts}
        seconds = interleaved(timers, least=5, most=15)
    share = {n: BATCH / len(batches[n].images) * seconds[f"epoch {n}"] for n in counts}
    return [
        Growth("images", "peak memory of writing the prepared set", "MiB", memory),
        Growth("images", "making a batch", "s", {n: seconds[f"batch {n}"] for n in counts}),
        Growth("images", "a batch's share of the epoch's order", "s", share),
        Growth("images", "dvc repro prepare with nothing to do", "s", nothing_to_do(counts)),
    ]


def batches_of(prepared: Path) -> Batches:
    """Return batches of whole images of a prepared set, as training makes them."""
    found = open_prepared(prepared)
    leg = Leg(nothing_masked(found.size // 4), 10**9, BATCH, lr=1e-3, warmup=0)
    assert found.classes is not None
    return Batches(
        found.train, Schedule((leg,), leg.steps), 4, 0.5, 0, "bench", found.train_labels,
        len(found.classes), 0.1,
    )  # fmt: skip


def batch_timer(batches: Batches) -> Callable[[], float]:
    """Return a function that measures the seconds of a batch, of other images each time."""
    random = np.random.default_rng(0)

    def measure() -> float:
        batches.indices(0)  # the epoch's order is measured apart
        chosen = random.integers(0, len(batches.images) // BATCH, BATCHES).tolist()
        started = time.perf_counter()
        for step in chosen:
            batches.at(step)
        return (time.perf_counter() - started) / BATCHES

    return measure


def epoch_timer(batches: Batches) -> Callable[[], float]:
    """Return a function that measures the seconds until a new epoch's first images are known."""
    steps, epochs = len(batches.images) // BATCH, count(1)

    def measure() -> float:
        first = next(epochs) * steps
        started = time.perf_counter()
        batches.indices(first)
        return time.perf_counter() - started

    return measure


def nothing_to_do(counts: Sequence[int]) -> dict[int, float]:
    """Return the seconds of a ``dvc repro prepare`` that finds nothing to do, by set's size."""
    with ExitStack() as stack:
        folders = {number: stack.enter_context(settled(number)) for number in counts}
        command = ["dvc", "repro", "prepare"]
        timers = {str(number): execution(command, folders[number]) for number in counts}
        seconds = interleaved(timers, least=3, most=5)
    return {number: seconds[str(number)] for number in counts}


@contextmanager
def settled(number: int) -> Iterator[Path]:
    """Provide a workspace whose prepared set has so many images, and DVC content with that."""
    with workspace(read_preset("tiny"), {}) as folder:
        execute(["dvc", "repro", "--quiet", "prepare"], folder)
        shutil.rmtree(folder / "data/prepared")
        write_noise(folder / "data/prepared", number)
        execute(["dvc", "commit", "--quiet", "--force", "prepare"], folder)
        if not nothing_ran(execute(["dvc", "repro", "prepare"], folder)):
            raise UserError("A dvc repro right after dvc commit still finds something to do.")
        yield folder


if __name__ == "__main__":
    run(main)
