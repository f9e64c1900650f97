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
from maskdm.runtime.errors import StoppedError, UserError
from maskdm.runtime.packages import require_package
from maskdm.runtime.parent import leave_with
from maskdm.runtime.streams import mend_streams

if TYPE_CHECKING:
    import typer


# A message may quote a stranger's file, and a terminal would obey it: all but new lines and tabs.
ESCAPES = {n: f"\\x{n:02x}" for n in (*range(32), *range(127, 160)) if n not in (9, 10)}
OUT_OF_MEMORY = ("can't allocate memory", "out of memory")


def run(function: Callable[..., None]) -> None:
    """Run a function as a typer command; see ``run_commands``."""
    app = plain_app()
    app.command()(function)
    run_commands(app)


def plain_app() -> typer.Typer:
    """Return a typer application without colours, frames and shell completion."""
    require_package("typer", "A command", "pipeline")
    import typer

    return typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


def run_commands(app: typer.Typer) -> None:
    """Run a typer application; what a user can mend becomes one message and exit status 1.

    A run that a signal stopped ends with 128 + the signal's number, as in a shell.
    """
    mend_streams()
    if os.environ.get("DVC_ROOT") and not WORKER.get():  # a DVC that is killed tells nobody
        leave_with(os.getppid(), lambda: os.kill(os.getpid(), signal.SIGTERM))
    try:
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
    """Return what to say of a disk or a memory that will not do; None for any other error."""
    if isinstance(error, OSError):
        file = f" ({error.filename})" if error.filename else ""
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return f"The disk is full{file}: make room; the same command then goes on."
        if error.errno in (errno.EMFILE, errno.ENFILE):
            return (
                f"Too many files are open at once{file}: allow more (ulimit -n), or close other "
                "programs; the same command then goes on."
            )
        if error.errno in (errno.EIO, errno.ESTALE, errno.ETIMEDOUT):
            return (
                f"{error.strerror}{file}: the disk, or the way to it, fails. See the system's log; "
                "once it works, the same command goes on."
            )
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            return (
                f"{error.strerror}{file}: give this user the right to read and write there; the "
                "same command then goes on."
            )
        return None
    # torch says so of a CPU in a RuntimeError, of a GPU in a class of its own.
    if isinstance(error, MemoryError) or any(said in str(error) for said in OUT_OF_MEMORY):
        return (
            "The memory is full: set MASKDM_MICRO_BATCH (training) or MASKDM_SAMPLE_BATCH "
            "(sampling) to fewer images at a time, which changes no result, or lower batch_size, "
            "model.dim or data.resolution."
        )
    return None


def say(text: str) -> None:
    """Tell the user why a command ends."""
    if rank() > 0:
        time.sleep(2)  # the first process says the same, and then the launcher ends the others
    with suppress(OSError):  # nobody may be listening any more
        print(f"\n{text.translate(ESCAPES)}\n", file=sys.stderr)
