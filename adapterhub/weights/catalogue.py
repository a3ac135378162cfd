"""The merge methods and their options, read from their source files without importing torch.

A method is one file of `weights/merge/methods/`, named as users type it. Its docstring describes it, and the
keyword-only parameters of its function `merge` are its options. A new file is enough to add a method to the command
line, to `adapt merge --methods` and to recipes.
"""

from __future__ import annotations

import ast
import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Final

from adapterhub.core.errors import UsageProblem, shown
from adapterhub.formats.documented import Documented

__all__ = ["SUMS", "Method", "Option", "describe", "names"]

SUMS: Final = ("cat", "svd", "linear")
"""Methods that approximate the plain sum, so that the distance to it is an error; others aim at another result."""

_FOLDER = Path(__file__).parent / "merge" / "methods"
_GENERATORS = "generators"
_RANK = ("rank", "max_error")
_MAX_INT = 1 << 63
_EXPECTED: Final = {"bool": "true or false", "int": "a whole number, written without a point"}
_KINDS: Final = ("float", "int", "bool", "str", "int | None", "float | None", "str | None")
_WORDS: Final[Mapping[str, bool]] = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


@dataclass(frozen=True, slots=True, kw_only=True)
class Option(Documented, keys="name kind choices default", title="MethodOption"):
    """An option of a merge method, with its annotated type and default; `choices` if it accepts only these words."""

    name: str
    kind: Annotated[str, "`float`, `int`, `bool` or `str`"]
    default: Annotated[object, "its value where none is given"]
    choices: tuple[str, ...] = ()

    def convert(self, value: object) -> object:
        """`value`, given as such or as text, converted to the option's type.

        Raises:
            UsageProblem: it cannot be converted.
        """
        kind = self.kind.removesuffix(" | None")
        text = value.strip() if isinstance(value, str) else value
        if kind == "str" and isinstance(text, str) and (not self.choices or text in self.choices):
            return text
        if kind == "bool" and (isinstance(text, bool) or (isinstance(text, str) and text.lower() in _WORDS)):
            return text if isinstance(text, bool) else _WORDS[text.lower()]
        if kind in ("int", "float") and isinstance(text, str | int | float) and not isinstance(text, bool):
            number = _number(text, kind)
            if number is not None:
                return number
        expected = " or ".join(f"`{c}`" for c in self.choices) or _EXPECTED.get(kind, f"one {kind}")
        raise UsageProblem(f"option `{self.name}` is `{shown(str(value))}`, expected {expected}")

    @property
    def values(self) -> str:
        """The words that the option accepts, or the name of its type."""
        return "|".join(self.choices) or self.kind.removesuffix(" | None")


@dataclass(frozen=True, slots=True, kw_only=True)
class Method(Documented, keys="name summary options is_random chooses_rank"):
    """A merge method. It has its docstring, its options, and what it needs from the run.

    A method that `is_random` draws masks and takes a seed. One that `chooses_rank` takes `rank` and `max_error` itself;
    the result of any other is cut afterwards.
    """

    name: str
    summary: str
    text: str
    options: tuple[Option, ...]
    is_random: Annotated[bool, "whether it draws random numbers and takes a seed"]
    chooses_rank: Annotated[bool, "whether it cuts to a rank itself; others are cut afterwards"]

    def converted(self, options: Mapping[str, object]) -> dict[str, object]:
        """Return the options, each converted to its type.

        Raises:
            UsageProblem: the method has no such option, or a value cannot be converted.
        """
        known = {option.name: option for option in self.options}
        unknown = [key for key in options if key not in known]
        if unknown:
            takes = f"takes {', '.join(known)}" if known else "takes no options"
            hint = "`adapt merge --methods` lists every method with its options"
            raise UsageProblem(f"method `{self.name}` {takes}, not {', '.join(map(shown, unknown))}", hint=hint)
        return {key: known[key].convert(value) for key, value in options.items()}


@cache
def names() -> tuple[str, ...]:
    """Return the names of all merge methods, sorted."""
    return tuple(sorted(path.stem for path in _FOLDER.glob("[!_]*.py")))


@cache
def describe(name: str) -> Method:
    """Return the method of that name.

    Raises:
        UsageProblem: no method has that name.
    """
    if name not in names():
        near = difflib.get_close_matches(name, names(), n=2)
        hint = f"did you mean {' or '.join(f'`{n}`' for n in near)}?" if near else "`adapt merge --methods` lists them"
        raise UsageProblem(f"no merge method `{shown(name)}`; expected one of {', '.join(names())}", hint=hint)
    tree = ast.parse((_FOLDER / f"{name}.py").read_text(encoding="utf-8"))
    text = ast.get_docstring(tree) or ""
    function = next(n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "merge")
    arguments = function.args
    parameters = [a.arg for a in arguments.kwonlyargs]
    options = [
        _option(argument, default)
        for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
        if argument.arg not in (_GENERATORS, *_RANK)
    ]
    if _GENERATORS in parameters:
        options.append(Option(name="seed", kind="int", default=0))
    return Method(
        name=name,
        summary=" ".join(text.partition("\n\n")[0].removeprefix(f"`{name}`: ").split()),
        text=text,
        options=tuple(options),
        is_random=_GENERATORS in parameters,
        chooses_rank=set(_RANK) <= set(parameters),
    )


def _option(argument: ast.arg, default: ast.expr | None) -> Option:
    kind, choices = "", tuple[str, ...]()
    match argument.annotation:
        case ast.Subscript(value=ast.Name(id="Literal"), slice=ast.Tuple(elts=elements)):
            kind, choices = "str", tuple(str(_constant(e)) for e in elements)
        case ast.expr() as annotation:
            kind = ast.unparse(annotation)
    if kind not in _KINDS or default is None:
        raise TypeError(
            f"option `{argument.arg}` is annotated `{kind}`; expected a default and one of {', '.join(_KINDS)}"
        )
    return Option(name=argument.arg, kind=kind, default=_constant(default), choices=choices)


def _constant(node: ast.expr) -> object:
    """Return the value of a literal."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) and isinstance(node.operand, ast.Constant):
        return -node.operand.value  # type: ignore[operator]  # a number, or Python rejects the file
    if not isinstance(node, ast.Constant):
        raise TypeError(f"`{ast.unparse(node)}`, expected a literal, because options are read without running the file")
    return node.value


def _number(value: str | float, kind: str) -> float | None:
    """`value` as an int or a float; None if it is neither, or not finite."""
    try:
        if kind == "int" and isinstance(value, float):  # 8.0 may be a slip for 8.5, so it is rejected
            return None
        number = int(value) if kind == "int" else float(value)
    except (ValueError, OverflowError):
        return None
    if kind == "int":
        return number if abs(number) < _MAX_INT else None
    return number if math.isfinite(number) else None
