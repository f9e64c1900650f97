"""How a stage becomes a command: typer in front, plain sentences for the user's mistakes."""

import errno
import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import typer

from maskdm.errors import StoppedError, UserError
from maskdm.processes import rank


def run(stage: Callable[..., None]) -> None:
    """Run ``stage`` as a typer command; see ``run_commands``."""
    app = plain_app()
    app.command()(stage)
    run_commands(app)


def plain_app() -> typer.Typer:
    """Return a typer application without colours, frames and shell completion."""
    return typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


def run_commands(app: typer.Typer) -> None:
    """Run a typer application; what a user can mend becomes one message and exit status 1.

    A run that a signal stopped ends with 128 + the signal's number, as a shell has it.
    """
    try:
        app()
    except StoppedError as stopped:
        if rank() == 0:
            say(str(stopped))
        sys.exit(128 + stopped.signal)
    except UserError as error:
        say(f"error: {error}")
        sys.exit(1)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        where = f" ({error.filename})" if error.filename else ""
        say(f"error: The disk is full{where}: make room; the same command then goes on.")
        sys.exit(1)


def say(text: str) -> None:
    """Tell the user why a command ends."""
    if rank() > 0:
        time.sleep(2)  # the first process says the same, and then the launcher ends the others
    print(f"\n{text}\n", file=sys.stderr)


def write_json(path: Path, content: Mapping[str, object]) -> None:
    """Write a JSON file for people and for DVC, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
