"""The ways to move an adapter to another base, found by their files without importing torch.

A way is one file of `weights/port/methods/`, named as users type it. Its docstring describes it, its function `move`
computes one module, and `NEEDS` names its inputs besides the update: `nothing`, or the `weights` of both bases.
"""

from __future__ import annotations

import ast
import difflib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from adapterhub.core.errors import UsageProblem, shown

COPY: Final = "copy"
"""The method that changes no number; it is tried first."""

_FOLDER: Final = Path(__file__).parent / "methods"


@dataclass(frozen=True, slots=True, kw_only=True)
class PortMethod:
    """A way to move an adapter: its name, a sentence, and what it `needs`."""

    name: str
    summary: str
    needs: str


@cache
def names() -> tuple[str, ...]:
    """Return the names of all methods, `copy` first."""
    found = (path.stem for path in _FOLDER.glob("[!_]*.py"))
    return tuple(sorted(found, key=lambda name: (name != COPY, name)))


@cache
def describe(name: str) -> PortMethod:
    """Return the method of that name.

    Raises:
        UsageProblem: no method has that name.
    """
    if name not in names():
        near = difflib.get_close_matches(name, names(), n=1)
        hint = f"did you mean `{near[0]}`?" if near else ""
        raise UsageProblem(f"no way to port is named `{shown(name)}`; expected one of {', '.join(names())}", hint=hint)
    tree = ast.parse((_FOLDER / f"{name}.py").read_text(encoding="utf-8"))
    text = (ast.get_docstring(tree) or "").partition("\n\n")[0].removeprefix(f"`{name}`: ")
    values = {
        node.target.id: node.value.value
        for node in tree.body
        if isinstance(node, ast.AnnAssign)
        and isinstance(node.target, ast.Name)
        and isinstance(node.value, ast.Constant)
    }
    return PortMethod(name=name, summary=" ".join(text.split()), needs=str(values["NEEDS"]))
