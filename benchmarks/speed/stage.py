"""What a training stage adds to its loop: progress bar, checkpoints in the background, validation.

The loop is timed alone, in a process in which nothing else happens; the stage is a process that
saves several checkpoints on its way.
"""

import json
import shutil

from benchmarks.speed.commands import workspace
from benchmarks.speed.measuring import execute, interleaved, timer
from benchmarks.speed.results import Row
from benchmarks.speed.training import training_step
from maskdm.backbones.registry import ModelParams
from maskdm.data.registry import DataParams
from maskdm.diffusion.masking import MaskParams, make_mask
from maskdm.runtime.devices import choose_device
from maskdm.runtime.params import Params, read_section
from maskdm.training.phases import PretrainParams

STEPS, SAVE = 600, 300  # of the stage, and steps between two checkpoints, about half a minute
GOAL = 0.9  # of the loop alone


def stage(preset: Params) -> list[Row]:
    """Time the demo's masked phase as a stage against its loop alone, in turns."""
    model = read_section(preset, "model", ModelParams)
    params = read_section(preset, "pretrain", PretrainParams)
    grid = read_section(preset, "data", DataParams).resolution // model.patch
    mask = make_mask(read_section(preset, "mask", MaskParams), grid)
    alone = timer(training_step(preset, mask, params).call, choose_device())
    shorter = {"pretrain": {"steps": STEPS, "warmup": 0, "cooldown": 0, "validate_every": STEPS}}
    with workspace(preset, shorter) as folder:
        execute(["dvc", "repro", "prepare"], folder)

        def staged() -> float:
            """Return the seconds of a step."""
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)
            execute(
                ["env", f"MASKDM_CHECKPOINT_STEPS={SAVE}", "python", "-m", "stages.pretrain"],
                folder,
            )
            timing = json.loads((folder / "reports/timing/pretrain.json").read_text("utf-8"))
            return float(timing["seconds"]) / STEPS

        seconds = interleaved({"alone": alone, "staged": staged}, least=3, most=5)
    return [
        Row(
            "stage of the demo's masked phase ÷ its loop alone",
            params.batch_size / seconds["staged"], "images/s",
            params.batch_size / seconds["alone"], GOAL, True,
        )
    ]  # fmt: skip
