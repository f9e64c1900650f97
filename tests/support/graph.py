"""What dvc.yaml must say, read from the code: which modules a stage imports."""

from functools import cache
from pathlib import Path

from ruamel.yaml import YAML

from maskdm.training.checkpoints.fingerprint import imports, modules

ROOT = Path(__file__).parents[2]
STAGES = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]


@cache
def modules_of(stage: str) -> frozenset[str]:
    """Return the files of the repository that ``python -m stages.STAGE`` can import, itself too.

    Package files (__init__.py) hold nothing that a stage uses (there is a test for that); that of
    the stages imports something.
    """
    roots = (f"stages.{stage}", *imports(ROOT / "stages/__init__.py"))
    found = modules(roots, ROOT, ("maskdm", "stages", "benchmarks", "tools"))
    return frozenset(path.relative_to(ROOT).as_posix() for path in found.values())


def lies_under(path: str, other: str) -> bool:
    """Return whether a path is another one, or in that folder."""
    return path == other or path.startswith(f"{other}/")
