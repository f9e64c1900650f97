"""Folders in which stages run on a tiny configuration, from the images of another one."""

import shutil
import time

from ruamel.yaml import YAML

from benchmarks.robustness.torture import Workspace
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
    while not list(folder.rglob(f"*{METADATA}")):
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.02)
