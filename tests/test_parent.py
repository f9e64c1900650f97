"""Who started a stage is killed and can tell nobody: the stage notices, and nothing stays."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from benchmarks.robustness.torture import ROOT
from maskdm.training.checkpoints.store import folders, in_use
from tests.support.workspaces import checkpointed, like

pytestmark = pytest.mark.slow

ENDLESS = {"steps": 1_000_000, "batch_size": 8, "log_every": 1000, "validate_every": 1000}
SECONDS = 10  # that processes may live on without their parent
SAVING = 60  # and a stage that saves its checkpoint first, on a busy machine
GRAPH = "stages:\n  pretrain:\n    cmd: python -m stages.pretrain\n"


@pytest.fixture
def workspace(prepared, tmp_path):
    """A workspace in which pretraining never ends; what still runs there in the end is killed."""
    made = like(prepared, tmp_path / "w", pretrain=ENDLESS)
    yield made
    while left := living(made):
        for process in left:
            process.kill()
        psutil.wait_procs(left)


def living(workspace):
    """Return the processes that run in a workspace, whoever their parents are."""
    folder = str(workspace.folder.resolve())
    return [process for process in psutil.process_iter(["cwd"]) if process.info["cwd"] == folder]


def happens(condition, seconds):
    """Return whether a condition holds some time from now."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.1)
    return condition()


def gone(workspace, seconds):
    """Return whether nothing runs in a workspace any more, some time from now."""
    return happens(lambda: not living(workspace), seconds)


def test_workers_whose_parent_is_killed_end_and_hold_nothing(workspace):
    workspace.environment = {"MASKDM_PROCESSES": "2", "MASKDM_CHECKPOINT_STEPS": "7"}
    process = workspace.start("pretrain")
    checkpointed(process, workspace.checkpoints)
    assert len(living(workspace)) == 3
    process.kill()
    process.wait()
    assert gone(workspace, SECONDS)
    (folder,) = folders(workspace.checkpoints)
    # `living` loses sight of a process with its first thread; its files close with its last.
    assert happens(lambda: not in_use(folder), SECONDS)


@pytest.mark.parametrize(
    ("number", "shell", "processes"),
    [
        (signal.SIGKILL, "/bin/sh", "1"),
        (signal.SIGKILL, "/bin/bash", "2"),
        (signal.SIGTERM, "/bin/sh", "2"),
        (signal.SIGTERM, "/bin/bash", "1"),
    ],
)
def test_a_stage_whose_dvc_is_killed_saves_and_ends(workspace, number, shell, processes):
    if not Path(shell).exists():
        pytest.skip(f"there is no {shell}")
    (workspace.folder / "dvc.yaml").write_text(GRAPH)
    own = {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "SHELL": shell,
        "DVC_NO_ANALYTICS": "1",
        "DVC_SITE_CACHE_DIR": str(workspace.folder.parent / "site"),
        "MASKDM_PROCESSES": processes,
        "MASKDM_CHECKPOINT_STEPS": "7",
    }
    log = workspace.folder.parent / "log"

    def dvc(*arguments):
        return ["dvc", *arguments], {"cwd": workspace.folder, "env": os.environ | own}

    command, options = dvc("init", "--no-scm", "--quiet")
    subprocess.run(command, check=True, **options)
    command, options = dvc("repro")
    with (
        log.open("w") as words,
        subprocess.Popen(command, stdout=words, stderr=words, **options) as process,
    ):
        try:
            checkpointed(process, workspace.checkpoints)
            process.send_signal(number)
        except BaseException:
            process.kill()  # or it would be waited for, and never ends
            raise
        process.wait()
    assert gone(workspace, SAVING), log.read_text()
    said = log.read_text()
    step = int(re.search(r"Stopped after step (\d+)", said)[1])
    assert workspace.saved() == step, said
    assert "Traceback" not in said.partition("Stopped after step")[2]
