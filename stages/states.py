"""Training states: which there are, and how to be rid of them."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from filelock import FileLock, Timeout

from maskdm.errors import UserError
from maskdm.mirror import Mirror
from maskdm.states import FACTS, WANTED, DamagedError, Name, folders, read_facts
from stages.command import plain_app, run_commands
from stages.places import states_root

app = plain_app()


@app.command("list")
def show() -> None:
    """List the training states: folder, step, size, what it is for, seconds of training in it."""
    root = states_root()
    total = 0
    for folder in folders(root):
        print(f"{folder.name}{' (in use)' if in_use(folder) else ''}")
        for name in sorted(filter(None, map(Name.of, folder.glob(f"*{FACTS}")))):
            try:
                facts = read_facts(folder / f"{name}{FACTS}")
            except DamagedError as error:
                print(f"  step {name.step:>8}  damaged: {error}")
                continue
            total += facts["bytes"]
            kept = "kept" if (folder / f"{name}{WANTED}").exists() else "passing"
            print(
                f"  step {name.step:>8}  {facts['bytes'] / 2**20:>8.1f} MiB  {kept:7}  "
                f"{facts['seconds']:>8.0f} s  {facts['arithmetic'][-1]['device']}"
            )
    print(f"{total / 2**20:.1f} MiB in {root}")


@app.command()
def clear(
    names: Annotated[list[str] | None, typer.Argument(help="folders, as list shows them")] = None,
    everything: Annotated[bool, typer.Option("--all", help="all of them")] = False,
) -> None:
    """Remove training states: a run then computes anew. Those in use are left alone."""
    root = states_root()
    there = {folder.name: folder for folder in folders(root)}
    chosen = list(there) if everything else names or []
    unknown = [name for name in chosen if name not in there]
    if unknown or not chosen:
        what = f"There are no states called {', '.join(unknown)}" if unknown else "Nothing is named"
        raise UserError(
            f"{what}. Give names that python -m stages.states list shows, or --all for all in "
            f"{root}."
        )
    mirror = os.environ.get("MASKDM_STATES_MIRROR")
    for name in chosen:
        with held(there[name]) as free:
            if not free:
                print(f"{name} is in use and stays")
                continue
            shutil.rmtree(there[name])
            if mirror:
                Mirror(f"{mirror.rstrip('/')}/{name}").clear()
            print(f"{name} removed{f', from {mirror} too' if mirror else ''}")


@contextmanager
def held(folder: Path) -> Iterator[bool]:
    """Hold a folder of states; give whether no run does."""
    lock = FileLock(folder / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def in_use(folder: Path) -> bool:
    """Return whether a run holds a folder of states."""
    with held(folder) as free:
        return not free


if __name__ == "__main__":
    run_commands(app)
