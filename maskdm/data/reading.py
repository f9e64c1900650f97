"""Pictures are read on all cores and come in order, a bounded number of them ahead.

Processes read them, since threads would wait for Python's lock. They are forked, so that the
source's listing is neither sent nor made again; where forking is not safe, threads read instead.
"""

import gc
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from functools import cache
from itertools import islice
from multiprocessing import get_context
from typing import TypeVar

from maskdm.data.contract import Picture
from maskdm.data.prepared import Sample, Unreadable
from maskdm.runtime.errors import UserError
from maskdm.runtime.parent import leave_with

AHEAD = 16  # pictures per core that may be read before they are taken
TOGETHER = 8  # pictures per request to a process
FORKS = sys.platform == "linux"  # on macOS, not all system libraries survive a fork

Opened = TypeVar("Opened")
Read = Callable[[Picture], Sample | Unreadable]
ReadGroup = Callable[[Sequence[Picture]], list[Sample | Unreadable]]

_read: Read  # reads a picture in a forked process


def read_in_order(read: Read, pictures: Sequence[Picture]) -> Iterator[Sample | Unreadable]:
    """Yield what ``read`` makes of each picture, in order.

    Args:
        read: reads a picture; called in several threads or processes at once.
        pictures: at least one.

    Raises:
        UserError: if a process dies. Errors of ``read`` are passed on.
    """
    groups = range(0, len(pictures), TOGETHER)
    cores = min(os.cpu_count() or 1, len(groups))
    readers, read_group = _readers(read, cores)
    started: deque[Future[list[Sample | Unreadable]]] = deque()
    with readers:
        todo = (readers.submit(read_group, pictures[n : n + TOGETHER]) for n in groups)
        try:
            started.extend(islice(todo, AHEAD * cores // TOGETHER))
            while started:
                yield from started.popleft().result()
                started.extend(islice(todo, 1))
        except BrokenProcessPool:
            raise UserError(
                "A process that read pictures was killed, perhaps by the system for lack of "
                f"memory, within {AHEAD * cores} pictures after the last that was prepared. If "
                "it happens again, remove the picture among them that does it."
            ) from None


def once_per_process(opening: Callable[[], Opened]) -> Callable[[], Opened]:
    """Return a function that opens something once in each process, when it is first called.

    A forked process shares the file offsets of its parent, and each would move the other's.
    """
    opened = cache(lambda _process: opening())
    return lambda: opened(os.getpid())


def _readers(read: Read, count: int) -> tuple[Executor, ReadGroup]:
    """Return processes where they can be had, else threads, and what they run on a group."""
    if FORKS:
        # A system may give no semaphores, as where /dev/shm cannot be written to.
        with suppress(OSError, ImportError):
            return _processes(read, count)
    return _threads(read, count)


def _threads(read: Read, count: int) -> tuple[Executor, ReadGroup]:
    """Return threads, and the function that they run on a group of pictures."""
    return ThreadPoolExecutor(count), lambda group: list(map(read, group))


def _processes(read: Read, count: int) -> tuple[Executor, ReadGroup]:
    """Return processes, started by the first request, and the function that they run."""
    here = (read, os.getpid())
    return ProcessPoolExecutor(count, get_context("fork"), _begin, here), _read_group


def _begin(read: Read, parent: int) -> None:
    """Prepare a forked process to read pictures for its parent."""
    global _read
    _read = read
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which ends this process
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    gc.freeze()  # or collecting garbage would copy the memory that is shared with the parent
    bytes(2**24)  # once this is freed, glibc keeps as much instead of mapping it for every picture
    leave_with(parent)


def _read_group(group: Sequence[Picture]) -> list[Sample | Unreadable]:
    """Read pictures in a process that ``_begin`` has prepared."""
    return list(map(_read, group))
