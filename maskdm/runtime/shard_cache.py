"""Shards that are elsewhere, those last used on this disk too: of bounded size, for all processes.

A file is removed while others read it without harm to them: they have it mapped.
"""

import errno
import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from mmap import ACCESS_READ, mmap
from pathlib import Path
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from maskdm.runtime.environment import (
    MOST_PROCESSES,
    SHARDS_CACHE,
    SHARDS_CACHE_GIB,
    shards_folder,
)
from maskdm.runtime.errors import UserError, reason
from maskdm.runtime.files import final_name, replacing
from maskdm.runtime.location import Location, StorageError, patiently
from maskdm.runtime.locks import held

LOCKS = 64  # files, of which each stands for the shards whose names begin alike
NAME = re.compile("[0-9a-f]{64}")
FULL, KEPT = 7 / 8, 3 / 4  # of the cache: when the oldest shards go, and how much then stays
UNSEEN = (1 - FULL) / MOST_PROCESSES  # of it, that a process may add without looking
FOR_EVER = -1


class ShardCache:
    """Shards on this disk, those last used, which processes share.

    Its folder may be that of other caches, too, and hold what is none of its business.

    Args:
        url: where shards are that are not here.
        folder: where they are; by default what the environment says.
        most: bytes of them; by default what the environment says.
    """

    def __init__(self, url: str, folder: Path | None = None, most: int | None = None) -> None:
        self.url, self.folder = url, folder or shards_folder()
        self.most = most or cache_bytes()
        self._whole = set[str]()  # whose bytes this process has checked
        self._unseen, self._counting = 0, Lock()  # bytes that may be added without looking
        self._looking = Lock()  # threads wait for this without polling, as for a file they would

    @cached_property
    def location(self) -> Location:
        """Where the shards are from."""
        return Location(self.url, made=False)

    def has(self, name: str) -> bool:
        """Return whether a shard is here by now; it may be damaged, or go."""
        return (self.folder / name).exists()

    def get(self, name: str, size: int, what: str, silent: bool = False) -> NDArray[np.uint8]:
        """Return the bytes of a shard, mapped; they stay even if the shard leaves the cache.

        Args:
            name: of the shard.
            size: in bytes.
            what: the shard is, for messages.
            silent: whether not to say that it is tried again.

        Raises:
            StorageError: if it is not there, damaged, or cannot be reached.
            UserError: if the disk is full.
        """
        found = self._mapped(self.folder / name, size)
        if found is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            # Other processes, and threads, that need it wait here instead of fetching it too.
            with held(self.folder / f"{int(name[:2], 16) % LOCKS:02}.lock", FOR_EVER):
                found = self._mapped(self.folder / name, size)
                if found is None:
                    found = self._fetched(name, size, what, silent)
        return found

    def _mapped(self, path: Path, size: int) -> NDArray[np.uint8] | None:
        """Return the bytes of a shard that is here and whole."""
        try:
            found = mapped(path)
        except (FileNotFoundError, ValueError):  # mmap takes no empty file
            return None
        if path.name not in self._whole:  # it may be what a power failure left
            if found.size != size or hashlib.sha256(found.data).hexdigest() != path.name:
                return None
            self._whole.add(path.name)
        with suppress(OSError):  # another user's
            os.utime(path)
        return found

    def _fetched(self, name: str, size: int, what: str, silent: bool) -> NDArray[np.uint8]:
        """Fetch a shard into the cache and return its bytes, mapped."""
        content = self._read(name, what, silent)
        if len(content) != size:
            raise StorageError(self._damaged(name, what))
        try:
            with self._room(size), replacing(self.folder / name) as begun:
                begun.write_bytes(content)
                found = mapped(begun)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise StorageError(
                f"The disk of {self.folder} is full: make room, set {SHARDS_CACHE.name} to a "
                f"folder elsewhere, or {SHARDS_CACHE_GIB.name} to less. The same command then "
                "goes on."
            ) from None
        self._whole.add(name)
        return found

    def _read(self, name: str, what: str, silent: bool) -> bytes:
        """Return the bytes of a shard from the storage."""
        place = f"{self.url.rstrip('/')}/{name}"
        for _ in range(2):  # once more if something was lost on the way
            try:
                content = patiently(
                    f"Reading {what} from {place}", lambda: self.location.read(name), silent
                )
            except FileNotFoundError:
                raise StorageError(
                    f"There is no {place}, which is {what}: dvc repro -f -s prepare sends what is "
                    "missing."
                ) from None
            except PermissionError as error:
                raise StorageError(
                    f"{place}, which is {what}, may not be read ({reason(error)}): check the "
                    "credentials (docs/data.md)."
                ) from None
            if hashlib.sha256(content).hexdigest() == name:
                return content
        raise StorageError(self._damaged(name, what))

    def _damaged(self, name: str, what: str) -> str:
        return (
            f"{self.url.rstrip('/')}/{name}, which is {what}, is damaged: remove it there; "
            "dvc repro -f -s prepare sends it again."
        )

    @contextmanager
    def _room(self, size: int) -> Iterator[None]:
        """Remove the shards that were not used for longest, so that one more may be written.

        Looking costs time, so every process may add a little before it looks again.
        """
        with self._counting:
            counted = size <= self._unseen
            self._unseen -= size if counted else 0
        if counted:
            yield
            return
        # Whoever looks next is to see what is written now.
        with self._looking, held(self.folder / "room.lock", FOR_EVER):
            there = sorted(self._there())
            total = size + sum(length for _, length, _ in there)
            if total > FULL * self.most:
                for _, length, path in there:
                    if total <= KEPT * self.most:
                        break
                    path.unlink(missing_ok=True)
                    total -= length
            with self._counting:
                self._unseen = int(UNSEEN * self.most)
            yield

    def _there(self) -> Iterator[tuple[int, int, Path]]:
        """Yield when each shard was used, its bytes, and its path."""
        with os.scandir(self.folder) as entries:
            for entry in entries:
                if NAME.fullmatch(final_name(entry.name)):
                    with suppress(FileNotFoundError):
                        about = entry.stat()
                        yield about.st_mtime_ns, about.st_size, Path(entry.path)


def mapped(path: Path) -> NDArray[np.uint8]:
    """Return the bytes of a file, mapped, as ``numpy.memmap`` does with more ado."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return np.frombuffer(mmap(descriptor, 0, access=ACCESS_READ), np.uint8)
    finally:
        os.close(descriptor)


def cache_bytes() -> int:
    """Return how many bytes the cache may take."""
    return SHARDS_CACHE_GIB.get() * 2**30


def check_room(least: int) -> None:
    """Check that the cache has room for two windows of images: the one in use, and the next.

    Args:
        least: their bytes.

    Raises:
        UserError: if it has not.
    """
    if least > KEPT * cache_bytes():
        raise UserError(
            f"{SHARDS_CACHE_GIB.name} is {SHARDS_CACHE_GIB.get()}, but data.window makes windows "
            f"of {least / 2**31:.1f} GiB, and two of them must fit into three quarters of it: "
            "raise the one or lower the other."
        )
