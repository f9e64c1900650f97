"""Folders in which stages run on a tiny configuration, from the images of another one."""

import os
import shutil
import signal
import time
from contextlib import suppress
from pathlib import Path

import psutil
from ruamel.yaml import YAML

from benchmarks.robustness.torture import Workspace
from maskdm.runtime.files import listed
from maskdm.training.checkpoints.store import METADATA
from tests.support.clones import ROOT

PAUSING = Path(__file__).parent / "pausing/sitecustomize.py"


def pausing(phase, *folders):
    """Return the environment in which a phase stops itself as it saves its second checkpoint.

    Args:
        phase: ``"pretrain"`` or ``"finetune"``.
        folders: others of PYTHONPATH.
    """
    paths = os.pathsep.join(map(str, [PAUSING.parent, *folders]))
    return {"PYTHONPATH": paths, "PAUSED_PHASE": phase}


def half_way(workspace, stage="pretrain"):
    """Start a stage and return it where it has stopped itself, with a checkpoint behind it."""
    usual = workspace.environment
    workspace.environment = usual | pausing(stage, ROOT)
    process = workspace.start(stage)
    workspace.environment = usual
    paused(process)
    return process


def paused(process):
    """Wait until a process, or one that it started, has stopped itself."""
    while not stopped(process):
        over = process.poll() is not None
        said = process.stdout.read if process.stdout else str
        assert not over or stopped(process), f"it ended before it was half-way: {said()}"
        time.sleep(0.2)  # a look at all processes costs something, and nothing is in a hurry


def go_on(process):
    """Have what has stopped go on; signals that came meanwhile come first."""
    for one in stopped(process):
        with suppress(psutil.NoSuchProcess):
            one.send_signal(signal.SIGCONT)


def stopped(process):
    """Return those of a process and its children that have stopped."""
    found = []
    with suppress(psutil.NoSuchProcess):
        parent = psutil.Process(process.pid)
        for one in (parent, *parent.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                found += [one] if one.status() == psutil.STATUS_STOPPED else []
    return found


def like(workspace, folder, **params):
    """Return a workspace with the images and checkpoints of another one, and no results.

    Args:
        workspace: the other one.
        folder: where to.
        params: what is to differ from its parameters, by section.
    """
    for path in (workspace.folder / "data", workspace.checkpoints):
        if path.exists():
            shutil.copytree(path, folder / path.name)
    yaml = YAML()
    content = yaml.load(workspace.folder / "params.yaml")
    for section, changes in params.items():
        content[section].update(changes)
    yaml.dump(content, folder / "params.yaml")
    return Workspace(folder)


def checkpointed(process, folder):
    """Wait until a stage has written a checkpoint below a folder."""
    over = False
    while not listed(folder, f"**/*{METADATA}"):
        said = process.stdout.read if process.stdout else str
        assert not over, f"it ended before a checkpoint was seen: {said()}"
        over = process.poll() is not None
        time.sleep(0.02)
