"""The page of the Python interface: each call in its tables and examples fits the signature of the function."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import adapterhub as ah
from adapterhub.library.remotes import Remotes
from adapterhub.trust.signing.keys import KeyFolder

PAGES = (
    *(
        Path(__file__).resolve().parent.parent.parent / "docs" / place
        for place in ("reference/python.md", "how-to/python.md")
    ),
)
OWNERS = {"library": ah.Library, "watched": ah.Library, "project": ah.Project, "bank": ah.AdapterBank, "adapterhub": ah}
SECTIONS = {
    "Library": ah.Library,
    "Project": ah.Project,
    "AdapterBank": ah.AdapterBank,
    "attach": ah,
    "callbacks": ah.callbacks,
}
PLACES = {"remotes": Remotes, "keys": KeyFolder}


def documented() -> Iterator[tuple[str, Any, str]]:
    """Each call with its function: those of the tables, as the page writes them, and those of the examples."""
    for page in PAGES:
        owner: Any = ah
        for line in page.read_text(encoding="utf-8").splitlines():
            if line.startswith("## "):
                owner = SECTIONS.get(line[3:].strip("`"), ah)
            for name, inside in re.findall(r"`([\w.]+)\(([^`]*)\)`", line) if line.startswith("|") else ():
                place, _, last = name.rpartition(".")
                where = PLACES.get(place) or (
                    ah if place == "adapterhub" else owner if not place else getattr(ah, place, None)
                )
                found = getattr(where, last, None) or getattr(ah, last, None)
                if callable(found):
                    yield f"{name}({inside})", found, inside


def code() -> Iterator[tuple[str, Any, ast.Call]]:
    """Each call of an example, with its function where one of ours is called."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
            plain = [line[4:] for line in block.splitlines() if line.startswith((">>> ", "... "))] or block.splitlines()
            for node in ast.walk(ast.parse("\n".join(plain))):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                    *way, name = ast.unparse(node.func).split(".")
                    owner = OWNERS.get(way[0]) if len(way) == 1 else PLACES.get(way[-1])
                    if owner is not None and hasattr(owner, name):
                        yield ast.unparse(node), getattr(owner, name), node


def takes(function: Any, name: str) -> bool:
    parameters = inspect.signature(function).parameters.values()
    return any(p.name == name or p.kind is p.VAR_KEYWORD for p in parameters)


@pytest.mark.parametrize(
    ("text", "function", "inside"), documented(), ids=lambda one: one if isinstance(one, str) else ""
)
def test_each_parameter_of_a_table_is_one_of_the_function(text: str, function: Any, inside: str) -> None:
    names = [part.strip().partition("=")[0].lstrip("*") for part in inside.split(",")]

    assert [name for name in names if name.isidentifier() and not takes(function, name)] == [], text


@pytest.mark.parametrize(("text", "function", "call"), code(), ids=lambda one: one if isinstance(one, str) else "")
def test_each_call_of_an_example_fits_the_function(text: str, function: Any, call: ast.Call) -> None:
    is_method = inspect.isfunction(function) and "self" in inspect.signature(function).parameters
    args = [None] * (is_method + sum(not isinstance(arg, ast.Starred) for arg in call.args))

    inspect.signature(function).bind(*args, **{key.arg: None for key in call.keywords if key.arg})
    assert text
