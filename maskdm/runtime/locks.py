"""Locks between processes: files that the system frees when their holder ends, however it ends."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from maskdm.runtime.parent import SECONDS

PATIENCE = 5 * SECONDS  # the children of a process that was killed hold its locks until they notice


@contextmanager
def held(path: Path, patience: float = 0) -> Iterator[bool]:
    """Hold a lock while the context lasts; give whether no other process does.

    Args:
        path: of its file, which is made if it is missing.
        patience: seconds to wait for it.
    """
    lock = FileLock(path)
    if not acquired(lock, patience):
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def is_held(path: Path) -> bool:
    """Return whether another process holds a lock; whoever did may have removed it, and its folder.

    Args:
        path: of its file.
    """
    if not path.exists():  # asking for it would make it anew, and its folder
        return False
    with held(path) as free:
        return not free


def acquired(lock: FileLock, patience: float = 0) -> bool:
    """Return whether a lock could be had.

    Its folder may go meanwhile, if whoever holds it removes what it protects: then it is made anew.

    Args:
        lock: which.
        patience: seconds to wait for it.
    """
    while True:
        try:
            lock.acquire(timeout=patience)
        except Timeout:
            return False
        except FileNotFoundError:
            Path(lock.lock_file).parent.mkdir(parents=True, exist_ok=True)
        else:
            return True
