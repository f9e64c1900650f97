"""Small files of people or strangers: read whole, and never more of them than they may hold."""

import stat
from pathlib import Path


def read_small(path: Path, most: int) -> bytes:
    """Return what is in an ordinary file: a pipe would be waited for, and a device has no end.

    Args:
        path: the file.
        most: bytes that it may have.

    Raises:
        OSError: if it is not there or cannot be opened.
        ValueError: if it is something else or larger, as in "it is a folder".
    """
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        raise ValueError("it is a folder" if stat.S_ISDIR(mode) else "it is no ordinary file")
    with path.open("rb") as file:
        # Its size says little: files that the system makes up as they are read have none.
        content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"it is larger than {most} bytes")
    return content
