"""The Python modules of a wheel or folder, read as syntax: nothing is imported or run."""

from __future__ import annotations

import ast
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple


class Imported(NamedTuple):
    """A name that another module has; `name` is empty for the module itself."""

    module: str
    name: str


Definition = ast.ClassDef | ast.FunctionDef | ast.expr | Imported


@dataclass(eq=False)
class Module:
    """One file; `name` is its dotted name."""

    source: Source
    name: str
    tree: ast.Module
    is_package: bool

    @cached_property
    def names(self) -> dict[str, list[Definition]]:
        """What each name at the top of the file is, in the order of the file; the last one holds."""
        found: dict[str, list[Definition]] = {}
        for statement in _flat(self.tree.body):
            if isinstance(statement, (ast.ClassDef, ast.FunctionDef)):
                found.setdefault(statement.name, []).append(statement)
            elif isinstance(statement, ast.ImportFrom):
                for each in statement.names:
                    origin = Imported(self.origin_of(statement), each.name)
                    found.setdefault(each.asname or each.name, []).append(origin)
            elif isinstance(statement, ast.Assign):
                for target in statement.targets:
                    if isinstance(target, ast.Name):
                        found.setdefault(target.id, []).append(statement.value)
            elif isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name) and statement.value:
                found.setdefault(statement.target.id, []).append(statement.value)
        return found

    def origin_of(self, statement: ast.ImportFrom) -> str:
        """Return the dotted name of the module that the statement imports from."""
        if not statement.level:
            return statement.module or ""
        parts = self.name.split(".")
        kept = parts[: len(parts) - statement.level + self.is_package]
        return ".".join([*kept, *([statement.module] if statement.module else [])])

    def find(self, name: str, *, depth: int = 0) -> list[tuple[Module, ast.ClassDef | ast.FunctionDef | ast.expr]]:
        """Return the definitions of a name, in whatever module they are."""
        found: list[tuple[Module, ast.ClassDef | ast.FunctionDef | ast.expr]] = []
        for each in self.names.get(name, ()):
            if not isinstance(each, Imported):
                found.append((self, each))
            elif depth < 12 and (other := self.source.module(each.module)) is not None and other is not self:
                found += other.find(each.name, depth=depth + 1)
        return found


@dataclass(eq=False)
class Source:
    """A wheel, or the folder that one was unpacked into."""

    path: Path
    _read: dict[str, Module | None] = field(default_factory=dict)

    @cached_property
    def _files(self) -> dict[str, str]:
        if self.path.is_dir():
            return {str(p.relative_to(self.path)): str(p) for p in self.path.rglob("*.py")}
        with zipfile.ZipFile(self.path) as wheel:
            return {name: name for name in wheel.namelist() if name.endswith(".py")}

    @cached_property
    def _wheel(self) -> zipfile.ZipFile:
        return zipfile.ZipFile(self.path)

    def text(self, file: str) -> str:
        """Return the text of a file by its path inside."""
        if self.path.is_dir():
            return (self.path / file).read_text("utf-8")
        return self._wheel.read(file).decode()

    def module(self, name: str) -> Module | None:
        """Return the module of a dotted name; None if it is not here."""
        if name not in self._read:
            path = name.replace(".", "/")
            file = next((f for f in (f"{path}.py", f"{path}/__init__.py") if f in self._files), None)
            tree = ast.parse(self.text(file)) if file else None
            is_package = bool(file and file.endswith("__init__.py"))
            self._read[name] = Module(self, name, tree, is_package) if tree else None
        return self._read[name]

    def required(self, name: str) -> Module:
        """Return the module of a dotted name.

        Raises:
            LookupError: it is not here, so this release is laid out otherwise.
        """
        found = self.module(name)
        if found is None:
            raise LookupError(f"{self.path} has no module {name}")
        return found

    def modules(self, under: str) -> Iterator[Module]:
        """Every module in a package."""
        front = under.replace(".", "/") + "/"
        for file in sorted(self._files):
            if file.startswith(front):
                name = file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
                if (found := self.module(name)) is not None:
                    yield found


def _flat(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield the statements of a body and of the branches in it."""
    for statement in body:
        if isinstance(statement, ast.If):
            yield from _flat(statement.body)
            yield from _flat(statement.orelse)
        elif isinstance(statement, ast.Try):
            yield from _flat(statement.body)
        else:
            yield statement


def literal(node: ast.expr | None) -> object:
    """Return the value of a literal; None for anything else."""
    try:
        return ast.literal_eval(node) if node is not None else None
    except ValueError:
        return None
