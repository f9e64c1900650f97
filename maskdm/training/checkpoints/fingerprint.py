"""The name of a checkpoint: a hash of all that shaped it, and of nothing else.

The state after step k depends on what the first k steps do, on their data, start, network, loss,
optimiser and seed, and on the code that computes them. Runs that agree on these have the same
state after step k, whatever they do later.
"""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]


def digest(content: Any) -> str:
    """Return a hash of what JSON can hold, the same in any order of keys."""
    text = json.dumps(content, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


@cache
def code_hash(*roots: str) -> str:
    """Return a hash of modules and all that they import; comments and docstrings do not count.

    Args:
        roots: names of modules of maskdm.
    """
    return digest({name: meaning(path.read_text("utf-8")) for name, path in modules(roots).items()})


def modules(
    roots: tuple[str, ...], folder: Path = ROOT, packages: tuple[str, ...] = ("maskdm",)
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
        waiting += imports(path)
    return dict(sorted(found.items()))


def imports(path: Path) -> Iterator[str]:
    """Yield the names that a file imports, modules and what may be modules."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def meaning(source: str) -> str:
    """Return a module's syntax tree as text: the same for any comments, docstrings and layout."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
        if isinstance(node, documented) and node.body and _is_text(node.body[0]):
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)


def _is_text(node: ast.AST) -> bool:
    """Return whether a statement is nothing but a string."""
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )
