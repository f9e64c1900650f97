"""A fault at every write of every stage: ``python -m benchmarks.robustness.writes``.

The stages of the preset tiny run in turn. At the first, the second, … write of each something goes
wrong: the process gets a signal, the disk is full from now on or fails once, the folder cannot be
written to, no more files can be opened. Then the same command runs once more, undisturbed, and what
is there must be the bytes of a run that nothing befell. Writes are counted, not timed: Python tells
of every file that is opened for writing, renamed or removed (PEP 578). It goes round and round, and
measures what grows: the memory and the handles of commands, the files that they leave, the disk.
The next command goes on from the figures in reports/robustness.json; ``--anew`` forgets them.
"""

import errno
import json
import os
import random
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.presets import read_preset
from benchmarks.robustness.forks import STAGES, TEMPORARY, Ended, begin_anew, run
from benchmarks.robustness.interrupts import hear
from benchmarks.robustness.pipeline import results
from benchmarks.robustness.report import REPORT, read_report, write_report
from maskdm.runtime import command
from maskdm.runtime.errors import UserError
from maskdm.runtime.files import write_json

ERRORS = {
    "full": errno.ENOSPC,
    "quota": errno.EDQUOT,
    "read-only": errno.EROFS,
    "failing": errno.EIO,
    "handles": errno.EMFILE,
}
SIGNALS = {number.name: number for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)}
OF_MAKING = ("full", "quota")  # what is there can be renamed and removed
ONCE = ("failing",)
COUNTED = ("rounds", "of_all_faults", "longest")
FIGURES = "faults_at_writes"
MAKING, CHANGING = ("open", "os.mkdir"), ("os.rename", "os.remove", "os.rmdir")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


@dataclass
class Storm:
    """What faults did.

    Attributes:
        faults: how many of each kind hit.
        lost: files that are missing after the second run.
        wrong: files that differ then.
        left: files that no undisturbed run leaves.
        unclear: commands that ended otherwise than they should, or without a sentence.
    """

    faults: Counter[str] = field(default_factory=Counter)
    lost: set[str] = field(default_factory=set)
    wrong: set[str] = field(default_factory=set)
    left: set[str] = field(default_factory=set)
    unclear: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, figures: dict[str, Any]) -> "Storm":
        """Return the storm that goes on from figures of before."""
        names = {name: set(figures.get(name, ())) for name in ("lost", "wrong", "left", "unclear")}
        return cls(Counter(figures.get("kinds", {})), **names)

    def compare(self, where: str, expected: dict[str, bytes], found: dict[str, bytes]) -> None:
        """Note what is not as in an undisturbed run."""
        self.lost |= {f"{where}: {name}" for name in expected.keys() - found.keys()}
        self.left |= {f"{where}: {name}" for name in found.keys() - expected.keys()}
        both = expected.keys() & found.keys()
        self.wrong |= {f"{where}: {name}" for name in both if expected[name] != found[name]}

    def figures(self) -> dict[str, Any]:
        """Return what is written into the report."""
        kinds = dict(sorted(self.faults.items()))
        names = {name: sorted(getattr(self, name)) for name in ("lost", "wrong", "left", "unclear")}
        return {"faults": self.faults.total(), "kinds": kinds, **names}


class Fault:
    """Hears of what Python does, and strikes at a write of a number.

    Args:
        folder: the workspace: writes elsewhere are none.
        kind: of ``SIGNALS`` or ``ERRORS``; None only counts.
        at: the number of the write, from 1.
    """

    def __init__(self, folder: Path, kind: str | None = None, at: int = 0) -> None:
        self.folder, self.kind, self.at, self.writes = f"{folder}/", kind, at, 0

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Count a write, and strike if it is time."""
        if not self.concerns(event, arguments):
            return
        self.writes += 1
        if self.kind in SIGNALS and self.writes == self.at:
            os.kill(os.getpid(), SIGNALS[self.kind])
        if self.kind in ERRORS and self.strikes(event):
            number = ERRORS[self.kind]
            raise OSError(number, os.strerror(number), str(arguments[0]))

    def strikes(self, event: str) -> bool:
        """Return whether a write fails now."""
        if self.kind in OF_MAKING and event not in MAKING:
            return False
        if self.kind == "handles" and event != "open":
            return False
        return self.writes == self.at or (self.writes > self.at and self.kind not in ONCE)

    def concerns(self, event: str, arguments: tuple[Any, ...]) -> bool:
        """Return whether an event is a write in the workspace."""
        if event not in MAKING + CHANGING or not isinstance(arguments[0], str | os.PathLike):
            return False
        if event == "open" and not arguments[2] & WRITING:
            return False
        return str(Path(arguments[0]).absolute()).startswith(self.folder)

    def written(self) -> int:
        """Return how many writes there were."""
        return self.writes


def main(
    minutes: Annotated[float, typer.Option(help="at least; 0: one round")] = 0.0,
    every: Annotated[int, typer.Option(help="a round tries one fault of so many")] = 10,
    stages: Annotated[list[str] | None, typer.Option(help="that are struck; else all")] = None,
    anew: Annotated[bool, typer.Option("--anew", help="forget what was found before")] = False,
) -> None:
    """Strike at the writes of the stages, round by round at others, and write what came of it."""
    begin_anew()
    hear()
    before = {} if anew else read_report().get(FIGURES, {})
    struck = [name for name in STAGES if name in (stages or STAGES)]
    counted = counted_before(before, {"every": every, "stages": struck})
    storm, started, rounds = Storm.of(before), time.monotonic(), list[dict[str, int]]()

    def note() -> dict[str, Any]:
        figures = counted | storm.figures()
        write_report(**{FIGURES: figures})
        return figures

    with tempfile.TemporaryDirectory() as made:
        folder = Path(made).resolve()
        while not rounds or time.monotonic() - started < 60 * minutes:
            done = counted.get("rounds", 0)
            rounds.append(sweep(folder, storm, every, struck, done, note))
            seconds = round(time.monotonic() - started)
            longest: dict[str, Any] = {"seconds": seconds, "rounds": len(rounds)}
            longest |= {"first_round": rounds[0], "last_round": rounds[-1]}
            if seconds >= counted.get("longest", longest)["seconds"]:
                counted["longest"] = longest
            counted |= {"rounds": done + 1, "of_all_faults": min(1.0, (done + 1) / every)}
            figures = note()
    print(json.dumps(figures))
    if storm.lost or storm.wrong or storm.left or storm.unclear:
        raise UserError(f"Not all was as it should be: see {FIGURES} in {REPORT}.")


def counted_before(before: Mapping[str, Any], asked: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is asked with what was counted before, to which it adds.

    Raises:
        UserError: if other faults were asked for then: rounds of those are none of these.
    """
    for name, now in asked.items():
        if before.get("rounds") and before[name] != now:
            said = f"--{name} was {before[name]} before"
            raise UserError(f"{said}: go on with it, or begin --anew.")
    return dict(asked) | {name: before[name] for name in COUNTED if name in before}


def sweep(
    folder: Path,
    storm: Storm,
    every: int,
    chosen: Sequence[str],
    shift: int,
    note: Callable[[], Any],
) -> dict[str, int]:
    """Run the stages, each undisturbed and with a fault at its writes.

    Args:
        folder: for the workspaces.
        storm: is told what came of it.
        every: one fault of so many is tried.
        chosen: the stages that are struck.
        shift: which of ``every`` faults is the first.
        note: called behind each fault, so that a stop loses nothing.

    Returns:
        The most memory (MiB) and handles that a command had at its end; how many temporary files
        they left, and the bytes (KiB) on the disk in the end.
    """
    calm, struck, before = (folder / name for name in ("calm", "struck", "before"))
    most = Counter[str]()
    shutil.rmtree(calm, ignore_errors=True)
    write_json(calm / "params.yaml", read_preset("tiny"))
    for name in STAGES[: 1 + max(map(STAGES.index, chosen))]:
        shutil.rmtree(before, ignore_errors=True)
        shutil.copytree(calm, before)
        count = Fault(calm)
        undisturbed = run(name, calm, count, count.written)
        if undisturbed.status:
            raise UserError(f"{name} ended with {undisturbed.status}:\n{undisturbed.said[-3000:]}")
        expected = results(calm)
        for kind, at in strikes(undisturbed.told, every, shift) if name in chosen else ():
            shutil.rmtree(struck, ignore_errors=True)
            shutil.copytree(before, struck)
            first = run(name, struck, Fault(struck, kind, at))
            second = run(name, struck)
            storm.faults[kind] += 1
            where = f"{name}, {kind} at write {at} of {undisturbed.told}"
            if unclear(first, kind) or unclear(second):
                storm.unclear.add(f"{where}: {first.said[-600:]} {second.said[-600:]}")
            storm.compare(where, expected, results(struck))
            most |= Counter(mib=second.mib, handles=second.handles)
            note()
    left = [path for path in (folder / TEMPORARY).rglob("*") if path.is_file()]
    there = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    return dict(most) | {"temporary_files": len(left), "kib_on_disk": sum(there) // 1024}


def strikes(writes: int, every: int, shift: int) -> Iterator[tuple[str, int]]:
    """Yield kinds of faults and the numbers of the writes they strike at."""
    every_one = [(kind, at) for at in range(1, writes + 1) for kind in (*SIGNALS, *ERRORS)]
    random.Random(0).shuffle(every_one)  # so that all kinds come early
    yield from every_one[shift % every :: every]


def unclear(ended: Ended, kind: str | None = None) -> bool:
    """Return whether a command ended otherwise than a fault allows, or without a sentence."""
    if "Traceback" in ended.said:
        return True
    if kind == "SIGKILL":
        return ended.status != -signal.SIGKILL
    if kind in SIGNALS:  # one that comes behind the last step stops nothing any more
        return ended.status not in (0, -SIGNALS[kind], 128 + SIGNALS[kind])
    if kind in ERRORS and ended.status:  # what need not be written may fail without harm
        return ended.status != 1 or "error: " not in ended.said
    return ended.status != 0


if __name__ == "__main__":
    command.run(main)
