"""How a stage becomes a command: typer in front, plain sentences for the user's mistakes."""

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

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


def write_json(path: Path, content: Mapping[str, object]) -> None:
    """Write a JSON file for people and for DVC, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
