"""How a function becomes a command: typer in front, plain sentences for the user's mistakes."""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from maskdm.runtime.distributed import ENDED, another_has_ended, rank
from maskdm.runtime.environment import PARENT, WORKER, refuse_former_names
from maskdm.runtime.errors import StoppedError, UserError, shortened
from maskdm.runtime.parent import leave_with
from maskdm.runtime.streams import mend_streams

if TYPE_CHECKING:
    import typer


# A message may quote a stranger's file, and a terminal would obey it: all but new lines and tabs.
ESCAPES = {n: f"\\x{n:02x}" for n in (*range(32), *range(127, 160)) if n not in (9, 10)}
MEMORY_IS_FULL = (
    "The memory is full: set MASKDM_MICRO_BATCH (training) or MASKDM_SAMPLE_BATCH (sampling) to "
    "fewer images at a time, which changes no result, or lower batch_size, model.dim or "
    "data.resolution."
)
GOES_ON = "the same command then goes on."
IN_THE_WAY = f"something else is in the way: move it, or name another place; {GOES_ON}"
FAILS = (
    "the disk, or the way to it, fails. See the system's log; once it works, the same command "
    "goes on."
)
FORBIDDEN = f"give this user the right to read and write there; {GOES_ON}"
OTHERWISE = f"the system refuses it. Mend that, or name another place; {GOES_ON}"
# errno → what it is called, or None for the system's own words; what to do.
ADVICE: dict[int, tuple[str | None, str]] = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), ("The disk is full", f"make room; {GOES_ON}")),
    **dict.fromkeys(
        (errno.EMFILE, errno.ENFILE),
        (
            "Too many files are open at once",
            f"allow more (ulimit -n), or close other programs; {GOES_ON}",
        ),
    ),
    **dict.fromkeys((errno.EIO, errno.ESTALE, errno.ETIMEDOUT), (None, FAILS)),
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), (None, FORBIDDEN)),
    **dict.fromkeys(
        (errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENOTEMPTY), (None, IN_THE_WAY)
    ),
    errno.ENOENT: (
        None,
        "it is not there, or no longer. Run the command again; what DVC's stages had made, "
        "dvc repro makes again.",
    ),
    errno.ELOOP: (None, f"a link there leads to itself: remove it; {GOES_ON}"),
    errno.ENAMETOOLONG: (None, "no file can be called that: choose a shorter name."),
    errno.EFBIG: (
        None,
        f"no file of this user may become that large: allow more (ulimit -f); {GOES_ON}",
    ),
    errno.ENOMEM: (None, MEMORY_IS_FULL),
    errno.EAGAIN: (
        None,
        "this user has too many processes, or the system too many: end some, or allow more "
        f"(ulimit -u); {GOES_ON}",
    ),
}
OUT_OF_MEMORY = ("can't allocate memory", "out of memory")


def run(function: Callable[..., None]) -> None:
    """Run a function as a typer command; see ``run_commands``."""
    app = plain_app()
    app.command()(function)
    run_commands(app)


def plain_app() -> typer.Typer:
    """Return a typer application without colours, frames and shell completion."""
    import typer

    return typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


def run_commands(app: typer.Typer) -> None:
    """Run a typer application; what a user can mend becomes one message and exit status 1.

    A run that a signal stopped ends with 128 + the signal's number, as in a shell.
    """
    mend_streams()
    try:
        if not WORKER.get():
            # A DVC that is killed tells nobody, nor does a command of ours that started this one.
            if os.environ.get("DVC_ROOT") or PARENT.get() == os.getppid():
                leave_with(os.getppid(), lambda: os.kill(os.getpid(), signal.SIGTERM))
            os.environ.pop(PARENT.name, None)  # what this process starts has another
        refuse_former_names()
        app()
    except StoppedError as stopped:
        if rank() == 0:
            say(str(stopped))
        sys.exit(128 + stopped.signal)
    except UserError as error:
        say(f"error: {error}")
        sys.exit(1)
    except (OSError, MemoryError, RuntimeError) as error:
        if another_has_ended(error):
            if PARENT.get() is None:  # otherwise that knows which one, and says it
                print(f"\nProcess {rank()} ended, because another has. {ENDED}\n", file=sys.stderr)
            sys.exit(1)
        sentence = _fault_of_the_machine(error)
        if sentence is None:
            raise
        say(f"error: {sentence}")
        sys.exit(1)


def _fault_of_the_machine(error: Exception) -> str | None:
    """Return what to say of what the system refuses or lacks; None for a defect of the program."""
    if isinstance(error, OSError):
        return None if error.errno is None else _refused(error, error.errno)
    # torch says so of a CPU in a RuntimeError, of a GPU in a class of its own.
    if isinstance(error, MemoryError) or any(said in str(error) for said in OUT_OF_MEMORY):
        return MEMORY_IS_FULL
    return None


def _refused(error: OSError, number: int) -> str:
    """Return what the system refused, of which file, and what to do.

    Args:
        error: what was raised.
        number: its errno.
    """
    # What is in the way of a file that is whole is where that is to be: the second name.
    names = (
        shortened(os.fsdecode(name)) for name in (error.filename, error.filename2) if _named(name)
    )
    file = f" ({' → '.join(names)})" if _named(error.filename) else ""
    what, advice = ADVICE.get(number, (None, OTHERWISE))
    return f"{what or error.strerror or os.strerror(number)}{file}: {advice}"


def _named(name: object) -> bool:
    """Return whether a file has a name: of some errors Python knows a number only, or nothing."""
    return isinstance(name, str | bytes) and bool(name)


def say(text: str) -> None:
    """Tell the user why a command ends."""
    if rank() > 0:
        time.sleep(2)  # the first process says the same, and then the launcher ends the others
    with suppress(OSError):  # nobody may be listening any more
        print(f"\n{text.translate(ESCAPES)}\n", file=sys.stderr)
