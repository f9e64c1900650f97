"""What dvc.yaml must say, read from the code: which modules a stage imports."""

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent


def modules_of(stage: str) -> set[str]:
    """Return the files of the repository that ``python -m stages.STAGE`` can import, itself too.

    Imports inside functions count. Package files (__init__.py) hold nothing that a stage uses
    (there is a test for that), so they are left out.
    """
    found: set[str] = set()
    waiting = [f"stages.{stage}"]
    while waiting:
        path = ROOT / (waiting.pop().replace(".", "/") + ".py")
        name = path.relative_to(ROOT).as_posix()
        if name in found or not path.exists():
            continue
        found.add(name)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                waiting += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                waiting += [node.module, *(f"{node.module}.{a.name}" for a in node.names)]
    return found
