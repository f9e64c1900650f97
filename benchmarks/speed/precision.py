"""Whether bf16 is faster than fp32 here: ``python -m benchmarks.speed.precision``.

On CPUs with instructions for it (AVX512-BF16, AMX) bf16 may be, and on others it is slower. On a
GPU it is faster by far for large networks. It is a parameter, since it changes the result.
"""

from benchmarks.presets import read_preset
from benchmarks.speed.measuring import interleaved, timer
from benchmarks.speed.results import Row, table
from benchmarks.speed.training import training_step
from maskdm.backbones.registry import ModelParams
from maskdm.data.registry import DataParams
from maskdm.diffusion.masking import MaskParams, make_mask, nothing_masked
from maskdm.runtime.command import run
from maskdm.runtime.devices import choose_device
from maskdm.runtime.params import Params, read_section
from maskdm.training.phases import FinetuneParams, PretrainParams

FASTER = 1.0  # the goal: from there on bf16 is the one to take


def precision(preset: Params) -> list[Row]:
    """Time steps of both phases of a preset in bf16, against the same in fp32.

    Args:
        preset: all sections.
    """
    device = choose_device()
    grid = (
        read_section(preset, "data", DataParams).resolution
        // read_section(preset, "model", ModelParams).patch
    )
    phases = {
        "masked": (
            make_mask(read_section(preset, "mask", MaskParams), grid),
            read_section(preset, "pretrain", PretrainParams),
        ),
        "whole images": (nothing_masked(grid), read_section(preset, "finetune", FinetuneParams)),
    }
    timers = {}
    for name, (mask, params) in phases.items():
        for kind in ("bf16", "fp32"):
            step = training_step(preset, mask, params.model_copy(update={"precision": kind}))
            timers[name, kind] = timer(step.call, device)
    seconds = interleaved({" ".join(key): timed for key, timed in timers.items()}, 5, 15)
    return [
        Row(
            f"steps/s, demo, {name}, in bf16 ÷ in fp32",
            1 / seconds[f"{name} bf16"],
            "1/s",
            1 / seconds[f"{name} fp32"],
            FASTER,
            True,
        )
        for name in phases
    ]


def main() -> None:
    """Print the rows of the preset laptop."""
    print(table(precision(read_preset("laptop"))))


if __name__ == "__main__":
    run(main)
