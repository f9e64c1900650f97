"""Checkpoints of training, and pieces of sets that were not finished: list them, remove them."""

from typing import Annotated

import typer

from maskdm.data import pieces
from maskdm.runtime.command import plain_app, run_commands
from maskdm.runtime.environment import CHECKPOINTS_REMOTE, checkpoints_folder
from maskdm.runtime.errors import UserError
from maskdm.training.checkpoints import store

app = plain_app()


@app.command("list")
def show() -> None:
    """List the checkpoints: folder, step, size, whether kept, seconds of training in it.

    Of a set that was not finished: how many pieces there are, and their size.
    """
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
    for folder in pieces.folders(root):
        found = pieces.sizes(folder)
        total += sum(found)
        print(
            f"{folder.name}{' (in use)' if pieces.in_use(folder) else ''}\n"
            f"  {len(found):>6} pieces {sum(found) / 2**20:>8.1f} MiB"
        )
    print(f"{total / 2**20:.1f} MiB in {root}")


@app.command()
def clear(
    names: Annotated[list[str] | None, typer.Argument(help="folders, as list shows them")] = None,
    everything: Annotated[bool, typer.Option("--all", help="all of them")] = False,
) -> None:
    """Remove checkpoints, but for those in use; runs then start from their first step again."""
    root, remote = checkpoints_folder(), CHECKPOINTS_REMOTE.get()
    trained, prepared = store.folders(root), pieces.folders(root)
    there = {folder.name: folder for folder in (*trained, *prepared)}
    chosen = list(there) if everything else names or []
    if everything and not there:
        print(f"There are no checkpoints in {root}.")
        return
    unknown = [name for name in chosen if name not in there]
    if unknown or not chosen:
        what = f"There are no checkpoints called {', '.join(unknown)}" if unknown else None
        raise UserError(
            f"{what or 'Nothing is named'}. Give names that python -m stages.checkpoints list "
            f"shows, or --all for all in {root}."
        )
    for name in chosen:
        folder = there[name]
        copied = remote if folder in trained else None
        if not (store.clear(folder, remote) if folder in trained else pieces.clear(folder)):
            print(f"{name} is in use and stays")
            continue
        print(f"{name} removed{f', from {copied} too' if copied else ''}")
        if left := list(folder.glob("*")):
            print(f"  but for {len(left)} files that are no checkpoints: they stay there")


if __name__ == "__main__":
    run_commands(app)
