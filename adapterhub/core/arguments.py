"""Parses the arguments of public functions by their annotations, with the values that the command's options have.

A value type is defined once, here or beside its subject: a `Literal`, or an `Annotated` type with its `Between` or its
parser. The options of the command take the same types (`adapterhub.cli.options.kinds`).

    @parsed
    def find(self, spec: SpecLike, *, rank: Rank | None = None) -> Installed: ...
"""

from __future__ import annotations

import builtins
import collections.abc
import functools
import inspect
import math
import numbers
import os
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeAlias, TypeVar, Union, get_args, get_origin, get_type_hints

from adapterhub.core.errors import UsageProblem, shown
from adapterhub.core.specs import parse_namespace

T = TypeVar("T")

StrPath = str | os.PathLike[str]
MAX_NAME_BYTES: Final = 255
MAX_PATH_BYTES: Final = 4095


@dataclass(frozen=True, slots=True)
class Between:
    """The numbers from `low` to `high`; None is open, and `without` is the end that does not belong."""

    low: float | None = None
    high: float | None = None
    without: float | None = None

    def __call__(self, value: float) -> float:
        """Return the number, if it is inside.

        Raises:
            ValueError: it is not.
        """
        is_inside = (self.low is None or value >= self.low) and (self.high is None or value <= self.high)
        if not is_inside or value == self.without:
            raise ValueError(str(self))
        return value

    def __str__(self) -> str:
        """Return `a number from 0 to 1, without 0`."""
        low = f" from {self.low:g}" if self.low is not None else ""
        high = f" to {self.high:g}" if self.high is not None else ""
        rest = f", without {self.without:g}" if self.without is not None else ""
        return f"a number{low or ' of any size'}{high}{rest}"


Namespace = Annotated[str, parse_namespace]
Count = Annotated[int, Between(1)]
Newest = Annotated[int, Between(1, 1_000_000)] | Literal["all"]
Rank = Annotated[int, Between(1)]
Port = Annotated[int, Between(0, 65_535)]
Seed = Annotated[int, Between(0, (1 << 63) - 1)]
MergeSeed = Annotated[int, Between(0, (1 << 53) - 1)]
Share = Annotated[float, Between(0, 1, without=0)]
RelativeError = Annotated[float, Between(0, 1, without=1)]
Cosine = Annotated[float, Between(0, 1)]
Temperature = Annotated[float, Between(0)]
Seconds = Annotated[float, Between(0)]
Days = Annotated[float, Between(0, 3650)]
Budget = Annotated[float, Between(0, without=0)]
Steps = Annotated[int, Between(1, 1000)]
Guidance = Annotated[float, Between(0, 100)]
GoldenCount = Annotated[int, Between(4, 200)]
GoldenTokens = Annotated[int, Between(1, 512)]
Margin = Annotated[float, Between(0, 10)]
Top = Annotated[int, Between(1, 32)]
ModelLike: TypeAlias = Any
"""A torch module or a pipeline of diffusers; `inference` says in its own words what is neither."""

Precision = Literal["float32", "bfloat16", "float16"]
ResizedTo = Literal["lora"]
LoadPrecision = Literal["auto", "float32", "bfloat16", "float16"]
LoadIn = Literal["4bit", "8bit"]
RunnerName = Literal["lm-eval", "pytest"]
ExportFormat = Literal[
    "comfyui", "diffusers", "gguf", "kohya", "merged", "mlx", "ollama", "peft", "peft@0.18", "tinker", "unsloth",
    "unsloth@0.18", "vllm", "vllm@2d",
]  # fmt: skip
"""The modules of `adapterhub/inference/export/`, repeated so that `--help` needs no torch; a test compares them."""

Sort = Literal["name", "task", "rank", "size", "date"]
By = Literal["auto", "words", "meaning"]
"""How to search: by meaning where the model for it is and the text has several words, by words, or by meaning."""

TestsPolicy = Literal["off", "warn", "require"]
Testing = Literal["keep", "warn"]
"""What a test does: `keep` refuses what does not pass, `warn` says so and goes on."""


class _WrongKindError(Exception):
    """The arguments are a place in the call, the value there, and in words the type that is expected."""

    def __str__(self) -> str:
        where, value, expected = self.args
        return f"{where} is {_told(value)}, expected {expected}"


def parsed(what: T) -> T:
    """Let a function parse its arguments by their annotations; of a class, its public methods and `__init__`.

    A wrong type, an unknown word, a number out of range or a text with a NUL raises `UsageProblem` before the function
    runs. For a parameter that takes a sequence, one item counts as a sequence of it, even a text.
    """
    if isinstance(what, type):
        for name, member in list(vars(what).items()):
            if name == "__init__" or not name.startswith("_"):
                kind = type(member) if isinstance(member, classmethod | staticmethod) else None
                function = member.__func__ if kind else member
                if inspect.isfunction(function):
                    setattr(what, name, kind(parsed(function)) if kind else parsed(function))
        return what
    assert callable(what)
    read = functools.cache(functools.partial(_parameters, what))

    @functools.wraps(what)
    def parse_first(*args: object, **kwargs: object) -> object:
        kinds, in_order, rest = read()  # too many arguments and unknown names are for the call to refuse
        values = []
        for at, value in enumerate(args):
            name = in_order[at] if at < len(in_order) else rest
            values.append(value if name is None else parse(kinds[name], value, f"`{name}`"))
        for name in kinds.keys() & kwargs.keys():
            kwargs[name] = parse(kinds[name], kwargs[name], f"`{name}`")
        return what(*values, **kwargs)

    return parse_first  # type: ignore[return-value]  # `wraps` keeps the signature


def _parameters(function: Callable[..., Any]) -> tuple[dict[str, Any], list[str], str | None]:
    """Return the types of a function's parameters: those that take values by their order, and the one for the rest."""
    every = inspect.signature(function).parameters.values()
    in_order = [p.name for p in every if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return kinds_of(function), in_order, next((p.name for p in every if p.kind is p.VAR_POSITIONAL), None)


class ByName(type):
    """Stands for a class that a module imports for its types only: a value counts if its class has that name."""

    def __getattr__(cls, name: str) -> ByName:
        if name.startswith("_"):
            raise AttributeError(name)
        return ByName(name, (), {})

    def __getitem__(cls, _items: object) -> ByName:
        return cls

    def __instancecheck__(cls, value: object) -> bool:
        return any(each.__name__ == cls.__name__ for each in type(value).__mro__)


_STANDARD: Final = {**vars(builtins), **vars(collections.abc), "Any": Any, "Path": Path, "os": os}


class _Names(dict[str, Any]):
    """The names of a module; a name that it has for its types only stands for a class of that name."""

    def __missing__(self, name: str) -> object:
        if name.startswith("__"):
            raise KeyError(name)
        return _STANDARD[name] if name in _STANDARD else ByName(name, (), {})


def kinds_of(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the types of the parameters of a function by their names; `Any` where one has none."""
    plain = inspect.unwrap(function)
    hints = get_type_hints(plain, {}, _Names(plain.__globals__), include_extras=True)
    return {name: hints.get(name, Any) for name in inspect.signature(plain).parameters}


def parse(kind: Any, value: Any, where: str) -> Any:
    """`value` as the annotation `kind` says; `where` names the parameter in the refusal.

    Raises:
        UsageProblem: it is not of that kind.
    """
    try:
        return _read(kind, value, where)
    except _WrongKindError as error:
        raise UsageProblem(str(error)) from None


def _read(kind: Any, value: Any, where: str) -> Any:
    kind = getattr(kind, "__supertype__", kind)  # of a `NewType`
    origin = get_origin(kind)
    reader = _READERS.get(origin if origin is not None else kind)
    if reader is not None:
        return reader(kind, value, where)
    plain = origin or kind
    if isinstance(plain, type) and not isinstance(value, plain):
        raise _WrongKindError(where, value, f"a `{plain.__name__}`")
    return value


def path_of(place: StrPath) -> Path:
    """Return the path that a text or a path object names; `~` is the home of the user.

    Raises:
        UsageProblem: it is empty or longer than a path can be, or names the home of an unknown user.
    """
    text = os.fspath(place)
    if not text:
        raise UsageProblem("an empty path; the working directory is `.`", hint="write `.` for the working directory")
    try:
        path = Path(text).expanduser()
        longest = max(map(len, map(os.fsencode, path.parts)), default=0)
    except RuntimeError:
        raise UsageProblem(
            f"`{shown(text)}` begins with the home of a user who is unknown here",
            hint="write the path in full, such as `/home/USER/folder`",
        ) from None
    except UnicodeEncodeError:
        raise UsageProblem(
            f"`{shown(text)}` holds half a character", hint="rename it with a name that is valid UTF-8"
        ) from None
    if "\0" in text or longest > MAX_NAME_BYTES or len(os.fsencode(path)) > MAX_PATH_BYTES:
        raise UsageProblem(
            f"`{shown(text)}` is longer than a path can be, or holds NUL",
            hint="use a shorter path without NUL characters",
        )
    return path


def _told(value: object) -> str:
    return f"`{shown(value)}`" if isinstance(value, str | int | float | None) else f"a `{type(value).__name__}`"


def _anything(_kind: object, value: object, _where: str) -> object:
    return value


def _nothing(_kind: object, value: object, where: str) -> None:
    if value is not None:
        raise _WrongKindError(where, value, "None")


def _flag(_kind: object, value: object, where: str) -> bool:
    if not isinstance(value, bool):
        raise _WrongKindError(where, value, "True or False")
    return value


def _whole(_kind: object, value: object, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise _WrongKindError(where, value, "a whole number")
    return int(value)


def _number(_kind: object, value: object, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise _WrongKindError(where, value, "a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise UsageProblem(f"{where} is {_told(value)}, expected a finite number")
    return number


def _text(_kind: object, value: object, where: str) -> str:
    if not isinstance(value, str):
        raise _WrongKindError(where, value, "a text")
    try:
        is_writable = b"\0" not in os.fsencode(value)
    except UnicodeEncodeError:
        is_writable = False
    if not is_writable:
        raise UsageProblem(f"{where} is {_told(value)}, expected a text without NUL and without half a character")
    return value


def _place(_kind: object, value: object, where: str) -> os.PathLike[str]:
    if not isinstance(value, os.PathLike):
        raise _WrongKindError(where, value, "a path")
    _text(str, os.fspath(value), where)
    return value


def _path(_kind: object, value: object, where: str) -> Path:
    return Path(_text(str, value, where) if isinstance(value, str) else _place(None, value, where))


def _word(kind: object, value: object, where: str) -> object:
    words = get_args(kind)
    if not isinstance(value, str) or value not in words:
        raise _WrongKindError(where, value, f"one of {', '.join(f'`{word}`' for word in words)}")
    return value


def _annotated(kind: object, value: object, where: str) -> object:
    inner, *checks = get_args(kind)
    value = _read(inner, value, where)
    for check in filter(callable, checks):
        try:
            check(value)
        except ValueError as error:
            raise UsageProblem(f"{where} is {_told(value)}, expected {error}") from None
    return value


def _either(kind: object, value: object, where: str) -> object:
    expected: list[str] = []
    inside: _WrongKindError | None = None
    for one in get_args(kind):
        try:
            return _read(one, value, where)
        except _WrongKindError as refusal:
            _, refused, wanted = refusal.args
            if refused is value:
                expected.append(wanted)
            else:
                inside = refusal  # the container is right, an item is not
    if inside is not None:
        raise inside
    raise _WrongKindError(where, value, " or ".join(dict.fromkeys(expected)))


def _several(kind: object, value: object, where: str) -> tuple[Any, ...]:
    inner, *more = get_args(kind) or (Any,)
    is_several = isinstance(value, Iterable) and not isinstance(value, str | bytes | os.PathLike | Mapping)
    items = list(value) if is_several else [value]  # type: ignore[call-overload]  # just told apart
    if more and more[0] is not Ellipsis:  # a tuple of so many
        kinds = (inner, *more)
        if len(items) != len(kinds):
            raise _WrongKindError(where, value, f"{len(kinds)} values")
        return tuple(_read(one, item, where) for one, item in zip(kinds, items, strict=True))
    return tuple(_read(inner, item, f"{where}[{n}]" if is_several else where) for n, item in enumerate(items))


def _pairs(kind: object, value: object, where: str) -> Mapping[Any, Any]:
    if not isinstance(value, Mapping):
        raise _WrongKindError(where, value, "a mapping")
    of_key, of_value = get_args(kind) or (Any, Any)
    return {
        _read(of_key, key, f"a key of {where}"): _read(of_value, each, f"{where}[{shown(key)}]")
        for key, each in value.items()
    }


def _function(_kind: object, value: object, where: str) -> object:
    if not callable(value):
        raise _WrongKindError(where, value, "a function")
    return value


_READERS: Final[Mapping[Any, Callable[[Any, Any, str], Any]]] = {
    Any: _anything,
    object: _anything,
    None: _nothing,
    types.NoneType: _nothing,
    bool: _flag,
    int: _whole,
    float: _number,
    str: _text,
    os.PathLike: _place,
    Path: _path,
    Literal: _word,
    Annotated: _annotated,
    Union: _either,
    types.UnionType: _either,
    Sequence: _several,
    Iterable: _several,
    list: _several,
    tuple: _several,
    Mapping: _pairs,
    dict: _pairs,
    Callable: _function,
}
