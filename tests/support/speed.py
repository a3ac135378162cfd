"""Which tests are slow: those that start a process or a server, make or load a model, or try many examples.

One rule decides, so few files need a mark.

A test reaches what its function, its parameters and its fixtures name, and what the functions and classes of `tests` that
they name do in turn. A test that reaches one of `COSTLY` is slow, and so are a property that Hypothesis tries and each
test of a file that imports PEFT, transformers or diffusers. Other tests that take seconds carry `pytest.mark.slow`
themselves.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FunctionType, ModuleType

import pytest

COSTLY = frozenset({
    "subprocess", "multiprocessing", "fork", "runpytest_subprocess", "postgres",  # a process
    "uvicorn", "HTTPServer", "ThreadingHTTPServer", "create_server",  # a server
    "sync_playwright",  # a browser
    "smollm2_base", "peft", "transformers", "diffusers",  # a model
    "getfixturevalue",  # a fixture that is known only when the test runs: the PostgreSQL or S3 of some parameters
})  # fmt: skip
_ROOT = Path(__file__).resolve().parents[2]
_MODELS = re.compile(r"^(?:from|import) (?:peft|transformers|diffusers)\b", re.MULTILINE)
_MARK = re.compile(r"^pytestmark = .*\bmark\.(?:slow|engine)\b", re.MULTILINE)
_OF_TESTS = re.compile(r"^from (tests[\w.]*) import (\([^)]*\)|.*)", re.MULTILINE)


@functools.cache
def is_slow_file(path: Path) -> bool:
    """Whether each test of a file is slow: it is marked, or it or a file of `tests` that it imports imports models.

    The files are read and not imported, which takes longer than most tests of such a file.
    """
    imported = _imported(path)
    return any(_MODELS.search(_text(each)) or (each == path and _MARK.search(_text(each))) for each in imported)


def _imported(path: Path) -> set[Path]:
    """The file, and those of `tests` that it imports at its top, and so on."""
    found, todo = set(), [path]
    while todo:
        one = todo.pop()
        if one in found or not one.is_file():
            continue
        found.add(one)
        for module, names in _OF_TESTS.findall(_text(one)):
            todo += [_file_of(module), *(_file_of(f"{module}.{name}") for name in re.findall(r"\w+", names))]
    return found


def _file_of(module: str) -> Path:
    return _ROOT / f"{module.replace('.', '/')}.py"


@functools.cache
def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def is_slow(item: pytest.Item) -> bool:
    """Whether the test is a property, or it, its file, a parameter or a fixture of it reaches something costly."""
    if is_slow_file(item.path) or hasattr(getattr(item, "obj", None), "hypothesis"):
        return True
    fixtures = getattr(item, "_fixtureinfo").name2fixturedefs.values()  # noqa: B009 - for mypy, which knows no such name
    starts = [
        getattr(item, "obj", None),
        *(definition.func for definitions in fixtures for definition in definitions),
        *getattr(getattr(item, "callspec", None), "params", {}).values(),
    ]
    return any(_is_costly(start) for start in starts if callable(start))


@functools.cache
def _is_costly(start: Callable[..., object]) -> bool:
    inner = getattr(getattr(start, "hypothesis", None), "inner_test", None) or inspect.unwrap(start)
    return isinstance(inner, FunctionType | type) and _reaches_costly(inner)


@functools.cache
def _reaches_costly(start: FunctionType | type) -> bool:
    todo: list[object] = [start]
    seen = set()
    while todo:
        value = todo.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if getattr(value, "__name__", "") in COSTLY:
            return True
        if isinstance(value, FunctionType):
            names = set(_names(value.__code__))
            if not COSTLY.isdisjoint(names) or any(is_slow_file(_file_of(n)) for n in names if n.startswith("tests.")):
                return True
            todo += _named(value, names)
        elif isinstance(value, type):
            todo += [inspect.unwrap(member) for member in vars(value).values() if callable(member)]
            todo += value.__bases__
    return False


def _names(code: CodeType) -> Iterator[str]:
    """The global names and attributes that the code, or a function inside it, uses."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _named(function: FunctionType, names: set[str]) -> Iterator[object]:
    """What the names stand for in the function, as far as it belongs to the tests."""
    scopes = [function.__globals__]
    for name in names:
        value = function.__globals__.get(name)
        if isinstance(value, ModuleType) and value.__name__.startswith("tests."):
            scopes.append(vars(value))
        elif name.startswith("tests."):  # imported inside the function
            scopes.append(vars(sys.modules.get(name) or importlib.import_module(name)))
    for scope in scopes:
        for name in names & scope.keys():
            value = inspect.unwrap(scope[name]) if callable(scope[name]) else None
            if str(getattr(value, "__module__", None) or "").startswith("tests."):
                yield value
