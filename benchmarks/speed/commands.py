"""What a user waits for, and needs memory for, at the command line: stages and ``dvc repro``."""

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.presets import read_preset
from benchmarks.speed.measuring import execute, execution, interleaved, peak_memory
from benchmarks.speed.results import Row
from maskdm.runtime.errors import UserError
from maskdm.runtime.params import Params, merge

ROOT = Path(__file__).parent.parent.parent
PIPELINE = ("maskdm", "stages", "dvc.yaml", ".dvc/config", ".dvcignore", ".gitignore")
# The demo with less of all that its memory does not grow with: steps, images, samples. As many
# images are held out, and samples drawn, as pass through the network at once.
SHORT: dict[str, dict[str, Any]] = {
    "data": {"limit": 300, "heldout": 0.3},
    "pretrain": {"steps": 6, "warmup": 0, "cooldown": 0},
    "finetune": {"steps": 6, "warmup": 0, "cooldown": 0},
    "sample": {"count": 64, "nfe": 4},
}


def start_up(_: Params) -> list[Row]:
    """Time a training stage that makes no step against the import of torch, both as processes.

    It is all that surrounds training: imports, reading parameters and images, a network, looking
    for checkpoints, validation, writing the model; on the preset tiny, where none of it computes
    much.
    """
    with workspace(read_preset("tiny"), {"pretrain": {"steps": 0, "warmup": 0}}) as folder:
        execute(["dvc", "repro", "prepare"], folder)
        commands = {
            "stage": execution(["python", "-m", "stages.pretrain"], folder),
            "torch": execution(["python", "-c", "import torch"], folder),
        }
        seconds = interleaved(commands, least=7, most=15)
    name = "start-up of a training stage ÷ import torch"
    return [Row(name, seconds["stage"], "s", seconds["torch"], 1.5, False)]


def nothing_ran(said: str) -> bool:
    """Return whether DVC says of no stage that it ran, but of the one that always looks."""
    return not set(re.findall(r"^Running stage '(\w+)'", said, re.MULTILINE)) - {"source"}


def repro(preset: Params) -> list[Row]:
    """Take the memory of the largest stage, and the time of a ``dvc repro`` with nothing to do.

    The stages are the demo's own, with its model and batches but fewer steps, images and samples.
    Their memory hardly grows with those: images are mapped from files, features and samples are
    computed in batches, steps keep nothing but rows of the curves.
    """
    command = ["dvc", "repro"]
    with workspace(preset, SHORT) as folder:
        memory = peak_memory(command, folder)
        if not nothing_ran(execute(command, folder)):
            raise UserError("A second dvc repro at once still finds something to do.")
        seconds = interleaved({"repro": execution(command, folder)}, least=5, most=9)
    return [
        Row("dvc repro with nothing to do", seconds["repro"], "s", 2.0, 1.0, False),
        Row("peak memory of the demo's stages", memory, "GiB", 4.0, 1.0, False),
    ]


@contextmanager
def workspace(preset: Params, changes: dict[str, dict[str, Any]]) -> Iterator[Path]:
    """Provide a folder with the pipeline as it is here; its params are a preset, changed."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        for item in PIPELINE:
            source, target = ROOT / item, folder / item
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                target.parent.mkdir(exist_ok=True)
                shutil.copy(source, target)
        # JSON is YAML too.
        params = json.dumps(merge(preset, changes))
        (folder / "params.yaml").write_text(params, encoding="utf-8")
        execute(["git", "init", "--quiet"], folder)
        yield folder
