"""Put a damaged dvc.lock aside: ``python -m tools.mend_lock``, before DVC is run for somebody.

DVC rewrites dvc.lock in place after every stage. If it is killed meanwhile, the file is cut short,
and every command of DVC ends in an error before any stage starts. Without it ``dvc repro`` brings
everything back from the run cache, and computes nothing. The same happens to .dvc/tmp/rwlock, where
DVC notes who is at work: it is removed, since whoever had noted something was killed.
"""

import json
from itertools import count
from pathlib import Path

from dvc.dvcfile import Lockfile
from dvc.exceptions import DvcException
from dvc.lock import LockError, make_lock
from dvc.repo import Repo
from dvc.rwlock import RWLOCK_FILE, RWLOCK_LOCK, SCHEMA
from dvc.utils.serialize import ParseError
from dvc.utils.strictyaml import YAMLValidationError
from voluptuous import Invalid

from maskdm.runtime import command

LOCK = "dvc.lock"
ASIDE = "dvc.lock.damaged"  # and then dvc.lock.damaged.2, .3, …: whoever made it may want it


def main() -> None:
    """Move dvc.lock to dvc.lock.damaged if DVC cannot read it, and remove a damaged rwlock."""
    if aside := put_aside(Path()):
        print(
            f"{LOCK} is damaged, perhaps because DVC was killed while it wrote it: it is {aside} "
            "now, and the stages that are done are found again in DVC's cache."
        )
    if remove_notes(Path()):
        print(f".dvc/tmp/{RWLOCK_FILE} was damaged, perhaps because DVC was killed: it is removed.")


def put_aside(root: Path) -> str | None:
    """Rename a dvc.lock that DVC cannot read; return its new name, None if there was none.

    Args:
        root: the folder that holds dvc.yaml.
    """
    if not (root / LOCK).exists():
        return None
    try:
        repository = Repo(str(root))
    except DvcException:  # no repository of DVC's: whoever runs DVC next is told so by it
        return None
    with repository:
        try:
            with repository.lock:  # so that nobody is writing the file just now
                if not is_damaged(repository, root / LOCK):
                    return None
                aside = _free_name(root)
                (root / LOCK).replace(root / aside)
        except LockError:
            return None  # DVC is at work there
    return aside


def _free_name(root: Path) -> str:
    """Return a name for a damaged file under which none is kept yet."""
    names = (ASIDE if n == 1 else f"{ASIDE}.{n}" for n in count(1))
    return next(name for name in names if not (root / name).exists())


def remove_notes(root: Path) -> bool:
    """Remove DVC's notes of who is at work if it cannot read them; return whether it could not.

    Args:
        root: the folder that holds dvc.yaml.
    """
    folder = root / ".dvc/tmp"
    notes = folder / RWLOCK_FILE
    if not notes.exists():
        return False
    try:
        with make_lock(str(folder / RWLOCK_LOCK), tmp_dir=str(folder)):  # nobody writes just now
            try:
                SCHEMA(json.loads(notes.read_text(encoding="utf-8")))
            except (ValueError, Invalid):
                notes.unlink(missing_ok=True)
                return True
    except LockError:
        pass  # DVC is at work there
    return False


def is_damaged(repository: Repo, path: Path) -> bool:
    """Return whether a dvc.lock is one that DVC cannot understand."""
    try:
        Lockfile(repository, str(path)).load()
    except (ParseError, YAMLValidationError):
        return True
    except DvcException:  # such as: it is ignored by git; DVC says so itself
        return False
    return False


if __name__ == "__main__":
    command.run(main)
