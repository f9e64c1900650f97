"""Put a damaged dvc.lock aside: ``python -m tools.mend_lock``, before DVC is run for somebody.

DVC rewrites dvc.lock in place after every stage. If it is killed meanwhile, the file is cut short,
and every command of DVC ends in an error before any stage starts. Without it ``dvc repro`` brings
everything back from the run cache, and computes nothing.
"""

from pathlib import Path

from dvc.dvcfile import Lockfile
from dvc.exceptions import DvcException
from dvc.lock import LockError
from dvc.repo import Repo
from dvc.utils.serialize import ParseError
from dvc.utils.strictyaml import YAMLValidationError

from maskdm.runtime import command

LOCK = "dvc.lock"
ASIDE = "dvc.lock.damaged"


def main() -> None:
    """Move dvc.lock to dvc.lock.damaged if DVC cannot read it."""
    if put_aside(Path()):
        print(
            f"{LOCK} is damaged, perhaps because DVC was killed while it wrote it: it is {ASIDE} "
            "now, and the stages that are done are found again in DVC's cache."
        )


def put_aside(root: Path) -> bool:
    """Rename a dvc.lock that DVC cannot read; return whether there was one.

    Args:
        root: the folder that holds dvc.yaml.
    """
    if not (root / LOCK).exists():
        return False
    try:
        repository = Repo(str(root))
    except DvcException:  # no repository of DVC's: whoever runs DVC next is told so by it
        return False
    with repository:
        try:
            with repository.lock:  # so that nobody is writing the file just now
                damaged = is_damaged(repository, root / LOCK)
                if damaged:
                    (root / LOCK).replace(root / ASIDE)
        except LockError:
            return False  # DVC is at work there
    return damaged


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
