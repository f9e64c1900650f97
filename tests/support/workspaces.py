"""Folders in which stages run on a tiny configuration, from the images of another one."""

import shutil
import time

from ruamel.yaml import YAML

from benchmarks.robustness.torture import Workspace
from maskdm.runtime.files import listed
from maskdm.training.checkpoints.store import METADATA


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
    while not listed(folder, f"**/*{METADATA}"):
        said = process.stdout.read if process.stdout else str
        assert process.poll() is None, f"it ended before a checkpoint was seen: {said()}"
        time.sleep(0.02)
