"""What saving a training state costs, against the shortest time between two by default."""

import os
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.measuring import interleaved
from benchmarks.rows import Row
from maskdm.arithmetic import arithmetic
from maskdm.backbones.registry import ModelParams, build_backbone
from maskdm.data.sources import DataParams
from maskdm.devices import choose_device
from maskdm.masking import nothing_masked
from maskdm.params import read_section
from maskdm.phases import FinetuneParams
from maskdm.processes import ALONE
from maskdm.saving import COST, SECONDS, Saver
from maskdm.schedule import Leg, Schedule
from maskdm.states import States
from maskdm.training import State


def saving(preset: Path) -> list[Row]:
    """Time saves of the preset's state: copy, check, serialise, hash, write, sync, prune.

    All of it counts, though only the copy holds up training: the rest goes on beside it.
    """
    device = choose_device()
    model = read_section(preset, "model", ModelParams)
    data = read_section(preset, "data", DataParams)
    params = read_section(preset, "finetune", FinetuneParams)
    backbone = build_backbone(model, data.size, data.channels, seed=0).to(device)
    state = State.start(backbone, params)
    leg = Leg(nothing_masked(data.size // model.patch), 10**9, params.batch_size, params.lr, 0)
    schedule = Schedule((leg,), leg.steps)
    with TemporaryDirectory() as folder:
        states = States(Path(folder), "bench", "step {:d}".format)
        os.environ["MASKDM_SAVE_STEPS"] = "1"
        saver = Saver(states, state, schedule, arithmetic(device, ALONE, None), ALONE)
        del os.environ["MASKDM_SAVE_STEPS"]

        def save() -> float:
            state.step += 1
            saver.after_step()
            return saver.finish_writing()

        with saver.watching():
            seconds = interleaved({"save": save}, least=5, most=15)
    return [
        Row("saving a state ÷ the time between two", seconds["save"], "s", SECONDS, COST, False)
    ]
