"""How a stage becomes a command: typer in front, plain sentences for the user's mistakes."""

import sys
from collections.abc import Callable

import typer

from maskdm.errors import UserError


def run(stage: Callable[..., None]) -> None:
    """Run ``stage`` as a typer command; a UserError becomes one message and exit status 1."""
    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    app.command()(stage)
    try:
        app()
    except UserError as error:
        print(f"\nerror: {error}\n", file=sys.stderr)
        sys.exit(1)
