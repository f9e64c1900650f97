"""What is measured in processes of its own: a module that writes what it finds to a file."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from maskdm.runtime.environment import PARENT

PATIENCE = 110  # seconds, after which a process is taken to hang
PATIENCE_COMPILING = 200  # if it compiles in several processes, two shapes of a large network


def apart(
    module: str,
    words: Sequence[str],
    environment: Mapping[str, str | None],
    patience: int = PATIENCE,
) -> dict[str, Any]:
    """Return what ``python -m module FILE words`` writes to the file.

    Args:
        module: of this repository.
        words: behind the file.
        environment: what differs in it; None: what is not to be there.
        patience: seconds.

    Raises:
        RuntimeError: with the end of what it said, if it fails or hangs.
    """
    variables = {name: value for name, value in environment.items() if value is not None}
    usual = {name: value for name, value in os.environ.items() if name not in environment}
    usual[PARENT.name] = str(os.getpid())  # to leave with this process, if that is killed
    with TemporaryDirectory() as folder:
        found = Path(folder) / "found.json"
        command = [sys.executable, "-m", module, str(found), *words]
        try:
            done = subprocess.run(
                command, env=usual | variables, capture_output=True, text=True, timeout=patience
            )
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"{module} did not end within {patience} s") from None
        if done.returncode:
            *_, last = done.stderr.strip().splitlines() or ["it says nothing"]
            raise RuntimeError(f"{module} failed: {last}")
        return dict(json.loads(found.read_text(encoding="utf-8")))
