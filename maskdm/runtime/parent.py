"""A process that ends soon after its parent, however the parent ended.

A parent that is killed can tell its children nothing. Left alone, they would hold memory, cores and
locks, and compute what nobody waits for.
"""

import os
import threading
import time
from collections.abc import Callable

SECONDS = 1  # between two looks


def leave_with(parent: int, leave: Callable[[], None] = lambda: os._exit(1)) -> None:
    """Watch the parent, in a thread of its own.

    Args:
        parent: its process number, as it was when this process was started.
        leave: called once it has gone.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(SECONDS)
        leave()

    threading.Thread(target=watch, daemon=True, name="parent").start()
