"""Pictures read on all cores and given back in order, a bounded number of them ahead.

In processes, which wait for none of Python's locks. They are forked, so that what a source has
listed need not be sent or listed again; where that is not safe, threads do the same.
"""

import gc
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import cache
from itertools import islice
from multiprocessing import get_context
from typing import TypeVar

from maskdm.data.contract import Picture
from maskdm.data.prepared import Sample, Unreadable
from maskdm.runtime.errors import UserError

AHEAD = 16  # pictures a core that may be read before they are taken
TOGETHER = 8  # of them, asked for and given back at once
FORKS = sys.platform == "linux"  # macOS: not all of its libraries survive a fork

Opened = TypeVar("Opened")
Read = Callable[[Picture], Sample | Unreadable]
ReadGroup = Callable[[Sequence[Picture]], list[Sample | Unreadable]]

_read: Read  # in a forked process: what reads a picture


def read_in_order(read: Read, pictures: Sequence[Picture]) -> Iterator[Sample | Unreadable]:
    """Yield what ``read`` makes of each picture, in order.

    Args:
        read: reads a picture; called in several threads or processes at once.
        pictures: at least one.

    Raises:
        UserError: if a process dies; and whatever ``read`` raises.
    """
    groups = range(0, len(pictures), TOGETHER)
    cores = min(os.cpu_count() or 1, len(groups))
    readers, read_group = _processes(read, cores) if FORKS else _threads(read, cores)
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
    """Return what opens something the first time that a process asks for it.

    A forked process shares its parent's places in open files, which both would move.
    """
    opened = cache(lambda _process: opening())
    return lambda: opened(os.getpid())


def _threads(read: Read, count: int) -> tuple[Executor, ReadGroup]:
    """Return threads and what to ask of them."""
    return ThreadPoolExecutor(count), lambda group: list(map(read, group))


def _processes(read: Read, count: int) -> tuple[Executor, ReadGroup]:
    """Return processes, which start when they are first asked, and what to ask of them."""
    here = (read, os.getpid())
    return ProcessPoolExecutor(count, get_context("fork"), _begin, here), _read_group


def _begin(read: Read, parent: int) -> None:
    """Make a forked process ready to read pictures for its parent."""
    global _read
    _read = read
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which ends this process
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    gc.freeze()  # or looking for garbage would copy all that is shared with the parent
    bytes(2**24)  # once freed, glibc keeps as much, and does not fault it in for every picture
    threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()


def _leave_with(parent: int) -> None:
    """End this process soon after its parent, however that ended."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _read_group(group: Sequence[Picture]) -> list[Sample | Unreadable]:
    """Read pictures in a process that was made ready."""
    return list(map(_read, group))
