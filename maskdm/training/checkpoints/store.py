"""Checkpoints on disk: atomic, checksummed, found again by fingerprint.

A folder holds the checkpoints of runs that share their first step. A checkpoint is two files,
``STEP-FINGERPRINT.safetensors`` and ``.json``; the second is written last and holds the checksum of
the first, so a checkpoint is whole or not there. A file ``.keep`` beside it says that runs may
branch off here, whether the checkpoint exists yet or not.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from maskdm.runtime.environment import CHECKPOINTS
from maskdm.runtime.errors import UserError
from maskdm.runtime.files import BEGUN, UNFINISHED, file_hash, listed, sync, write_tensors
from maskdm.runtime.locks import acquired, held, is_held
from maskdm.training.checkpoints.fingerprint import digest
from maskdm.training.checkpoints.remote import Remote

if TYPE_CHECKING:
    from torch import Tensor

PASSING = 2  # checkpoints kept where nobody branches off: the newest, and one in case of damage
TENSORS, METADATA, KEEP = ".safetensors", ".json", ".keep"
LOCK, OWNER = "lock", "owner"
DIGITS = 16  # of a fingerprint in a name

Fits = Callable[[Mapping[str, Any]], bool]  # whether a checkpoint will do, by its metadata


@dataclass(frozen=True, order=True)
class Name:
    """The name of a checkpoint's files.

    Attributes:
        step: steps made.
        fingerprint: of all that shaped it; its first 16 digits.
    """

    step: int
    fingerprint: str

    def __str__(self) -> str:
        return f"{self.step:09d}-{self.fingerprint[:DIGITS]}"

    @classmethod
    def of(cls, path: Path | str) -> Name | None:
        """Return the name that a file has, None if it is no checkpoint's."""
        found = re.fullmatch(r"([0-9]{9,})-([0-9a-f]{16})", Path(path).stem)
        return cls(int(found[1]), found[2]) if found else None


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was found whole.

    Attributes:
        name: its step and fingerprint.
        tensors: by name, on the CPU.
        metadata: everything else that was saved.
    """

    name: Name
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, Any]


@dataclass(frozen=True)
class Entry:
    """A line of a listing.

    Attributes:
        step: steps made.
        metadata: everything but the tensors; None if it is damaged.
        damage: what is wrong with it, empty if nothing.
        kept: whether runs may branch off here.
    """

    step: int
    metadata: Mapping[str, Any] | None
    damage: str
    kept: bool


class DamagedError(Exception):
    """A checkpoint that is not as it was written; the text gives the reason."""


class CheckpointStore:
    """The checkpoints of a run and of all that branch off it, in a folder named by the first step.

    Args:
        root: holds the folders of all runs.
        phase: begins the folder's name.
        fingerprint: steps made → fingerprint, of the run that asks; the names that it gives are
            the run's own.
        remote: a location on another machine or disk for copies (any fsspec location), or None.
    """

    def __init__(
        self, root: Path, phase: str, fingerprint: Callable[[int], str], remote: str | None = None
    ) -> None:
        self.fingerprint = cache(fingerprint)
        self.folder = root / f"{phase}-{self.fingerprint(1)[:DIGITS]}"
        self.remote_url = f"{remote.rstrip('/')}/{self.folder.name}" if remote else None
        self.remote: Remote | None = None
        self.lock = FileLock(self.folder / LOCK, thread_local=False)

    # The folder and its lock

    def open(self) -> None:
        """Make the folder and reach the remote.

        Raises:
            UserError: if one of them cannot be used.
        """
        self._make(LOCK)
        if self.remote_url:
            self.remote = Remote(self.remote_url)
            for mark in self.remote.names(KEEP):
                self._make(mark)

    def _make(self, name: str) -> None:
        """Make an empty file in the folder, and that where somebody has cleared it meanwhile.

        Raises:
            UserError: if it cannot be done.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / name).touch()
        except OSError as error:
            raise UserError(
                f"The folder for checkpoints, {self.folder}, cannot be made or written to "
                f"({error.strerror}): name another one in {CHECKPOINTS.name}."
            ) from None

    @property
    def is_held(self) -> bool:
        """Whether this run holds the lock, and so may write."""
        return bool(self.lock.is_locked)

    def acquire(self) -> bool:
        """Return whether the lock could be had, without waiting."""
        return acquired(self.lock)

    def take_over(self, owner: str) -> None:
        """Record who holds the lock, and remove what killed writers left behind.

        Args:
            owner: shown to runs that wait.
        """
        whole = {path.stem for path in self.folder.glob(f"*{METADATA}")}
        for pattern in (f"*{BEGUN}", UNFINISHED):
            for path in self.folder.glob(pattern):
                path.unlink(missing_ok=True)
        for path in self.folder.glob(f"*{TENSORS}"):
            if path.stem not in whole:
                path.unlink(missing_ok=True)
        (self.folder / OWNER).write_text(owner)

    def holder(self) -> str:
        """Return who holds the lock, as far as it is known."""
        try:
            return f": {(self.folder / OWNER).read_text()}"
        except OSError:
            return ""

    def release(self) -> None:
        """Release the lock, if it is held."""
        if self.is_held:
            (self.folder / OWNER).unlink(missing_ok=True)
            self.lock.release()

    # Which checkpoints there are

    def name(self, step: int) -> Name:
        """Return the name of this run's checkpoint after ``step`` steps."""
        return Name(step, self.fingerprint(step)[:DIGITS])

    def own(self, suffix: str) -> list[Name]:
        """Return this run's names among files that end in ``suffix``, in the order of steps."""
        names = (Name.of(path) for path in self.folder.glob(f"*{suffix}"))
        return sorted(name for name in names if name and name == self.name(name.step))

    def has(self, step: int) -> bool:
        """Return whether this run's checkpoint after ``step`` steps seems to be there."""
        return (self.folder / f"{self.name(step)}{METADATA}").exists()

    def keep(self, step: int) -> None:
        """Mark the checkpoint after ``step`` steps as one to keep: runs may branch off there.

        Raises:
            UserError: if it cannot be done.
        """
        self._make(f"{self.name(step)}{KEEP}")

    def kept(self) -> set[int]:
        """Return the steps of this run after which checkpoints are to be kept."""
        return {name.step for name in self.own(KEEP)}

    # Reading

    def read(self, step: int, fits: Fits) -> Checkpoint | None:
        """Return this run's checkpoint after ``step`` steps if it is there, whole, and fits.

        Nothing is removed: another run may hold the lock.
        """
        try:
            return self._read(self.name(step), fits)
        except DamagedError:
            return None

    def newest(self, most: int, fits: Fits = lambda metadata: True) -> Checkpoint | None:
        """Return this run's newest whole checkpoint after at most ``most`` steps.

        A damaged one is reported and removed, and the one before it is returned.

        Args:
            most: the steps of the run.
            fits: whether a checkpoint will do.
        """
        here = self.own(METADATA)
        listed = self.remote.names(METADATA) if self.remote else []
        there = [n for n in map(Name.of, listed) if n and n == self.name(n.step)]
        for name in sorted({*here, *there}, reverse=True):
            if name.step > most:
                continue
            found = name in here and self._whole(name, fits)
            if not self.has(name.step) and self.remote and name in there:
                print(f"Fetching the checkpoint after step {name.step} from {self.remote.url}")
                for suffix in (TENSORS, METADATA):
                    self.remote.fetch(f"{name}{suffix}", self.folder)
                found = self._whole(name, fits)
            if found:
                return found
        return None

    def _whole(self, name: Name, fits: Fits) -> Checkpoint | None:
        """Return a checkpoint if it is whole and fits; remove it if it is damaged."""
        try:
            return self._read(name, fits)
        except DamagedError as error:
            print(
                f"The checkpoint after step {name.step} is damaged ({error}) and is removed; going "
                "on from the one before it, or the remote's. "
                f"({self.folder / str(name)}{TENSORS})",
                file=sys.stderr,
            )
            self.remove(name)
            return None

    def _read(self, name: Name, fits: Fits) -> Checkpoint | None:
        metadata = _read_metadata(self.folder / f"{name}{METADATA}")
        return Checkpoint(name, self._tensors(name, metadata), metadata) if fits(metadata) else None

    def _tensors(self, name: Name, metadata: Mapping[str, Any]) -> Mapping[str, Tensor]:
        from safetensors.torch import load

        try:
            content = (self.folder / f"{name}{TENSORS}").read_bytes()
        except OSError as error:
            raise DamagedError(f"{TENSORS} unreadable: {error.strerror}") from None
        if len(content) != metadata["bytes"]:
            raise DamagedError(f"{len(content)} bytes instead of {metadata['bytes']}")
        if hashlib.sha256(content).hexdigest() != metadata["sha256"]:
            raise DamagedError("its content does not match its checksum")
        return load(content)

    # Writing

    def save(
        self,
        step: int,
        tensors: Mapping[str, Tensor],
        metadata: Mapping[str, Any],
        wait: bool = True,
        required: bool = False,
    ) -> None:
        """Write the checkpoint after ``step`` steps and remove what it makes superfluous.

        Args:
            step: steps made.
            tensors: by name, on the CPU and contiguous; nobody may change them meanwhile.
            metadata: what else belongs to it, as JSON can hold it.
            wait: for the remote too; otherwise it is copied there in the background.
            required: whether it is copied even if the remote is busy; else it is left out then.

        Raises:
            OSError: if it cannot be written; nothing is left of it then.
        """
        name = self.name(step)
        try:
            with self._writing(f"{name}{TENSORS}") as begun:
                write_tensors(tensors, begun)
                metadata = {
                    **json.loads(json.dumps(metadata)),
                    "step": step,
                    "bytes": begun.stat().st_size,
                    "sha256": file_hash(begun),
                }
            with self._writing(f"{name}{METADATA}") as begun:
                metadata |= {"checksum": digest(metadata)}
                begun.write_text(json.dumps(metadata, indent=1), encoding="utf-8")
        except OSError:
            self.remove(name)
            raise
        self.prune(PASSING, spared=name)
        self._copy_to_remote([f"{name}{TENSORS}", f"{name}{METADATA}"], step, wait, required)

    @contextmanager
    def _writing(self, name: str) -> Iterator[Path]:
        """Provide a path for a file that is to be there as a whole or not at all.

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

    def _copy_to_remote(
        self, names: Sequence[str], reached: int, wait: bool, required: bool = False
    ) -> None:
        """Copy files of this folder to the remote and remove what is superfluous there.

        That is this run's checkpoints up to step ``reached`` which are gone here and kept by
        nobody: those further on may be another machine's.
        """
        if self.remote is None:
            return
        marks = {f"{name}{KEEP}": b"" for name in self.own(KEEP)}

        def superfluous(there: list[str]) -> list[str]:
            kept = {Name.of(name) for name in there if name.endswith(KEEP)}
            whole = {Name.of(name) for name in there if name.endswith(METADATA)}
            left = whole - kept - {*self.own(METADATA), None}
            gone = [n for n in left if n and n.step <= reached and n == self.name(n.step)]
            return [f"{name}{suffix}" for name in sorted(gone) for suffix in (METADATA, TENSORS)]

        files = {name: (self.folder / name).read_bytes() for name in names}
        self.remote.begun = True
        self.remote.send({**marks, **files}, superfluous, wait, required)

    # Removing

    def prune(self, passing: int, spared: Name | None = None) -> None:
        """Remove this run's checkpoints where nobody branches off, but for the newest ``passing``.

        Args:
            passing: how many stay.
            spared: one that stays, however old it is: with MASKDM_EXACT a run may be behind
                checkpoints that it cannot use.
        """
        kept = set(self.own(KEEP))
        found = [name for name in self.own(METADATA) if name not in kept]
        for name in found[: max(0, len(found) - passing)]:
            if name != spared:
                self.remove(name)

    def remove(self, name: Name) -> None:
        """Remove a checkpoint from this machine, its metadata first: the rest is nothing alone."""
        for suffix in (METADATA, TENSORS):
            (self.folder / f"{name}{suffix}").unlink(missing_ok=True)

    def finish(self) -> None:
        """Remove what a finished run no longer needs, here and in the remote."""
        own = self.own(METADATA)
        self.prune(0)
        if own:
            self._copy_to_remote([], own[-1].step, wait=True)


# All folders of a root, for listings


def folders(root: Path) -> list[Path]:
    """Return the folders of checkpoints under ``root``."""
    if not root.exists():
        return []
    return sorted(
        path
        for path in root.iterdir()
        if re.fullmatch(r"[a-z]+-[0-9a-f]{16}", path.name) and (path / LOCK).is_file()
    )


def entries(folder: Path) -> Iterator[Entry]:
    """Yield what is in a folder of checkpoints, in the order of steps; a run may go on there."""
    for name in _names(folder):
        kept = (folder / f"{name}{KEEP}").exists()
        try:
            yield Entry(name.step, _read_metadata(folder / f"{name}{METADATA}"), "", kept)
        except DamagedError as error:
            if (folder / f"{name}{METADATA}").exists():  # else a run has removed it meanwhile
                yield Entry(name.step, None, str(error), kept)


def last_step(root: Path) -> int:
    """Return the step of the newest checkpoint under ``root``, 0 if there is none."""
    return max((name.step for folder in folders(root) for name in _names(folder)), default=0)


def in_use(folder: Path) -> bool:
    """Return whether a run holds a folder of checkpoints."""
    return is_held(folder / LOCK)


def clear(folder: Path, remote: str | None) -> bool:
    """Remove the checkpoints of a folder, here and in the remote; return False if a run holds it.

    The folder goes too, unless there is something else in it: that is somebody's own.

    Args:
        folder: as ``folders`` lists it.
        remote: the location of copies, or None.

    Raises:
        UserError: if the remote cannot be used.
    """
    with held(folder / LOCK) as free:
        if free:
            for path in listed(folder, "*"):
                if _is_ours(path.name) and path.is_file() and not path.is_symlink():
                    path.unlink(missing_ok=True)
            with suppress(OSError):  # not empty, also because a run has come meanwhile; or a link
                folder.rmdir()
            if remote:
                Remote(f"{remote.rstrip('/')}/{folder.name}").clear(_is_ours)
        return free


def _is_ours(name: str) -> bool:
    """Return whether a file in a folder of checkpoints is one that a run puts there."""
    whole = re.sub(rf"(\.[0-9a-f]{{32}})?{re.escape(BEGUN)}$", "", name)  # as a remote's are called
    if whole.endswith((TENSORS, METADATA, KEEP)) and Name.of(whole) is not None:
        return True
    return name in (LOCK, OWNER) or fnmatch(name, UNFINISHED)


def _names(folder: Path) -> list[Name]:
    return sorted(filter(None, map(Name.of, listed(folder, f"*{METADATA}"))))


def _read_metadata(path: Path) -> dict[str, Any]:
    """Return everything of a checkpoint but its tensors.

    Raises:
        DamagedError: if it is not what was written.
    """
    try:
        metadata = json.loads(path.read_bytes())
        checksum = metadata.pop("checksum")
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise DamagedError(f"{METADATA} unreadable: {type(error).__name__}") from None
    if checksum != digest(metadata):
        raise DamagedError(f"{METADATA} does not match its checksum")
    return dict(metadata)
