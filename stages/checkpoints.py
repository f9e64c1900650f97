"""Checkpoints of training: list them, remove them."""

from typing import Annotated

import typer

from maskdm.runtime.command import plain_app, run_commands
from maskdm.runtime.environment import CHECKPOINTS_REMOTE, checkpoints_folder
from maskdm.runtime.errors import UserError
from maskdm.training.checkpoints import store

app = plain_app()


@app.command("list")
def show() -> None:
    """List the checkpoints: folder, step, size, whether kept, seconds of training in it."""
    root, total = checkpoints_folder(), 0
    for folder in store.folders(root):
        print(f"{folder.name}{' (in use)' if store.in_use(folder) else ''}")
        for entry in store.entries(folder):
            if entry.metadata is None:
                print(f"  step {entry.step:>8}  damaged: {entry.damage}")
                continue
            size, seconds = entry.metadata["bytes"], entry.metadata["seconds"]
            total += size
            print(
                f"  step {entry.step:>8}  {size / 2**20:>8.1f} MiB  "
                f"{'kept' if entry.kept else 'passing':7}  {seconds:>8.0f} s  "
                f"{entry.metadata['numerics'][-1]['device']}"
            )
    print(f"{total / 2**20:.1f} MiB in {root}")


@app.command()
def clear(
    names: Annotated[list[str] | None, typer.Argument(help="folders, as list shows them")] = None,
    everything: Annotated[bool, typer.Option("--all", help="all of them")] = False,
) -> None:
    """Remove checkpoints, but for those in use; runs then start from their first step again."""
    root, remote = checkpoints_folder(), CHECKPOINTS_REMOTE.get()
    there = {folder.name: folder for folder in store.folders(root)}
    chosen = list(there) if everything else names or []
    unknown = [name for name in chosen if name not in there]
    if unknown or not chosen:
        what = f"There are no checkpoints called {', '.join(unknown)}" if unknown else None
        raise UserError(
            f"{what or 'Nothing is named'}. Give names that python -m stages.checkpoints list "
            f"shows, or --all for all in {root}."
        )
    for name in chosen:
        if not store.clear(there[name], remote):
            print(f"{name} is in use and stays")
            continue
        print(f"{name} removed{f', from {remote} too' if remote else ''}")
        if left := list(there[name].glob("*")):
            print(f"  but for {len(left)} files that are no checkpoints: they stay there")


if __name__ == "__main__":
    run_commands(app)
