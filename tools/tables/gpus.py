"""What a preset is computed to take on one H100 and on eight, and what GPUs were measured to do.

The last two tables of docs/presets.md. In the first nothing is measured: FLOPs are those of the
cost model, memory is counted as in ``needs.py``, rates are assumed. On several GPUs each has the
whole network (DDP) and an equal part of the batch, and a ring all-reduce sums gradients once a
step.
"""

from dataclasses import dataclass

from benchmarks.gpu.kit import SIZES
from benchmarks.presets import read_preset
from maskdm.runtime.params import Params
from maskdm.training.flops import stretch_flops
from tools.tables import kit
from tools.tables.measured import in_markdown
from tools.tables.needs import (
    BYTES_PER_PARAMETER,
    MICRO_BATCH,
    bytes_kept_by,
    network_of,
    parameters_of,
    schedules,
)

PRESET = "celebahq256"
FLOPS_PER_SECOND = 0.4 * 989e12  # an assumed 40 % of an H100's dense 16-bit peak (SXM)
NVLINK = 300e9  # bytes/s that a GPU sends in an all-reduce, assumed: two thirds of the 450e9 it can
GRADIENT = 4  # bytes a parameter
SEVERAL = 8  # GPUs
PRESETS = {size: preset for size, (preset, _) in SIZES.items() if size != "demo"}


@dataclass(frozen=True)
class Stage:
    """A stretch of a preset's training on one mask.

    Attributes:
        name: for people.
        steps: how many.
        images: of the global batch.
        flops: of all steps.
        parameters: of the network.
        kept: bytes that autograd keeps of the visible part of one image.
    """

    name: str
    steps: int
    images: int
    flops: int
    parameters: int
    kept: int

    def computing(self, gpus: int) -> float:
        """Return the seconds a step computes."""
        return self.flops / self.steps / gpus / FLOPS_PER_SECOND

    def adding(self, gpus: int) -> float:
        """Return the seconds a step adds up gradients: each GPU sends 2(n − 1)/n of them."""
        return 2 * (gpus - 1) / gpus * GRADIENT * self.parameters / NVLINK

    def seconds(self, gpus: int) -> float:
        """Return the seconds a step takes if nothing is computed while gradients travel."""
        return self.computing(gpus) + self.adding(gpus)

    def memory(self, gpus: int) -> int:
        """Return the bytes on each GPU; on several, DDP holds the gradients once more."""
        a_parameter = BYTES_PER_PARAMETER + (GRADIENT if gpus > 1 else 0)
        in_flight = min(MICRO_BATCH, -(-self.images // gpus))
        return a_parameter * self.parameters + in_flight * self.kept


def stages(preset: Params) -> list[Stage]:
    """Return the stretches of a preset's pretraining and finetuning."""
    network = network_of(preset)
    whole = bytes_kept_by(preset)
    return [
        Stage(
            name=f"{mask.rate:.0%} masked" if mask.rate else "whole images",
            steps=stretch.steps,
            images=stretch.leg.batch_size,
            flops=stretch_flops(network, stretch),
            parameters=parameters_of(network),
            kept=whole * mask.visible // mask.grid**2,
        )
        for schedule in schedules(preset)
        for stretch in schedule.stretches(schedule.steps)
        for mask in [stretch.leg.mask]
    ]


def table() -> str:
    """Return the stages of ``PRESET`` and their sum on one GPU and on several, in Markdown."""
    head = ["stage", "steps", "images a step", "PFLOP"]
    for where in ("1 GPU", f"{SEVERAL} GPUs"):
        head += [f"{where}: images/s", "hours", "GiB each"]
    lines = [f"| {' | '.join([*head, 'adding gradients'])} |", "|---" * (len(head) + 1) + "|"]
    made = stages(read_preset(PRESET))
    for stage in made:
        figures = [stage.flops / 1e15]
        for gpus in (1, SEVERAL):
            seconds = stage.seconds(gpus)
            figures += [
                stage.images / seconds,
                stage.steps * seconds / 3600,
                stage.memory(gpus) / 2**30,
            ]
        share = stage.adding(SEVERAL) / stage.seconds(SEVERAL)
        cells = [stage.name, f"{stage.steps:,}", f"{stage.images}", *map(two_digits, figures)]
        lines.append(f"| {' | '.join(cells)} | {share:.0%} |")
    one, several = (
        two_digits(sum(stage.steps * stage.seconds(gpus) for stage in made) / 3600)
        for gpus in (1, SEVERAL)
    )
    flops = two_digits(sum(stage.flops for stage in made) / 1e15)
    steps = sum(stage.steps for stage in made)
    lines.append(f"| all | {steps:,} | | {flops} | | {one} | | | {several} | | |")
    return "\n".join(lines)


def measured() -> str:
    """Return the images/s of the presets that ``make gpu`` times, measured beside computed.

    Of the ways of making steps, the fastest that was measured.
    """
    lines = []
    for report in kit.reports():
        fastest: dict[tuple[str, str], tuple[float, float, str]] = {}
        for name, found in report["pieces"].items():
            matched = kit.STEPS.fullmatch(name)
            if matched is None or "failed" in found or matched["size"] not in PRESETS:
                continue
            computed = FLOPS_PER_SECOND / (found["FLOP/s"] / found["images/s"])
            key = PRESETS[matched["size"]], matched["rate"]
            this = found["images/s"], computed, matched["way"]
            fastest[key] = max(fastest.get(key, this), this)
        for (preset, rate), (images, computed, way) in sorted(fastest.items()):
            cells = f"`{preset}`", rate, two_digits(computed), report["device"], two_digits(images)
            lines.append((*cells, way))
    head = ("preset", "masked", "computed: images/s", "measured on", "images/s", "launches")
    return in_markdown(head, lines)


def two_digits(figure: float) -> str:
    """Return a number with two significant digits."""
    return f"{float(f'{figure:.2g}'):,g}"
