"""A kill storm: a training stage is killed at random moments, again and again, and must not care.

``make torture`` runs the long one. The stage trains a tiny network on a few emoji, saves a
checkpoint every few steps, and gets SIGKILL, SIGTERM or SIGINT at a random moment: while it starts,
trains, saves, or finishes; once it finds its work finished, it begins anew. What it leaves must be
the bytes of an undisturbed run.
"""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from ruamel.yaml import YAML

from benchmarks.presets import read_preset
from benchmarks.robustness.interrupts import hear
from maskdm.runtime.command import run
from maskdm.runtime.errors import UserError
from maskdm.runtime.files import write_json
from maskdm.runtime.params import merge
from maskdm.training.checkpoints.store import last_step

ROOT = Path(__file__).parent.parent.parent
REPORT = ROOT / "reports/torture.json"
STARTING, START = 0.25, 5.0  # the share of kills that come in a stage's first seconds
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
RESUMED = re.compile(r"Going on from the checkpoint after step (\d+)|(finished checkpoint)")
MODELS_AND_CURVES = ("models", "reports/pretrain", "reports/finetune")


@dataclass
class Workspace:
    """A folder in which stages run on a tiny configuration.

    Attributes:
        folder: where.
        environment: what its stages see besides the usual.
    """

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)

    @classmethod
    def make(cls, folder: Path, **params: dict[str, Any]) -> "Workspace":
        """Prepare images there, after the preset tiny with some sections changed."""
        folder.mkdir(parents=True)
        YAML().dump(merge(read_preset("tiny"), params), folder / "params.yaml")
        workspace = cls(folder)
        workspace.stage("prepare")
        return workspace

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints."""
        return self.folder / "checkpoints"

    def start(self, stage: str) -> subprocess.Popen[str]:
        """Start a stage in a process group of its own."""
        usual = {name: value for name, value in os.environ.items() if "MASKDM" not in name}
        alone = {"PYTHONPATH": str(ROOT), "DVC_ROOT": "", "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            [sys.executable, "-m", f"stages.{stage}"],
            cwd=self.folder,
            env=usual | alone | self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            text=True,
        )

    def stage(self, stage: str, status: int = 0) -> str:
        """Run a stage and return what it said.

        Raises:
            UserError: if it does not end with ``status``.
        """
        process = self.start(stage)
        said, _ = process.communicate()
        if process.returncode != status:
            raise UserError(f"{stage} ended with {process.returncode}, not {status}:\n{said}")
        return said

    def saved(self) -> int:
        """Return the step of the newest checkpoint that is there; 0 if there is none."""
        return last_step(self.checkpoints)

    def has_saved(self, step: int) -> bool:
        """Return whether there is a checkpoint after ``step`` steps or more."""
        return self.saved() >= step

    def files(self, *folders: str) -> dict[str, bytes]:
        """Return the contents of the files of some folders."""
        return {
            path.relative_to(self.folder).as_posix(): path.read_bytes()
            for folder in folders
            for path in sorted((self.folder / folder).rglob("*"))
            if path.is_file()
        }


@dataclass
class Storm:
    """What a storm was like.

    Attributes:
        signals: how many of each hit.
        resumed: the steps from which commands went on.
        finished: how many commands found the stage finished.
        differing: files that differ from those of the undisturbed run.
    """

    signals: Counter[str] = field(default_factory=Counter)
    resumed: list[int] = field(default_factory=list)
    finished: int = 0
    differing: list[str] = field(default_factory=list)


def storm(calm: Workspace, struck: Workspace, stage: str, kills: int, seed: int) -> Storm:
    """Run a stage in one workspace, and in another under ``kills`` signals; compare the files.

    Args:
        calm: where it is left undisturbed.
        struck: the same, untouched so far.
        stage: ``"pretrain"`` or ``"finetune"``.
        kills: signals that must hit.
        seed: of the moments and the signals.
    """
    calm.stage(stage)
    steps = calm.saved()
    further = max(1, 2 * steps // kills)  # so many steps at most between two kills, half on average
    result, draw = Storm(), random.Random(seed)
    while sum(result.signals.values()) < kills:
        begun = struck.saved()
        process = struck.start(stage)
        number = draw.choice(SIGNALS)
        if draw.random() < STARTING:
            wait(process, partial(passed, time.monotonic() + draw.uniform(0, START)))
        else:
            wait(process, partial(struck.has_saved, begun + draw.randint(1, further)))
            time.sleep(draw.uniform(0, 0.1))
        if process.poll() is None:
            os.killpg(process.pid, number)
            result.signals[signal.Signals(number).name] += 1
        said, _ = process.communicate()
        for step, finished in RESUMED.findall(said):
            result.resumed += [int(step)] if step else []
            result.finished += bool(finished)
            if finished and process.returncode == 0:
                result.differing += differing(calm, struck)
                for folder in ("checkpoints", f"models/{stage}", f"reports/{stage}"):
                    shutil.rmtree(struck.folder / folder)
    struck.stage(stage)
    result.differing += differing(calm, struck)
    return result


def differing(calm: Workspace, struck: Workspace) -> list[str]:
    """Return the names of the models and curves that are not the same in two workspaces."""
    expected, found = calm.files(*MODELS_AND_CURVES), struck.files(*MODELS_AND_CURVES)
    return sorted(name for name in expected | found if expected.get(name) != found.get(name))


def passed(moment: float) -> bool:
    """Return whether a moment of the monotonic clock has passed."""
    return time.monotonic() > moment


def wait(process: subprocess.Popen[str], happened: Callable[[], bool]) -> None:
    """Wait until something has happened, or a process has ended."""
    while process.poll() is None and not happened():
        time.sleep(0.01)


def main(
    kills: Annotated[int, typer.Option(min=1, help="signals to each of the two phases")] = 150,
    steps: Annotated[int, typer.Option(min=1, help="steps of each phase")] = 1500,
    seed: Annotated[int, typer.Option(help="of the moments and the signals")] = 0,
) -> None:
    """Kill pretraining and finetuning at random moments and compare with an undisturbed run.

    Writes reports/torture.json. Takes about seven seconds a kill.
    """
    hear()
    report: dict[str, Any] = {"kills": kills, "steps": steps, "seed": seed}
    lengths = {"pretrain": {"steps": steps}, "finetune": {"steps": steps}}
    with tempfile.TemporaryDirectory() as folder:
        calm, struck = (
            Workspace.make(Path(folder) / name, **lengths) for name in ("calm", "struck")
        )
        struck.environment["MASKDM_CHECKPOINT_STEPS"] = "7"
        for stage in ("pretrain", "finetune"):
            result = storm(calm, struck, stage, kills, seed)
            report[stage] = {
                "signals": dict(sorted(result.signals.items())),
                "resumed": len(result.resumed),
                "different_steps": len(set(result.resumed)),
                "found_finished": result.finished,
                "files": len(calm.files(*MODELS_AND_CURVES)),
                "differing": result.differing,
            }
            print(stage, json.dumps(report[stage]))
            shutil.rmtree(struck.checkpoints)
    write_json(REPORT, report)
    if report["pretrain"]["differing"] or report["finetune"]["differing"]:
        raise UserError("Some files differ from those of the undisturbed run.")


if __name__ == "__main__":
    run(main)
