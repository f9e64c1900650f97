"""A process that ends soon after its parent, however the parent ended.

A parent that is killed can tell its children nothing. Left alone, they would hold memory, cores and
locks, and compute what nobody waits for.
"""

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

SECONDS = 1  # between two looks
SHELLS = {"sh", "ash", "bash", "busybox", "dash", "fish", "ksh", "zsh"}


def leave_with(parent: int, leave: Callable[[], None] = lambda: os._exit(1)) -> None:
    """Watch the parent, in a thread of its own; behind a shell also who started that.

    DVC starts a stage through a shell. Most become the stage, but Debian's waits for it.

    Args:
        parent: its process number, as it was when this process was started.
        leave: called once one of them has gone.
    """
    name, behind = _about(parent)

    def watch() -> None:
        while os.getppid() == parent and (name not in SHELLS or _about(parent)[1] == behind):
            time.sleep(SECONDS)
        leave()

    threading.Thread(target=watch, daemon=True, name="parent").start()


def _about(process: int) -> tuple[str, int]:
    """Return the name and the parent of another process; nothing where the system has no /proc."""
    try:
        text = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "", 0
    start, _, rest = text.rpartition(")")
    return start.partition("(")[2], int(rest.split()[1])
