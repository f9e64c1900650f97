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
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from filelock import Timeout

from maskdm.arithmetic import exact
from maskdm.devices import whole_number
from maskdm.errors import StoppedError, UserError
from maskdm.processes import Processes
from maskdm.schedule import Schedule
from maskdm.states import States, Stored
from maskdm.training import State

SECONDS = 60  # between saves
HEARD = (signal.SIGTERM, signal.SIGINT)
COST = 0.02  # share of the time that saving may take
PATIENCE = 0.5  # seconds between two looks at what other runs want or hold


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
        self.points: set[int] = set()  # where this run passes states that some run wants

    @contextmanager
    def watching(self) -> Iterator["Saver"]:
        """Hold the states, take up the newest, hear signals; at the end all is written."""
        with self._holding(), ThreadPoolExecutor(1, thread_name_prefix="states") as self.thread:
            self._take_up()
            self.started = self.saved_at = time.monotonic()
            with self._hearing():
                yield self
            self._written(wait=True)
            if self.state.step == self.steps and self.states.lock.is_locked:
                self.states.finish()

    @property
    def seconds(self) -> float:
        """Seconds of training so far, those before this command too."""
        return self.before + time.monotonic() - self.started

    def after_step(self) -> None:
        """Save if it is time to; to be called between steps.

        Raises:
            StoppedError: after saving, if a signal came.
            UserError: if a state could not be written.
        """
        step = self.state.step
        due, stop = self.processes.any(
            self.processes.first and self._due(step), self.signal is not None
        )
        if (due or stop) and step > self.saved:
            self._save(step, wait=stop or step == self.steps)
        if stop:
            saved = f"its state is saved in {self.states.folder}" if step else "nothing was done"
            raise StoppedError(
                f"Stopped after step {step}; {saved}. The same command goes on from there.",
                self.signal or signal.SIGTERM,
            )

    def _due(self, step: int) -> bool:
        self._written(wait=False)
        now = time.monotonic()
        if now - self.looked > PATIENCE:
            self.points, self.looked = self.states.wanted(), now
        if step in self.points or (self.steps_between and step % self.steps_between == 0):
            return True
        waited = now - self.saved_at
        return self.writing is None and waited >= max(self.seconds_between, self.cost / COST)

    def _save(self, step: int, wait: bool) -> None:
        """Copy the state and have it written."""
        started = time.monotonic()
        self._written(wait=True)
        tensors = {}
        for name, tensor in self.state.tensors().items():
            whole = self.processes.whole(tensor)
            if self.processes.first:
                tensors[name] = whole.detach().to("cpu", copy=True).contiguous()
        self.saved = step
        if not self.processes.first:
            return
        facts = self.state.facts() | {"seconds": self.seconds, "arithmetic": self.arithmetic}
        copying = time.monotonic() - started

        def write() -> float:
            started = time.monotonic()
            self._check(tensors)
            self.states.save(step, tensors, facts, wait)
            return copying + time.monotonic() - started

        self.writing = self.thread.submit(write)
        if wait:
            self._written(wait=True)
        self.saved_at = time.monotonic()

    def finish_writing(self) -> float:
        """Wait for the write that is under way; return the seconds that the last save took."""
        self._written(wait=True)
        return self.cost

    def _written(self, wait: bool) -> None:
        """Hear how the last write went, if it is done or is to be waited for."""
        if self.writing is None or not (wait or self.writing.done()):
            return
        writing, self.writing = self.writing, None
        try:
            self.cost = writing.result()
        except OSError as error:
            raise UserError(
                f"The training state could not be written to {self.states.folder} "
                f"({error.strerror}). Make room there, or name another folder in MASKDM_STATES; "
                "the same command then goes on from the last state that is whole."
            ) from None
        except _NotFiniteError:
            print(f"The weights after step {self.saved} are not finite: not saved", file=sys.stderr)

    def _check(self, tensors: Mapping[str, torch.Tensor]) -> None:
        for name, tensor in tensors.items():
            if name.startswith(("raw.", "averaged.")) and not tensor.isfinite().all():
                raise _NotFiniteError

    @contextmanager
    def _holding(self) -> Iterator[None]:
        """Hold the states, once no other run does, or this run's last state is there."""
        if not self.processes.first or not self.steps:
            yield
            return
        self.states.open()
        for step in self.schedule.branches():
            self.states.want(step)
        said = False
        while True:
            try:
                self.states.lock.acquire(timeout=0)
                break
            except Timeout:
                if self.states.has(self.steps) and self._find(self.steps):
                    break  # what the other run computes further on does not matter to this one
                if not said:
                    print(f"Waiting for a run that trains the same{self.states.holder()}")
                said = True
                time.sleep(PATIENCE)
        try:
            if self.states.lock.is_locked:
                self.states.sweep()
                self.states.owner.write_text(f"process {os.getpid()} on {platform.node()}")
            self.points = self.states.wanted()
            yield
        finally:
            if self.states.lock.is_locked:
                self.states.owner.unlink(missing_ok=True)
                self.states.lock.release()

    def _take_up(self) -> None:
        """Become the newest state that is there, in all processes."""
        now = self.arithmetic[-1]
        found = self._find() if self.processes.first and self.steps else None
        about = (found.name.step, dict(found.facts)) if found else (0, {})
        step, facts = self.processes.told(about)
        if not step:
            return
        self.state.restore(step, facts, self._filling(found))
        self.begun = self.saved = step
        self.before = facts["seconds"]
        before = facts["arithmetic"]
        self.arithmetic = before if before[-1] == now else [*before, now]
        if self.processes.first:
            print(self._taken_up(step, before[-1], now))

    def _find(self, least: int = 1) -> Stored | None:
        """Return the newest state to go on from, if it is of ``least`` steps or more.

        With MASKDM_EXACT=1 it must have been computed in this run's arithmetic from the start.
        """

        def fits(facts: Mapping[str, Any]) -> bool:
            return not exact() or facts["arithmetic"] == self.arithmetic[-1:]

        found = self.states.newest(self.steps, fits)
        return found if found and found.name.step >= least else None

    def _filling(self, found: Stored | None) -> Callable[[str, torch.Tensor], None]:
        def fill(name: str, target: torch.Tensor) -> None:
            self.processes.fill(target, found.tensors[name] if found else None)

        return fill

    def _taken_up(self, step: int, before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
        folder = self.states.folder
        if step == self.steps:
            return (
                f"Found the finished state of these {step} steps: nothing is computed. To compute "
                f"it anew: python -m stages.states clear {folder.name}"
            )
        line = f"Going on from the state after step {step} of {self.steps} ({folder})"
        changed = [
            f"{key} {before.get(key)} → {now[key]}" for key in now if before.get(key) != now[key]
        ]
        if changed:
            line += f"; from here on {', '.join(changed)}: equal up to rounding"
        return line

    @contextmanager
    def _hearing(self) -> Iterator[None]:
        """Note SIGTERM and Ctrl-C instead of dying of them; the second one is as usual."""
        usual = {int(number): signal.getsignal(number) for number in HEARD}

        def hear(number: int, frame: FrameType | None) -> None:
            self.signal = number
            signal.signal(number, usual[number])
            if self.processes.first:
                print("\nStopping after this step, saving first", file=sys.stderr)

        for number in usual:
            signal.signal(number, hear)
        try:
            yield
        finally:
            for number, handler in usual.items():
                signal.signal(number, handler)


class _NotFiniteError(Exception):
    """Weights that are not worth saving."""
