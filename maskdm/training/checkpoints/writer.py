"""Writing in the background: one checkpoint at a time, while training goes on."""

import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path

from torch import Tensor

from maskdm.runtime.environment import CHECKPOINTS
from maskdm.runtime.threads import background_threads

WEIGHTS = ("raw.", "averaged.")  # the beginnings of the names of weights


class NotFiniteError(Exception):
    """Weights that are not worth saving."""


class BackgroundWriter:
    """Writes checkpoints in one thread, and tells later how it went.

    Args:
        folder: where they go, for messages.

    Attributes:
        cost: seconds that the last checkpoint took.
        failure: why one could not be written, None if all could.
        refused: whether the last one was not written, because its weights are not finite.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cost = 0.0
        self.failure: str | None = None
        self.refused = False
        self._thread = background_threads(1, "checkpoints")
        self._writing: Future[float] | None = None
        self._step = 0

    @property
    def busy(self) -> bool:
        """Whether a checkpoint is being written."""
        return self._writing is not None

    def submit(
        self, step: int, tensors: Mapping[str, Tensor], write: Callable[[], None], copying: float
    ) -> None:
        """Check a checkpoint's weights and write it in the background.

        Args:
            step: steps made.
            tensors: its tensors, by name.
            write: writes it.
            copying: seconds that it took to copy the tensors.
        """

        def work() -> float:
            started = time.monotonic()
            for name, tensor in tensors.items():
                if name.startswith(WEIGHTS) and not tensor.isfinite().all():
                    raise NotFiniteError
            write()
            return copying + time.monotonic() - started

        self._step, self.refused = step, False
        self._writing = self._thread.submit(work)

    def collect(self, wait: bool) -> None:
        """Take note of how the last write went, once it is done.

        Args:
            wait: for its end.
        """
        if self._writing is None or not (wait or self._writing.done()):
            return
        writing, self._writing = self._writing, None
        try:
            self.cost = writing.result()
        except OSError as error:
            self.failure = (
                f"The checkpoint could not be written to {self.folder} ({error.strerror}). Make "
                f"room there, or name another folder in {CHECKPOINTS.name}; the same command then "
                "goes on from the last checkpoint that is whole."
            )
        except NotFiniteError:
            print(f"The weights after step {self._step} are not finite: not saved", file=sys.stderr)
            self.refused = True

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown()
