"""When a checkpoint is due: by time, by steps, and where runs branch off.

By default one is due a minute after the last, and later if saving would take more than 2 % of the
time.
"""

import time
from collections.abc import Callable

from maskdm.runtime.environment import CHECKPOINT_SECONDS, CHECKPOINT_STEPS

COST = 0.02  # the share of the time that saving may take
POLL = 0.5  # seconds between two looks at what other runs need or hold


class Cadence:
    """Decides after each step whether a checkpoint is due.

    Args:
        branches: returns the steps at which runs branch off; other runs may add some at any time.

    Attributes:
        points: these steps, as they were a moment ago.
    """

    def __init__(self, branches: Callable[[], set[int]]) -> None:
        self._branches = branches
        self.seconds, self.steps = CHECKPOINT_SECONDS.get(), CHECKPOINT_STEPS.get()
        self.points: set[int] = set()
        self.restart()

    def restart(self) -> None:
        """Count the seconds from now."""
        self._saved = self._looked = time.monotonic()

    def look(self) -> None:
        """Ask at which steps runs branch off."""
        self.points, self._looked = self._branches(), time.monotonic()

    def due(self, step: int, busy: bool, cost: float) -> bool:
        """Return whether a checkpoint is due.

        Args:
            step: steps made.
            busy: whether the last one is still being written.
            cost: seconds that the last one took.
        """
        now = time.monotonic()
        if now - self._looked > POLL:
            self.look()
        if step in self.points or (self.steps and step % self.steps == 0):
            return True
        return not busy and now - self._saved >= max(self.seconds, cost / COST)

    def saved(self) -> None:
        """Note that a checkpoint was taken now."""
        self._saved = time.monotonic()
