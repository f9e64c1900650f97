"""The source of some definitions and of all that they use from this package, as one file.

Code that travels with a model must run where maskdm is not installed, and diffusers copies single
files. So what is exported is the very source that the model was trained and drawn with, and
nothing is written twice.
"""

import ast
import importlib.util
from collections.abc import Iterator
from copy import deepcopy
from functools import cached_property
from pathlib import Path

from maskdm.runtime.errors import UserError

PACKAGE = __name__.partition(".")[0]


class Module:
    """The top level of a module of this package.

    Args:
        name: dotted.

    Attributes:
        path: of its file.
    """

    def __init__(self, name: str) -> None:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            raise ModuleNotFoundError(name)
        self.path = Path(spec.origin)
        self.lines = self.path.read_text(encoding="utf-8").splitlines()
        self.body = ast.parse("\n".join(self.lines)).body

    @cached_property
    def definitions(self) -> dict[str, ast.stmt]:
        """The statement that defines each name."""
        return {name: statement for statement in self.body for name in _defined(statement)}

    @cached_property
    def imports(self) -> dict[str, tuple[str, str]]:
        """Each imported name → the module and the name there; a whole module has none."""
        found = {}
        for statement in self.body:
            if isinstance(statement, ast.ImportFrom):
                for alias in statement.names:
                    found[alias.asname or alias.name] = (statement.module or "", alias.name)
            elif isinstance(statement, ast.Import):
                for alias in statement.names:
                    found[alias.asname or alias.name.partition(".")[0]] = (alias.name, "")
        return found

    def source(self, statement: ast.stmt) -> str:
        """Return the lines of a statement, decorators and the comment above it included."""
        decorators = getattr(statement, "decorator_list", [])
        first = min(part.lineno for part in (statement, *decorators)) - 1
        while first and self.lines[first - 1].startswith("#"):
            first -= 1
        return "\n".join(self.lines[first : statement.end_lineno])


class Bundle:
    """Definitions, in an order in which they can be executed, and the imports that they need.

    Attributes:
        parts: the source of each definition.
        owners: name → the module that defines it.
        foreign: lines that import from other packages.
    """

    def __init__(self) -> None:
        self.modules: dict[str, Module] = {}
        self.parts: list[str] = []
        self.owners: dict[str, str] = {}
        self.foreign: set[str] = set()

    def add(self, module: str, name: str) -> None:
        """Add a definition after all that it uses.

        Args:
            module: of this package.
            name: what it defines or imports from another one.

        Raises:
            UserError: if one file cannot hold it: two modules define the name, or it was imported
                under another one.
        """
        if module not in self.modules:
            self.modules[module] = Module(module)
        here = self.modules[module]
        statement = here.definitions.get(name)
        if statement is None:
            self._add_imported(here.imports.get(name), name)
            return
        if name in self.owners:
            if self.owners[name] != module:
                raise UserError(
                    f"{name} is defined in {module} and in {self.owners[name]}, and the code that "
                    "travels with a model is one file: give one of them another name."
                )
            return
        self.owners |= dict.fromkeys(_defined(statement), module)
        for used in sorted(_used(statement)):
            self.add(module, used)
        for annotated in sorted(_used(statement, annotations=True)):
            origin = here.imports.get(annotated)
            if origin and origin[0].partition(".")[0] != PACKAGE:
                self._add_imported(origin, annotated)
        self.parts.append(here.source(statement))

    def _add_imported(self, origin: tuple[str, str] | None, name: str) -> None:
        """Add what a name was imported from; a name of the language needs nothing."""
        if origin is None:
            return
        module, there = origin
        if module.partition(".")[0] == PACKAGE:
            if there != name:
                raise UserError(
                    f"{module}.{there or '*'} is imported as {name}, and the code that travels "
                    "with a model is one file: import it by its own name."
                )
            self.add(module, name)
        elif there:
            renamed = "" if there == name else f" as {name}"
            self.foreign.add(f"from {module} import {there}{renamed}")
        else:
            self.foreign.add(f"import {module}" + (f" as {name}" if name != module else ""))

    def text(self, about: str) -> str:
        """Return the file.

        Args:
            about: its docstring.
        """
        head = [
            f'"""{about}"""',
            "from __future__ import annotations",
            "\n".join(sorted(self.foreign)),
        ]
        return "\n\n".join(head) + "\n\n\n" + "\n\n\n".join(self.parts) + "\n"


def _defined(statement: ast.stmt) -> Iterator[str]:
    """Yield the names that a statement at top level defines."""
    if isinstance(statement, ast.FunctionDef | ast.ClassDef):
        yield statement.name
    targets = statement.targets if isinstance(statement, ast.Assign) else []
    if isinstance(statement, ast.AnnAssign):
        targets = [statement.target]
    for target in targets:
        yield from (node.id for node in ast.walk(target) if isinstance(node, ast.Name))


def _used(statement: ast.stmt, annotations: bool = False) -> set[str]:
    """Return the names that a statement reads, and those in its annotations only if asked for."""
    tree = statement if annotations else _Plain().visit(deepcopy(statement))
    return {
        node.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)
    }


class _Plain(ast.NodeTransformer):
    """Takes away annotations, which the bundle's future import keeps from being evaluated."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        return self.generic_visit(node)

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        node.annotation = ast.Constant(None)
        return self.generic_visit(node)
