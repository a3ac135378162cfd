"""Which tests are slow: those that start a process or a server, make or load a model, or try many examples.

One rule decides, so few files need a mark.

A test reaches what its function, its parameters and its fixtures name, and what the functions and classes of `tests` that
they name do in turn. A test that reaches one of `COSTLY`, or anything of PEFT or transformers, is slow, and so is a
property that Hypothesis tries. Other tests that take seconds carry `pytest.mark.slow` themselves.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import sys
from collections.abc import Callable, Iterator
from types import CodeType, FunctionType, ModuleType

import pytest

COSTLY = frozenset({
    "subprocess", "multiprocessing", "fork", "runpytest_subprocess",  # a process
    "uvicorn", "HTTPServer", "ThreadingHTTPServer", "create_server",  # a server
    "sync_playwright",  # a browser
    "smollm2_base",  # a real model; those of PEFT and transformers are found by their module
    "getfixturevalue",  # a fixture that is known only when the test runs: the PostgreSQL or S3 of some parameters
})  # fmt: skip
MODELS = ("peft", "transformers")


def is_slow(item: pytest.Item) -> bool:
    """Whether the test is a property, or it, a parameter of it, or a fixture that it uses reaches something costly."""
    if hasattr(getattr(item, "obj", None), "hypothesis"):
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
        if _module_of(value).partition(".")[0] in MODELS or getattr(value, "__name__", "") in COSTLY:
            return True
        if isinstance(value, FunctionType):
            names = set(_names(value.__code__))
            if not COSTLY.isdisjoint(names):
                return True
            todo += _named(value, names)
        elif isinstance(value, type):
            todo += [inspect.unwrap(member) for member in vars(value).values() if callable(member)]
            todo += value.__bases__
    return False


def _module_of(value: object) -> str:
    return str(getattr(value, "__module__", None) or "")


def _names(code: CodeType) -> Iterator[str]:
    """The global names and attributes that the code, or a function inside it, uses."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _named(function: FunctionType, names: set[str]) -> Iterator[object]:
    """What the names stand for in the function, as far as it belongs to the tests or makes models."""
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
            if _module_of(value).partition(".")[0] in ("tests", *MODELS):
                yield value
