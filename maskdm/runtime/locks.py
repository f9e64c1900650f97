"""Locks between processes: files that the system frees when their holder ends, however it ends."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout


@contextmanager
def held(path: Path, patience: float = 0) -> Iterator[bool]:
    """Hold a lock while the context lasts; give whether no other process does.

    Args:
        path: of its file, which is made if it is missing.
        patience: seconds to wait for it.
    """
    lock = FileLock(path)
    try:
        lock.acquire(timeout=patience)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()
