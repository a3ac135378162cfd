"""Every public function of the Python interface, found by `inspect`, with the types of its parameters."""

from __future__ import annotations

import inspect
import math
import numbers
import os
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import adapterhub
from adapterhub.api.contracts.testing import Contracts
from adapterhub.api.steps.keys import Keys, KnownRemotes
from adapterhub.core import arguments
from adapterhub.core.errors import AdapterHubError
from adapterhub.inference import loader
from adapterhub.inference.bank import FollowedAlias
from adapterhub.inference.loader import Attached
from adapterhub.library.bases.records import Bases

MADE_BY_US = {
    "Bases.put", "Bases.current", "Bases.state", "Bases.part", "Bases.of", "Bases.hub_id_of", "Bases.by_fingerprint", "Bases.part_for", "Bases.whole",
    "Bases.pipeline_of", "Bases.look_again", "Bases.copies_of", "Bases.by_weights", "Bases.standing_for", "Bases.sources_here",
    "Bases.with_settings", "Bases.stands_for", "Bases.judged", "Bases.forms_of",
} | {
    "AdapterBank.use", "AdapterBank.rows",
}  # fmt: skip
"""Functions that take only what the library itself made, which python.md does not list; and the two that are called for each
token, whose choices `inference.bank.selection` checks (`test_bank_choice.py`)."""


@dataclass(frozen=True)
class Function:
    """One public function: `call` takes the arguments, `kinds` are the types of its parameters."""

    name: str
    call: Callable[..., Any]
    parameters: tuple[inspect.Parameter, ...]
    kinds: Mapping[str, Any]
    module: str

    def with_one(self, name: str, value: object) -> tuple[list[Any], dict[str, Any]]:
        """Arguments that are right, but for the one parameter `name`, which has `value`."""
        args: list[Any] = []
        given: dict[str, Any] = {}
        for p in self.parameters:
            chosen = value if p.name == name else good(self.kinds[p.name])
            if p.kind is p.VAR_POSITIONAL:
                before = [each for each in self.parameters if each.kind is p.POSITIONAL_OR_KEYWORD]
                args += (
                    [*(given.pop(each.name, good(self.kinds[each.name])) for each in before), chosen]
                    if p.name == name
                    else []
                )
            elif p.kind is p.VAR_KEYWORD:
                given |= {"anything": chosen} if p.name == name else {}
            elif p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) and not _has_rest(self.parameters):
                given |= {p.name: chosen} if p.default is p.empty or p.name == name else {}
            elif p.name == name or p.default is p.empty:
                given[p.name] = chosen
        return args, given


def _has_rest(parameters: Iterable[inspect.Parameter]) -> bool:
    return any(p.kind is p.VAR_POSITIONAL for p in parameters)


def functions() -> Iterator[Function]:
    """All of them, each bound to an object that need not work: arguments are parsed first."""
    for name in adapterhub.__all__:
        found = getattr(adapterhub, name)
        if inspect.isfunction(found):
            yield _function(name, found, loader.attach if found is adapterhub.attach else found)  # which it calls
    yield _function(
        "FollowedAlias.wait", FollowedAlias.wait.__get__(object.__new__(FollowedAlias)), FollowedAlias.wait, bound=True
    )
    for method in (adapterhub.LiveStream.publish, adapterhub.LiveStream.follow):
        call = method.__get__(object.__new__(adapterhub.LiveStream))
        yield _function(f"LiveStream.{method.__name__}", call, method, bound=True)
    yield _function("vllm.lora_request", adapterhub.vllm.lora_request, adapterhub.vllm.lora_request)
    for owner in (
        adapterhub.Library, adapterhub.Project, adapterhub.AdapterBank, Attached, KnownRemotes, Keys, Contracts, Bases,
        adapterhub.callbacks.AddOnSave, adapterhub.callbacks.PublishOnStep, adapterhub.MergeInput, adapterhub.PromptForm,
    ):  # fmt: skip
        yield from _methods(owner)


def _methods(owner: type) -> Iterator[Function]:
    for name, member in inspect.getmembers(owner):
        static = inspect.getattr_static(owner, name)
        function = inspect.unwrap(getattr(member, "__func__", member)) if callable(member) else None
        if not inspect.isfunction(function) or (name.startswith("_") and name != "__init__"):
            continue
        ours = function.__module__.startswith("adapterhub.") and not (
            owner is adapterhub.Library and function.__module__.startswith("adapterhub.library")
        )
        is_made = owner in (adapterhub.PromptForm, Attached, KnownRemotes, Keys, Contracts, Bases) and name != "typed"
        if not ours or f"{owner.__name__}.{name}" in MADE_BY_US or (name == "__init__" and is_made):
            continue
        if owner is adapterhub.PromptForm and name != "typed":
            continue
        if owner in (adapterhub.callbacks.AddOnSave, adapterhub.callbacks.PublishOnStep) and name != "__init__":
            continue  # the trainer calls them
        if owner is adapterhub.MergeInput and name != "__init__":
            continue
        call = member if isinstance(static, classmethod) else member.__get__(object.__new__(owner))
        yield _function(f"{owner.__name__}.{name}", call, getattr(member, "__func__", member), bound=True)


def _function(name: str, call: Callable[..., Any], function: Callable[..., Any], *, bound: bool = False) -> Function:
    parameters = list(inspect.signature(function).parameters.values())[1 if bound else 0 :]
    return Function(
        name=name,
        call=call,
        parameters=tuple(parameters),
        kinds=arguments.kinds_of(function),
        module=function.__module__,
    )


# ---------------------------------------------------------------- what a type allows, told apart without the parser
NUMBERS = (0, -1, 1, 5, 10**30, True, 1.5, math.nan, math.inf, -math.inf)
TEXTS = ("", "Require", "requier", "../../../../outside/x", "a\0b", "3bit", "x")
POOL: tuple[Any, ...] = (
    None, *NUMBERS, *TEXTS, b"x", ["x"], [5], [["x"]], {"x": math.nan}, {"x": "y"}, {5: 1.0}, object(), lambda: 0,
    Path("x"), Path("a\0b"), 1j, type,
)  # fmt: skip


def accepts(kind: Any, value: Any) -> bool:  # noqa: PLR0911 - one for each kind
    """Whether a parameter of this type may have the value."""
    kind = getattr(kind, "__supertype__", kind)
    origin, inner = get_origin(kind) or kind, get_args(kind)
    if origin in (Any, object):
        return True
    if origin in (Union, types.UnionType):
        return any(accepts(one, value) for one in inner)
    if origin is Literal:
        return isinstance(value, str) and value in inner
    if origin is Annotated:
        return accepts(inner[0], value) and all(_passes(check, value) for check in inner[1:])
    if origin in (None, types.NoneType):
        return value is None
    if origin in (Sequence, Iterable, list, tuple):
        is_tuple = origin is tuple and inner and inner[-1] is not Ellipsis
        items = value if isinstance(value, list | tuple) else [value]
        return (not is_tuple or len(items) == len(inner)) and all(accepts(inner[0] if inner else Any, i) for i in items)
    if origin is Mapping:
        return isinstance(value, Mapping) and all(
            accepts(inner[0], k) and accepts(inner[1], v) for k, v in value.items()
        )
    if origin is Callable:
        return callable(value)
    return _accepts_plain(origin, value)


def _accepts_plain(kind: Any, value: Any) -> bool:
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if kind is bool:
        return isinstance(value, bool)
    if kind is int:
        return is_number and isinstance(value, int)
    if kind is float:
        return is_number and math.isfinite(value)
    if kind is str:
        return isinstance(value, str) and "\0" not in value
    if kind is Path:
        return isinstance(value, str | Path) and "\0" not in str(value)
    if kind is os.PathLike:
        return isinstance(value, Path) and "\0" not in str(value)
    return isinstance(value, kind)


def _passes(check: Any, value: Any) -> bool:
    if isinstance(check, arguments.Between):
        low, high = check.low, check.high
        return (low is None or value >= low) and (high is None or value <= high) and value != check.without
    try:
        check(value)
    except AdapterHubError:
        return False
    return True


def good(kind: Any) -> Any:
    """Some value that a parameter of this type may have."""
    for value in ("acme", "0.1", 1, 4, 0.5, True, None, Path("out"), ["x"], {"x": 1.0}, lambda: 0):
        if accepts(kind, value):
            return value
    for one in get_args(kind) or (kind,):
        if get_origin(one) is Literal or get_origin(kind) is Literal:
            return get_args(kind if get_origin(kind) is Literal else one)[0]
        if isinstance(one, type):
            return object.__new__(one)
        if get_origin(kind) in (tuple, Sequence):
            return tuple(good(each) for each in get_args(kind) if each is not Ellipsis)
    raise AssertionError(kind)
