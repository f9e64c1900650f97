"""Streams that let no message fail: it is the computation that counts, not what is said of it."""

import errno
import os
import sys
from io import BufferedWriter, FileIO, TextIOWrapper
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

ESCAPED = "backslashreplace"
# No reader, a terminal that was closed or a disk that fails, a full one, the limits of this user.
LOST = {errno.EPIPE, errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def mend_streams() -> None:
    """Escape what a terminal cannot show, and be silent where nobody listens, or no longer.

    The number of a closed stream would go to the next file that is opened, a checkpoint perhaps,
    and what a library has to say into that file.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            _silence(number)
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w" if number else "r", closefd=False))  # noqa: SIM115
        stream = getattr(sys, name)
        if number and isinstance(stream, TextIOWrapper):
            setattr(sys, name, _unfailing(stream, number))


def _unfailing(stream: TextIOWrapper, number: int) -> TextIOWrapper:
    """Return a stream to the same place that takes any word, and goes on without its reader."""
    try:
        there = stream.fileno()
    except OSError:  # it is in memory
        there = None
    if there != number:
        stream.reconfigure(errors=ESCAPED)
        return stream
    stream.flush()
    return TextIOWrapper(
        BufferedWriter(_Heard(number, "w", closefd=False)),
        stream.encoding,
        ESCAPED,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


class _Heard(FileIO):
    """A file whose reader may go, as the terminal behind a long run may, or whose disk is full."""

    def write(self, data: "ReadableBuffer", /) -> int:
        """Write, or say nothing from now on, neither from Python nor from a library."""
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in LOST:
                raise
            _silence(self.fileno())
            return memoryview(data).nbytes


def _silence(number: int) -> None:
    """Let a number stand for the file that forgets everything."""
    silent = os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
    if silent != number:
        os.dup2(silent, number)
        os.close(silent)
    os.set_inheritable(number, True)
