"""The name of a training state: a hash of all that shaped it, and of nothing else.

The state after step k depends on what the first k steps do (``Schedule.prefix``), on what they do
it to (data, start, network, loss, optimiser, seed) and on the code that does it. Runs that agree
on these have the same state after step k, whatever they do later.
"""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from maskdm.schedule import Schedule

FOLDER = Path(__file__).parent.parent
# What a step computes is in this module and in what it imports.
ROOTS = ("maskdm.trajectory",)


def digest(content: Any) -> str:
    """Return a hash of what JSON can hold, the same in any order of keys."""
    text = json.dumps(content, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def prefix(trajectory: Mapping[str, Any], schedule: Schedule, step: int) -> str:
    """Return the fingerprint of the state after ``step`` steps.

    Args:
        trajectory: what the steps depend on besides the schedule, as JSON can hold it.
        schedule: of the phase; only its first ``step`` steps count.
        step: steps made, at least 1.
    """
    return digest({"trajectory": trajectory, "schedule": schedule.prefix(step)})


@cache
def code() -> str:
    """Return a hash of the modules that compute a step; comments and docstrings do not count."""
    return digest({name: meaning(path.read_text("utf-8")) for name, path in modules().items()})


def modules(
    roots: tuple[str, ...] = ROOTS, folder: Path = FOLDER, packages: tuple[str, ...] = ("maskdm",)
) -> dict[str, Path]:
    """Return the files that ``roots`` import, directly or not, themselves too, by module name.

    Imports inside functions count; package files (__init__.py) do not.

    Args:
        roots: modules to begin with.
        folder: where the packages are.
        packages: whose modules count.
    """
    found: dict[str, Path] = {}
    waiting = list(roots)
    while waiting:
        name = waiting.pop()
        path = folder / (name.replace(".", "/") + ".py")
        if name in found or name.split(".")[0] not in packages or not path.exists():
            continue
        found[name] = path
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                waiting += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                waiting += [node.module, *(f"{node.module}.{a.name}" for a in node.names)]
    return dict(sorted(found.items()))


def meaning(source: str) -> str:
    """Return a module's syntax tree as text: the same for any comments, docstrings and layout."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and _is_text(body[0]):
            node.body = body[1:] or [ast.Pass()]  # type: ignore[attr-defined]
    return ast.unparse(tree)


def _is_text(node: ast.AST) -> bool:
    """Return whether a statement is nothing but a string."""
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )
