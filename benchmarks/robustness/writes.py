"""A fault at every write of every stage: ``python -m benchmarks.robustness.writes``.

The stages of the preset tiny run in turn. At the first, the second, … write of each something goes
wrong: the process is killed, the disk is full from now on, the folder cannot be written to. Then
the same command runs once more, undisturbed, and what is there must be the bytes of a run that
nothing befell. Writes are counted, not timed: Python tells of every file that is
opened for writing, renamed or removed (PEP 578). It goes round and round, and measures what grows:
the memory and the handles of commands, the files that they leave.
"""

import errno
import json
import os
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.presets import read_preset
from benchmarks.robustness.forks import STAGES, TEMPORARY, Ended, begin_anew, run
from benchmarks.robustness.inputs import REPORT
from benchmarks.robustness.pipeline import results
from maskdm.runtime import command
from maskdm.runtime.errors import UserError
from maskdm.runtime.files import write_json

ERRORS = {"full": errno.ENOSPC, "read-only": errno.EROFS}
KILLED = "killed"
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
        kind: ``killed``, ``full`` or ``read-only``; None only counts.
        at: the number of the write, from 1.
    """

    def __init__(self, folder: Path, kind: str | None = None, at: int = 0) -> None:
        self.folder, self.kind, self.at, self.writes = f"{folder}/", kind, at, 0

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Count a write, and strike if it is time."""
        if not self.concerns(event, arguments):
            return
        self.writes += 1
        if self.kind == KILLED and self.writes == self.at:
            os.kill(os.getpid(), signal.SIGKILL)
        # On a full disk, what is there can be renamed and removed.
        if self.kind in ERRORS and self.writes >= self.at:
            if self.kind == "full" and event not in MAKING:
                return
            number = ERRORS[self.kind]
            raise OSError(number, os.strerror(number), str(arguments[0]))

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
) -> None:
    """Strike at the writes of the stages, round by round at others, and write what came of it."""
    begin_anew()
    storm, rounds, started = Storm(), list[Counter[str]](), time.monotonic()
    with tempfile.TemporaryDirectory() as made:
        while not rounds or time.monotonic() - started < 60 * minutes:
            rounds.append(sweep(Path(made).resolve(), storm, every, stages or STAGES, len(rounds)))
            figures = {
                "minutes": round((time.monotonic() - started) / 60),
                "rounds": len(rounds),
                "first_round": dict(rounds[0]),
                "last_round": dict(rounds[-1]),
                "of_all_faults": min(1.0, len(rounds) / every),
                **storm.figures(),
            }
            kept = json.loads(REPORT.read_text(encoding="utf-8")) if REPORT.exists() else {}
            write_json(REPORT, kept | {"faults_at_writes": figures})
    print(json.dumps(figures))
    if storm.lost or storm.wrong or storm.left or storm.unclear:
        raise UserError(f"Not all was as it should be: see faults_at_writes in {REPORT}.")


def sweep(
    folder: Path, storm: Storm, every: int, chosen: Sequence[str], shift: int
) -> Counter[str]:
    """Run the stages, each undisturbed and with a fault at its writes.

    Args:
        folder: for the workspaces.
        storm: is told what came of it.
        every: one fault of so many is tried.
        chosen: the stages that are struck.
        shift: which of ``every`` faults is the first.

    Returns:
        The most memory and handles that a command had at its end, and what they left on the disk.
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
    left = [path for path in (folder / TEMPORARY).rglob("*") if path.is_file()]
    return most + Counter(temporary_files=len(left))


def strikes(writes: int, every: int, shift: int) -> Iterator[tuple[str, int]]:
    """Yield kinds of faults and the numbers of the writes they strike at."""
    every_one = [(kind, at) for at in range(1, writes + 1) for kind in (KILLED, *ERRORS)]
    yield from every_one[shift % every :: every]


def unclear(ended: Ended, kind: str | None = None) -> bool:
    """Return whether a command ended otherwise than a fault allows, or without a sentence."""
    if "Traceback" in ended.said:
        return True
    if kind == KILLED:
        return ended.status != -signal.SIGKILL
    if kind in ERRORS and ended.status:  # what need not be written may fail without harm
        return ended.status != 1 or "error: " not in ended.said
    return ended.status != 0


if __name__ == "__main__":
    command.run(main)
