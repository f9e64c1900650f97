"""When a training state is saved: by time, by steps, where runs branch off, before a stop.

A save copies the tensors between two steps and writes the copy in the background. By default one
is due a minute after the last, and later if it would take more than 2 % of the time. SIGTERM and
Ctrl-C are heard after the step that is under way: the state is saved, then the run stops.
"""

import os
import platform
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from types import FrameType
from typing import Any

from filelock import Timeout
from torch import Tensor

from maskdm.arithmetic import exact
from maskdm.beside import threads_beside
from maskdm.devices import whole_number
from maskdm.errors import StoppedError, UserError
from maskdm.processes import Processes
from maskdm.schedule import Schedule
from maskdm.states import States, Stored
from maskdm.training import State

SECONDS = 60  # between saves
HEARD = (signal.SIGTERM, signal.SIGINT)
COST = 0.02  # share of the time that saving may take
LOOK = 0.5  # seconds between two looks at what other runs want or hold


class Saver:
    """Saves the states of a run, and finds them again.

    Args:
        states: where; only the first process uses it.
        state: what is trained.
        schedule: how long, and where other runs may branch off.
        arithmetic: what rounding depends on in this run (``arithmetic.py``).
        processes: who trains together.

    Attributes:
        begun: the step from which this command computed.
        arithmetic: the kinds of arithmetic that the steps so far were made in, in turn.
    """

    def __init__(
        self,
        states: States,
        state: State,
        schedule: Schedule,
        arithmetic: Mapping[str, Any],
        processes: Processes,
    ) -> None:
        self.states, self.state, self.schedule = states, state, schedule
        self.steps, self.processes = schedule.steps, processes
        self.arithmetic = [dict(arithmetic)]
        self.seconds_between = whole_number("MASKDM_SAVE_SECONDS", SECONDS)
        self.steps_between = whole_number("MASKDM_SAVE_STEPS", None)
        self.begun, self.before = 0, 0.0  # the step and the seconds that this command begins with
        self.started = self.saved_at = self.looked = time.monotonic()
        self.saved, self.cost = 0, 0.0  # the last step saved, what that took
        self.signal: int | None = None
        self.writing: Future[float] | None = None
        self.failure: str | None = None  # why the states cannot be used, in the first process
        self.found: Stored | None = None  # what to go on from, in the first process
        self.points: set[int] = set()  # where this run passes states that some run wants

    @contextmanager
    def watching(self) -> Iterator["Saver"]:
        """Hold the states, take up the newest, hear signals; at the end all is written.

        Raises:
            UserError: in every process, if the states or their mirror cannot be used.
        """
        with self._holding(), threads_beside(1, "states") as self.thread:
            self._take_up()
            self.started = self.saved_at = time.monotonic()
            with self._hearing():
                yield self
            self.finish_writing()
            if self.processes.first and self.locked and self.states.has(self.steps):
                self.states.finish()

    @property
    def seconds(self) -> float:
        """Seconds of training so far, those before this command too."""
        return self.before + time.monotonic() - self.started

    @property
    def locked(self) -> bool:
        """Whether the states are this run's to write."""
        return bool(self.states.lock.is_locked)

    def after_step(self) -> None:
        """Save if it is time to; to be called between steps.

        Raises:
            StoppedError: after saving, if a signal came.
            UserError: in every process, if a state could not be written.
        """
        step = self.state.step
        due = False
        if self.processes.first:
            self._hear_writing(wait=False)
            due = self._due(step)
        due, stop, failed = self.processes.any(
            due, self.signal is not None, self.failure is not None
        )
        if (due or stop) and step > self.saved and not failed:
            self._save(step, wait=stop or step == self.steps)
            (failed,) = self.processes.any(self.failure is not None)
        if failed:
            raise UserError(self.processes.told(self.failure))
        if stop:
            saved = "nothing was done" if not step else f"its state is in {self.states.folder}"
            if step and not self.processes.told(self.saved == step):
                saved = "its weights are not finite, and not saved"
            raise StoppedError(
                f"Stopped after step {step}; {saved}. The same command goes on from there.",
                self.signal or signal.SIGTERM,
            )

    def finish_writing(self) -> float:
        """Wait for the write that is under way; return the seconds that the last save took.

        Raises:
            UserError: if it fails.
        """
        self._hear_writing(wait=True)
        if self.failure:
            raise UserError(self.failure)
        return self.cost

    def _due(self, step: int) -> bool:
        now = time.monotonic()
        if now - self.looked > LOOK:
            self.points, self.looked = self.states.wanted(), now
        if step in self.points or (self.steps_between and step % self.steps_between == 0):
            return True
        waited = now - self.saved_at
        return self.writing is None and waited >= max(self.seconds_between, self.cost / COST)

    def _save(self, step: int, wait: bool) -> None:
        """Copy the state and have it written."""
        started = time.monotonic()
        if self.processes.first:
            self._hear_writing(wait=True)
        tensors = self.processes.gathered(self.state.tensors(), copied=not wait)
        self.saved = step
        if not self.processes.first:
            return
        facts = self.state.facts() | {"seconds": self.seconds, "arithmetic": self.arithmetic}
        copying = time.monotonic() - started

        def write() -> float:
            started = time.monotonic()
            for name, tensor in tensors.items():
                if name.startswith(("raw.", "averaged.")) and not tensor.isfinite().all():
                    raise _NotFiniteError
            self.states.save(step, tensors, facts, wait or step in self.points)
            return copying + time.monotonic() - started

        self.writing = self.thread.submit(write)
        if wait:
            self._hear_writing(wait=True)
        self.saved_at = time.monotonic()

    def _hear_writing(self, wait: bool) -> None:
        """Hear how the last write went, if it is done or is to be waited for."""
        if self.writing is None or not (wait or self.writing.done()):
            return
        writing, self.writing = self.writing, None
        try:
            self.cost = writing.result()
        except OSError as error:
            self.failure = (
                f"The training state could not be written to {self.states.folder} "
                f"({error.strerror}). Make room there, or name another folder in MASKDM_STATES; "
                "the same command then goes on from the last state that is whole."
            )
        except _NotFiniteError:
            print(f"The weights after step {self.saved} are not finite: not saved", file=sys.stderr)
            self.saved = 0

    @contextmanager
    def _holding(self) -> Iterator[None]:
        """Hold the states, once no other run does, or this run's last state is there.

        All processes wait together, so that none of them waits for the first in vain.
        """
        if not self.steps:
            yield
            return
        if self.processes.first:
            try:
                self.states.open()
                for step in self.schedule.branches():
                    self.states.want(step)
            except UserError as error:
                self.failure = str(error)
        said = False
        while not self.processes.any(self._may_go_on())[0]:
            if self.processes.first and not said:
                print(f"Waiting for a run that trains the same{self.states.holder()}", flush=True)
                said = True
            time.sleep(LOOK)
        try:
            if self.processes.any(self.failure is not None)[0]:
                raise UserError(self.processes.told(self.failure))
            if self.locked:
                self.states.sweep()
                self.states.owner.write_text(f"process {os.getpid()} on {platform.node()}")
                self.points = self.states.wanted()
            yield
        finally:
            if self.locked:
                self.states.owner.unlink(missing_ok=True)
                self.states.lock.release()

    def _may_go_on(self) -> bool:
        """Return whether the first process has the lock, needs none, or has failed."""
        if not self.processes.first:
            return False
        if self.failure:
            return True
        try:
            self.states.lock.acquire(timeout=0)
        except Timeout:
            # What the other run computes further on does not matter to this one.
            self.found = self.states.take(self.steps, self._fits)
            return self.found is not None
        return True

    def _take_up(self) -> None:
        """Become the newest state that is there, in all processes."""
        if self.processes.first and self.locked:
            self.found = self.states.newest(self.steps, self._fits)
        found, self.found = self.found, None
        about = (found.name.step, dict(found.facts)) if found else (0, {})
        step, facts = self.processes.told(about)
        if not step:
            return

        def fill(name: str, target: Tensor) -> None:
            self.processes.fill(target, found.tensors[name] if found else None)

        self.state.restore(step, facts, fill)
        self.begun = self.saved = step
        self.before = facts["seconds"]
        before, now = facts["arithmetic"], self.arithmetic[-1]
        if before[-1] == now or step == self.steps:  # no step is made in this arithmetic
            self.arithmetic = before
        else:
            self.arithmetic = [*before, now]
        if self.processes.first:
            print(self._taken_up(step, before[-1], now))

    def _fits(self, facts: Mapping[str, Any]) -> bool:
        """Return whether a state may be gone on from.

        With MASKDM_EXACT=1 it must have been computed in this run's arithmetic from the start.
        """
        return not exact() or facts["arithmetic"] == self.arithmetic[-1:]

    def _taken_up(self, step: int, before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
        folder = self.states.folder
        was = {key: before.get(key) for key in now}
        changed = ", ".join(f"{key} {was[key]} → {now[key]}" for key in now if was[key] != now[key])
        if step == self.steps:
            other = f" (computed otherwise than here would be: {changed})" if changed else ""
            return (
                f"Found the finished state of these {step} steps: nothing is computed{other}. To "
                f"compute it anew: python -m stages.states clear {folder.name}"
            )
        line = f"Going on from the state after step {step} of {self.steps} ({folder})"
        return f"{line}; from here on {changed}: equal up to rounding" if changed else line

    @contextmanager
    def _hearing(self) -> Iterator[None]:
        """Note SIGTERM and Ctrl-C instead of dying of them; a second Ctrl-C is as usual.

        A second SIGTERM is not: launchers and queues may both send one.
        """
        usual = {int(number): signal.getsignal(number) for number in HEARD}

        def hear(number: int, frame: FrameType | None) -> None:
            if number == signal.SIGINT:
                signal.signal(number, usual[number])
            if self.signal is None and self.processes.first:
                # Not print: the signal may have come in the middle of one.
                os.write(2, b"\nStopping after this step, saving first\n")
            self.signal = number

        for number in usual:
            signal.signal(number, hear)
        try:
            yield
        finally:
            for number, handler in usual.items():
                signal.signal(number, handler)


class _NotFiniteError(Exception):
    """Weights that are not worth saving."""
