"""The checkpointer of a run: finds the newest checkpoint, saves on the way, saves before a stop.

A save copies the tensors between two steps; the copy is written in the background.
"""

import os
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from signal import SIGTERM
from typing import Any

from torch import Tensor

from maskdm.runtime.distributed import Processes
from maskdm.runtime.environment import EXACT
from maskdm.runtime.errors import StoppedError, UserError
from maskdm.runtime.location import StorageError
from maskdm.training.checkpoints.cadence import POLL, Cadence
from maskdm.training.checkpoints.protocol import Checkpointable
from maskdm.training.checkpoints.signals import StopSignals
from maskdm.training.checkpoints.store import Checkpoint, CheckpointStore
from maskdm.training.checkpoints.writer import BackgroundWriter


class Checkpointer:
    """Saves the checkpoints of a run, and goes on from them.

    Args:
        store: where they are; only the main process uses it.
        state: what is saved.
        steps: of the run.
        branches: the steps after which other runs may branch off, its end included.
        numerics: what rounding depends on in this run.
        processes: who computes together.

    Attributes:
        begun: the step from which this command computed.
        numerics: under which numerics the steps so far were made, in turn.
    """

    def __init__(
        self,
        store: CheckpointStore,
        state: Checkpointable,
        steps: int,
        branches: Sequence[int],
        numerics: Mapping[str, Any],
        processes: Processes,
    ) -> None:
        self.store, self.state, self.steps = store, state, steps
        self.branches, self.processes = branches, processes
        self.numerics = [dict(numerics)]
        self.begun, self.saved = 0, 0  # the first and the last checkpoint of this command
        self._seconds_before, self._started = 0.0, time.monotonic()
        self._failure: str | None = None  # why the store cannot be used, in the main process
        self._found: Checkpoint | None = None  # what to go on from, in the main process
        self.cadence = Cadence(store.kept)
        self.signals = StopSignals(announce=processes.is_main)
        self.writer = BackgroundWriter(store.folder)

    @property
    def seconds(self) -> float:
        """Seconds of training so far, those before this command too."""
        return self._seconds_before + time.monotonic() - self._started

    @contextmanager
    def watching(self) -> Iterator["Checkpointer"]:
        """Hold the store, restore the newest checkpoint, note signals; in the end all is written.

        Raises:
            UserError: in every process, if the store or its remote cannot be used.
        """
        # The lock is released only once nothing is being written any more.
        with self._holding(), closing(self.writer):
            self._restore_newest()
            self.cadence.restart()
            self._started = time.monotonic()
            with self.signals.noted():
                try:
                    yield self
                except StorageError:  # images cannot be had: the state is that between two steps
                    if self.processes.count == 1 and self.state.step > self.saved:
                        self._save(self.state.step, wait=True)
                    raise
            self.finish_writing()
            if self.processes.is_main and self.store.is_held and self.store.has(self.steps):
                self.store.finish()

    def after_step(self) -> None:
        """Save if a checkpoint is due; to be called between steps.

        Raises:
            StoppedError: after saving, if a signal came.
            UserError: in every process, if a checkpoint could not be written.
        """
        step, due = self.state.step, False
        if self.processes.is_main:
            self._collect(wait=False)
            due = self.cadence.due(step, self.writer.busy, self.writer.cost)
        stop = self.signals.received is not None
        due, stop, failed = self.processes.any(due, stop, self.writer.failure is not None)
        if (due or stop) and step > self.saved and not failed:
            self._save(step, wait=stop or step == self.steps)
            (failed,) = self.processes.any(self.writer.failure is not None)
        if failed:
            raise UserError(self.processes.broadcast_object(self.writer.failure))
        if stop:
            raise StoppedError(self._stopped(step), self.signals.received or SIGTERM)

    def finish_writing(self) -> float:
        """Wait for the write that is under way; return the seconds that the last save took.

        Raises:
            UserError: if it fails.
        """
        self._collect(wait=True)
        if self.writer.failure:
            raise UserError(self.writer.failure)
        return self.writer.cost

    def _collect(self, wait: bool) -> None:
        self.writer.collect(wait)
        if self.writer.refused:
            self.saved = 0

    def _save(self, step: int, wait: bool) -> None:
        """Copy the state and have it written."""
        started = time.monotonic()
        if self.processes.is_main:
            self._collect(wait=True)
        tensors = self.processes.gather(self.state.tensors(), copied=not wait)
        self.saved = step
        if not self.processes.is_main:
            return
        metadata = self.state.metadata() | {"seconds": self.seconds, "numerics": self.numerics}

        def write() -> None:
            self.store.save(step, tensors, metadata, wait, required=step in self.cadence.points)

        self.writer.submit(step, tensors, write, copying=time.monotonic() - started)
        if wait:
            self._collect(wait=True)
        self.cadence.saved()

    def _stopped(self, step: int) -> str:
        """Return the sentence that a stopped run ends with."""
        saved = f"its checkpoint is in {self.store.folder}" if step else "nothing was done"
        if step and not self.processes.broadcast_object(self.saved == step):
            saved = "its weights are not finite, and not saved"
        return f"Stopped after step {step}; {saved}. The same command goes on from there."

    @contextmanager
    def _holding(self) -> Iterator[None]:
        """Hold the store once no other run does, or until this run's last checkpoint is there.

        All processes wait together, so that none of them waits for the main one in vain.
        """
        if not self.steps:
            yield
            return
        main = self.processes.is_main
        if main:
            try:
                self.store.open()
                for step in self.branches:
                    self.store.keep(step)
            except UserError as error:
                self._failure = str(error)
        announced = False
        while not self.processes.any(main and self._may_go_on())[0]:
            if main and not announced:
                print(f"Waiting for a run that trains the same{self.store.holder()}", flush=True)
                announced = True
            time.sleep(POLL)
        try:
            if self.processes.any(self._failure is not None)[0]:
                raise UserError(self.processes.broadcast_object(self._failure))
            if self.store.is_held:
                self.store.take_over(f"process {os.getpid()} on {platform.node()}")
                self.cadence.look()
            yield
        finally:
            self.store.release()

    def _may_go_on(self) -> bool:
        """Return whether the store is held, need not be, or cannot be used."""
        if self._failure or self.store.acquire():
            return True
        # What the other run computes beyond this run's end does not matter here.
        self._found = self.store.read(self.steps, self._fits)
        return self._found is not None

    def _restore_newest(self) -> None:
        """Become the newest state that is there, in all processes."""
        if self.processes.is_main and self.store.is_held:
            self._found = self.store.newest(self.steps, self._fits)
        found, self._found = self._found, None
        about = (found.name.step, dict(found.metadata)) if found else (0, {})
        step, metadata = self.processes.broadcast_object(about)
        if not step:
            return

        def load(name: str, target: Tensor) -> None:
            self.processes.broadcast(target, found.tensors[name] if found else None)

        self.state.restore(step, metadata, load)
        self.begun = self.saved = step
        self._seconds_before = metadata["seconds"]
        before, now = metadata["numerics"], self.numerics[-1]
        if before[-1] == now or step == self.steps:  # no step is made under these numerics
            self.numerics = before
        else:
            self.numerics = [*before, now]
        if self.processes.is_main:
            print(self._resumed(step, before[-1], now))

    def _fits(self, metadata: Mapping[str, Any]) -> bool:
        """Return whether this run may go on from a checkpoint.

        With MASKDM_EXACT=1 it must have been computed under this run's numerics from the start.
        """
        return not EXACT.get() or metadata["numerics"] == self.numerics[-1:]

    def _resumed(self, step: int, before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
        """Return the sentence that a resumed run begins with."""
        folder = self.store.folder
        was = {key: before.get(key) for key in now}
        changed = ", ".join(f"{key} {was[key]} → {now[key]}" for key in now if was[key] != now[key])
        if step == self.steps:
            other = f" (computed otherwise than here would be: {changed})" if changed else ""
            return (
                f"Found the finished checkpoint of these {step} steps: nothing is computed{other}. "
                f"To compute it anew: python -m stages.checkpoints clear {folder.name}"
            )
        line = f"Going on from the checkpoint after step {step} of {self.steps} ({folder})"
        return f"{line}; from here on {changed}: equal up to rounding" if changed else line
