"""Put a damaged dvc.lock aside: ``python -m tools.mend_lock``, before DVC is run for somebody.

DVC rewrites dvc.lock after every stage. If it is killed meanwhile, the file is cut short, and every
command of DVC ends in an error before any stage starts. Without it ``dvc repro`` brings everything
back from the run cache, and computes nothing.
"""

from pathlib import Path

from dvc.dvcfile import Lockfile
from dvc.exceptions import DvcException
from dvc.repo import Repo

from maskdm.runtime import command

LOCK = "dvc.lock"
ASIDE = "dvc.lock.damaged"


def main() -> None:
    """Move dvc.lock to dvc.lock.damaged if DVC cannot read it."""
    if is_damaged(Path()):
        Path(LOCK).replace(ASIDE)
        print(
            f"{LOCK} is damaged, perhaps because DVC was killed while it wrote it: it is {ASIDE} "
            "now, and the stages that are done are found again in DVC's cache."
        )


def is_damaged(root: Path) -> bool:
    """Return whether the dvc.lock of a repository is one that DVC cannot read."""
    if not (root / LOCK).exists():
        return False
    with Repo(root) as repo:
        try:
            Lockfile(repo, str(root / LOCK)).load()
        except DvcException:
            return True
    return False


if __name__ == "__main__":
    command.run(main)
