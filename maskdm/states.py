"""Training states on disk: atomic, checksummed, found again by fingerprint.

A folder holds the states of one trajectory and of all that branch off it: those whose first step
is the same. A state is two files, ``STEP-FINGERPRINT.safetensors`` and ``.json``; the second is
written last and holds the checksum of the first, so a state is whole or not there. A file
``.wanted`` beside it says that runs may branch off here, whether the state exists yet or not.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from maskdm.disk import UNFINISHED, sync, write_tensors
from maskdm.errors import UserError
from maskdm.fingerprint import digest
from maskdm.mirror import Mirror

if TYPE_CHECKING:
    from torch import Tensor

KEPT = 2  # of the states that nobody branches off: the newest, and one should it be damaged
DATA, FACTS, WANTED, BEGUN = ".safetensors", ".json", ".wanted", ".begun"


@dataclass(frozen=True, order=True)
class Name:
    """What a state's files are called.

    Attributes:
        step: steps made.
        fingerprint: of all that shaped them; its first 16 digits.
    """

    step: int
    fingerprint: str

    def __str__(self) -> str:
        return f"{self.step:09d}-{self.fingerprint[:16]}"

    @classmethod
    def of(cls, path: Path | str) -> Name | None:
        """Return the name that a file has, if it is one."""
        step, _, fingerprint = Path(path).stem.partition("-")
        return cls(int(step), fingerprint) if step.isdigit() and fingerprint else None


@dataclass(frozen=True)
class Stored:
    """A state that was found whole.

    Attributes:
        name: its step and fingerprint.
        tensors: by name, on the CPU.
        facts: what was saved besides.
    """

    name: Name
    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any]


class DamagedError(Exception):
    """A state that is not what was written; the text says why."""


class States:
    """The states of one trajectory and its branches, in a folder named by their common first step.

    Args:
        root: where the folders of all trajectories are.
        phase: begins the folder's name.
        fingerprint: steps made → fingerprint, of the run that asks; the names that it gives are
            the run's own.
        mirror: where on another machine or disk they are to be, too (any fsspec location), or
            None.
    """

    def __init__(
        self, root: Path, phase: str, fingerprint: Callable[[int], str], mirror: str | None = None
    ) -> None:
        self.fingerprint = cache(fingerprint)
        self.folder = root / f"{phase}-{self.fingerprint(1)[:16]}"
        self.mirror_url = f"{mirror.rstrip('/')}/{self.folder.name}" if mirror else None
        self.mirror: Mirror | None = None
        self.lock = FileLock(self.folder / "lock", thread_local=False)
        self.owner = self.folder / "owner"

    def open(self) -> None:
        """Make the folder and reach the mirror.

        Raises:
            UserError: if one of them cannot be used.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / "lock").touch()
        except OSError as error:
            raise UserError(
                f"The folder for training states, {self.folder}, cannot be made or written to "
                f"({error.strerror}): name another one in MASKDM_STATES."
            ) from None
        if self.mirror_url:
            self.mirror = Mirror(self.mirror_url)
            for mark in self.mirror.names(WANTED):
                (self.folder / mark).touch()

    def name(self, step: int) -> Name:
        """Return the name that this run's state after ``step`` steps has."""
        return Name(step, self.fingerprint(step)[:16])

    def own(self, suffix: str) -> list[Name]:
        """Return this run's names among files that end in ``suffix``, in the order of steps."""
        names = (Name.of(path) for path in self.folder.glob(f"*{suffix}"))
        return sorted(name for name in names if name and name == self.name(name.step))

    def want(self, step: int) -> None:
        """Say that a state after ``step`` steps is to be kept: runs may branch off there."""
        (self.folder / f"{self.name(step)}{WANTED}").touch()

    def has(self, step: int) -> bool:
        """Return whether this run's state after ``step`` steps seems to be there."""
        return (self.folder / f"{self.name(step)}{FACTS}").exists()

    def take(self, step: int, fits: Callable[[Mapping[str, Any]], bool]) -> Stored | None:
        """Return this run's state after ``step`` steps if it is there, whole, and fits.

        Nothing is removed: another run may hold the lock.
        """
        try:
            return self._read(self.name(step), fits)
        except DamagedError:
            return None

    def _read(self, name: Name, fits: Callable[[Mapping[str, Any]], bool]) -> Stored | None:
        facts = read_facts(self.folder / f"{name}{FACTS}")
        return Stored(name, self._tensors(name, facts), facts) if fits(facts) else None

    def holder(self) -> str:
        """Return who holds the states, as far as it is known."""
        try:
            return f": {self.owner.read_text()}"
        except OSError:
            return ""

    def wanted(self) -> set[int]:
        """Return the steps after which this run passes a state that some run wants."""
        return {name.step for name in self.own(WANTED)}

    def newest(
        self, most: int, fits: Callable[[Mapping[str, Any]], bool] = lambda facts: True
    ) -> Stored | None:
        """Return this run's newest whole state after at most ``most`` steps.

        A damaged one is reported, removed, and the one before it taken.

        Args:
            most: the steps of the run.
            fits: which to take, by their facts.
        """
        here = self.own(FACTS)
        there = self.mirror.names(FACTS) if self.mirror else []
        elsewhere = [n for n in map(Name.of, there) if n and n == self.name(n.step)]
        for name in sorted({*here, *elsewhere}, reverse=True):
            if name.step > most:
                continue
            found = name in here and self._whole(name, fits)
            if not self.has(name.step) and self.mirror and name in elsewhere:
                print(f"Fetching the state after step {name.step} from {self.mirror.url}")
                for suffix in (DATA, FACTS):
                    self.mirror.fetch(f"{name}{suffix}", self.folder)
                found = self._whole(name, fits)
            if found:
                return found
        return None

    def _whole(self, name: Name, fits: Callable[[Mapping[str, Any]], bool]) -> Stored | None:
        """Return a state if it is whole and fits; remove it if it is damaged."""
        try:
            return self._read(name, fits)
        except DamagedError as error:
            print(
                f"The state after step {name.step} is damaged ({error}) and is removed; going on "
                f"from the one before it, or the mirror's. ({self.folder / str(name)}{DATA})",
                file=sys.stderr,
            )
            self.remove(name)
            return None

    def _tensors(self, name: Name, facts: Mapping[str, Any]) -> Mapping[str, Tensor]:
        from safetensors.torch import load

        try:
            content = (self.folder / f"{name}{DATA}").read_bytes()
        except OSError as error:
            raise DamagedError(f"{DATA} unreadable: {error.strerror}") from None
        if len(content) != facts["bytes"]:
            raise DamagedError(f"{len(content)} bytes instead of {facts['bytes']}")
        if hashlib.sha256(content).hexdigest() != facts["sha256"]:
            raise DamagedError("its content does not match its checksum")
        return load(content)

    def save(
        self,
        step: int,
        tensors: Mapping[str, Tensor],
        facts: Mapping[str, Any],
        wait: bool = True,
    ) -> None:
        """Write the state after ``step`` steps and remove what it makes superfluous.

        Args:
            step: steps made.
            tensors: by name, on the CPU and contiguous; nobody may change them meanwhile.
            facts: what else belongs to it, as JSON can hold it.
            wait: for the mirror too; else the mirror may miss this state, if it is busy.

        Raises:
            OSError: if it cannot be written; nothing is left of it then.
        """
        name = self.name(step)
        try:
            with self._writing(f"{name}{DATA}") as begun:
                write_tensors(tensors, begun)
                facts = {
                    **json.loads(json.dumps(facts)),
                    "step": step,
                    "bytes": begun.stat().st_size,
                    "sha256": _file_hash(begun),
                }
            with self._writing(f"{name}{FACTS}") as begun:
                facts |= {"checksum": digest(facts)}
                begun.write_text(json.dumps(facts, indent=1), encoding="utf-8")
        except OSError:
            self.remove(name)
            raise
        self.prune(KEPT, spared=name)
        self._mirror([f"{name}{DATA}", f"{name}{FACTS}"], step, wait)

    @contextmanager
    def _writing(self, name: str) -> Iterator[Path]:
        """Provide where to write a file that is to be there as a whole or not at all.

        Even if the power fails.
        """
        begun = self.folder / f"{name}{BEGUN}"
        try:
            yield begun
            sync(begun)
            begun.replace(self.folder / name)
        except OSError:
            begun.unlink(missing_ok=True)
            raise
        if os.name == "posix":  # the name itself is on the disk once its folder is
            try:
                sync(self.folder)
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network disks
                    raise

    def _mirror(self, names: Sequence[str], reached: int, wait: bool) -> None:
        """Write files of this folder to the mirror and remove what is superfluous there.

        That is this run's states up to step ``reached`` which are gone here and wanted by nobody:
        those further on may be another machine's.
        """
        if self.mirror is None:
            return
        marks = {f"{name}{WANTED}": b"" for name in self.own(WANTED)}

        def superfluous(there: list[str]) -> list[str]:
            wanted = {Name.of(name) for name in there if name.endswith(WANTED)}
            states = {Name.of(name) for name in there if name.endswith(FACTS)}
            left = states - wanted - {*self.own(FACTS), None}
            gone = [n for n in left if n and n.step <= reached and n == self.name(n.step)]
            return [f"{name}{suffix}" for name in sorted(gone) for suffix in (FACTS, DATA)]

        files = {name: (self.folder / name).read_bytes() for name in names}
        self.mirror.send({**marks, **files}, superfluous, wait)

    def prune(self, kept: int, spared: Name | None = None) -> None:
        """Remove this run's states that nobody branches off, but for the newest ``kept``.

        Args:
            kept: how many.
            spared: one that is not to be removed, however old it is: with MASKDM_EXACT a run may
                be behind states that it cannot use.
        """
        wanted = set(self.own(WANTED))
        passing = [name for name in self.own(FACTS) if name not in wanted]
        for name in passing[: max(0, len(passing) - kept)]:
            if name != spared:
                self.remove(name)

    def remove(self, name: Name) -> None:
        """Remove a state from this machine, its facts first: without them the rest is nothing."""
        for suffix in (FACTS, DATA):
            (self.folder / f"{name}{suffix}").unlink(missing_ok=True)

    def finish(self) -> None:
        """Remove what a finished run no longer needs, here and in the mirror."""
        own = self.own(FACTS)
        self.prune(0)
        if own:
            self._mirror([], own[-1].step, wait=True)

    def sweep(self) -> None:
        """Remove what writers left that were killed; only who holds the lock may."""
        whole = {path.stem for path in self.folder.glob(f"*{FACTS}")}
        for left in (f"*{BEGUN}", UNFINISHED):
            for path in self.folder.glob(left):
                path.unlink(missing_ok=True)
        for path in self.folder.glob(f"*{DATA}"):
            if path.stem not in whole:
                path.unlink(missing_ok=True)


def read_facts(path: Path) -> dict[str, Any]:
    """Return what was saved of a state besides tensors.

    Raises:
        DamagedError: if it is not what was written.
    """
    try:
        facts = json.loads(path.read_bytes())
        checksum = facts.pop("checksum")
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise DamagedError(f"{FACTS} unreadable: {type(error).__name__}") from None
    if checksum != digest(facts):
        raise DamagedError(f"{FACTS} does not match its checksum")
    return dict(facts)


def folders(root: Path) -> Iterator[Path]:
    """Yield the folders of trajectories under ``root``."""
    if root.exists():
        yield from sorted(path for path in root.iterdir() if (path / "lock").exists())


def _file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
