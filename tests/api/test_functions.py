"""Python is the first face: each command names the public functions behind it, and they are there, shown and called."""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import pytest

import adapterhub
from adapterhub.cli import COMMANDS, cli
from adapterhub.cli.functions import FUNCTIONS, WITHOUT
from tests import measure_house
from tests.support.docs_sandbox import make_sandbox

ROOT = Path(__file__).resolve().parent.parent.parent
PAGE = ROOT / "docs" / "reference" / "python.md"
ALONE = ("explain", "explanations", "read_requirements")
"""Functions that are no methods."""
FOLLOWED = ("adapterhub.cli", "adapterhub.api", "adapterhub.inference.answering", "adapterhub:")


def commands() -> Iterator[tuple[str, click.Command]]:
    """Every command that does something, by its path; those in `WITHOUT` are not imported."""

    def below(path: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
        if not isinstance(command, click.Group):
            yield path, command
            return
        context = click.Context(command)
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            yield from below(f"{path} {name}", inner)

    for name in COMMANDS:
        if name not in WITHOUT:
            command = cli.get_command(click.Context(cli), name)
            assert command is not None
            yield from below(name, command)


def owner_of(method: str) -> str:
    """The class that has a method; most are the library's, also where a project has one of that name."""
    return "Library" if "." in method or hasattr(adapterhub.Library, method) else "Project"


PLAIN = {one.words: one.methods for one in measure_house.commands() if one.is_a_verb and one.methods}
"""The commands that only call methods, which need no pair."""
METHODS = {f"{owner_of(name)}.{name}" for names in PLAIN.values() for name in names}
PAIRS = [(path, name, shared) for path, functions in FUNCTIONS.items() for name, shared in functions.items()]


# ---------------------------------------------------------------- who calls what, read off the source
@functools.cache
def tree_of(module: str) -> ast.Module:
    return ast.parse(inspect.getsource(importlib.import_module(module)))


@functools.cache
def imports_in(module: str) -> dict[str, str]:
    """What each imported name stands for, as `module:name`; imports inside of functions count."""
    found: dict[str, str] = {}
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                whole = f"{inner}:" if is_module(inner) else f"{node.module}:{alias.name}"
                found[alias.asname or alias.name] = whole
    return found


@functools.cache
def is_module(name: str) -> bool:
    try:
        return isinstance(importlib.import_module(name), ModuleType)
    except ModuleNotFoundError:
        return False


def definition(place: str) -> ast.AST | None:
    """The function `module:name` or `module:Class.name` in the source; None if its module only passes it on."""
    module, _, name = place.partition(":")
    found: ast.AST | None = tree_of(module)
    for part in name.split("."):
        body = getattr(found, "body", [])
        kinds = (ast.FunctionDef, ast.ClassDef)
        # the last of overloads is the function itself
        found = next((n for n in reversed(body) if isinstance(n, kinds) and n.name == part), None)
        if found is None:
            return None
    return found


def calls(place: str) -> set[str]:
    """Everything that a function calls or names, through the functions of `cli` and `api`: `module:name` and `.name`."""
    seen: set[str] = set()
    reached: set[str] = set()
    todo = [place]
    while todo:
        here = todo.pop()
        if here in seen:
            continue
        seen.add(here)
        node = definition(here)
        if node is None:
            continue
        module, _, name = here.partition(":")
        known = imports_in(module)
        owner = name.rpartition(".")[0]
        for each in ast.walk(node):
            if isinstance(each, ast.Name):
                target = known.get(each.id) or f"{module}:{each.id}"
                reached.add(target)
                if target.startswith("adapterhub.api.library:"):
                    continue  # the library that every session opens leads everywhere
                if target.startswith(FOLLOWED) or target.startswith(f"{module}:"):
                    todo.append(target)
            elif isinstance(each, ast.Attribute):
                reached.add(f".{each.attr}")
                if isinstance(each.value, ast.Name):
                    if each.value.id == "self" and owner:
                        todo.append(f"{module}:{owner}.{each.attr}")
                    else:  # an attribute of an imported module
                        reached.add(f"{known.get(each.value.id, '')}{each.attr}")
    return reached


def reaches(place: str, shared: str) -> bool:
    _, _, name = shared.partition(":")
    if place == shared:
        return True
    if "." in name:  # a method; the object that has it is not known from the source
        return f".{name.rpartition('.')[2]}" in calls(place)
    return shared in calls(place)


def place_of(function: Any) -> str:
    """Where a function is defined, as `module:qualified name`."""
    function = inspect.unwrap(function.fget if isinstance(function, property) else function)
    return f"{function.__module__}:{function.__qualname__}"


@pytest.fixture(scope="module")
def faces(tmp_path_factory) -> dict[str, Any]:
    """The names of the front door; `Library` and `Project` as objects, whose attributes the functions are."""
    folder = tmp_path_factory.mktemp("faces")
    make_sandbox(folder, filled=True)
    library = adapterhub.Library(folder / "home")
    project = adapterhub.Project.create(folder / "project", library=library)
    return {"Library": library, "Project": project, **{n: getattr(adapterhub, n) for n in ALONE}}


def found_in(faces: dict[str, Any], name: str) -> Any:
    """The public function of that name; a property of the class is the property itself."""
    first, *rest = name.split(".")
    assert first in adapterhub.__all__
    value = faces[first]
    for part in rest:
        assert not part.startswith("_")
        declared = inspect.getattr_static(type(value), part, None)
        value = declared if isinstance(declared, property) and part == rest[-1] else getattr(value, part)
    return value


# ---------------------------------------------------------------- the proofs
def test_every_command_names_its_functions():
    every = [path for path, _ in commands()]

    assert sorted([*FUNCTIONS, *PLAIN]) == sorted(every)
    assert set(WITHOUT) <= set(COMMANDS)
    assert [path for path, functions in FUNCTIONS.items() if not functions] == []


@pytest.mark.parametrize("name", sorted({name for _, name, _ in PAIRS} | METHODS))
def test_the_functions_are_public_and_say_what_they_do(faces, name):
    function = found_in(faces, name)

    assert inspect.getdoc(function)


@pytest.mark.parametrize("name", sorted({name for _, name, _ in PAIRS} | METHODS))
def test_the_reference_has_an_example(name):
    page = PAGE.read_text(encoding="utf-8")
    blocks = "".join(re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL))
    first, dot, rest = name.partition(".")
    written = {"Library": "library", "Project": "(project|Project)"}.get(first, re.escape(first)) + re.escape(
        dot + rest
    )

    assert re.search(rf"\b{written}\b", blocks), f"docs/reference/python.md never shows `{name}`"


@pytest.mark.parametrize(("path", "name", "shared"), PAIRS, ids=[f"{path}: {name}" for path, name, _ in PAIRS])
def test_the_command_and_the_function_do_the_same(faces, path, name, shared):
    command = dict(commands())[path]
    assert command.callback is not None

    assert reaches(place_of(command.callback), shared), f"`adapt {path}` does not call {shared}"
    assert reaches(place_of(found_in(faces, name)), shared), f"`{name}` does not call {shared}"


def test_a_command_that_calls_nothing_shared_is_found_out():
    assert not reaches("adapterhub.cli.start.completion:completion", "adapterhub.api.steps.combining:combine")
    assert not reaches("adapterhub.cli.weights.merge:merge", "adapterhub.api.steps.publishing:pull_release")
    assert not reaches("adapterhub.cli.inspect.cache:cache", "adapterhub.library.library:Library.gc")
