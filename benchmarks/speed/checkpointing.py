"""What saving a checkpoint costs, against the shortest time between two by default."""

from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.speed.measuring import interleaved
from benchmarks.speed.results import Row
from maskdm.backbones.registry import ModelParams, build_backbone
from maskdm.data.registry import DataParams
from maskdm.runtime.devices import choose_device
from maskdm.runtime.distributed import ALONE
from maskdm.runtime.environment import CHECKPOINT_SECONDS
from maskdm.runtime.execution import Execution
from maskdm.runtime.numerics import numerics
from maskdm.runtime.params import Params, read_section
from maskdm.training.checkpoints.cadence import COST
from maskdm.training.checkpoints.checkpointer import Checkpointer
from maskdm.training.checkpoints.store import CheckpointStore
from maskdm.training.phases import FinetuneParams
from maskdm.training.state import State


def checkpointing(preset: Params) -> list[Row]:
    """Time saves of the preset's state: copy, check, serialise, hash, write, sync, prune.

    All of it counts, though only the copy holds up training: the rest goes on beside it.
    """
    device = choose_device()
    model = read_section(preset, "model", ModelParams)
    data = read_section(preset, "data", DataParams)
    params = read_section(preset, "finetune", FinetuneParams)
    backbone = build_backbone(model, data.resolution, data.channels, seed=0).to(device)
    state = State.start(backbone, params)
    with TemporaryDirectory() as folder:
        store = CheckpointStore(Path(folder), "bench", "step {:d}".format)
        about = numerics(Execution(device))
        checkpointer = Checkpointer(store, state, 10**9, [], about, ALONE)
        checkpointer.cadence.steps = 1

        def save() -> float:
            state.step += 1
            checkpointer.after_step()
            return checkpointer.finish_writing()

        with checkpointer.watching():
            seconds = interleaved({"save": save}, least=5, most=15)
    name = "saving a checkpoint ÷ the time between two"
    return [Row(name, seconds["save"], "s", CHECKPOINT_SECONDS.default, COST, False)]
