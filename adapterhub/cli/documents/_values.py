"""The types of documents that are values of the library: `document_of(Match)` is that of `Match.to_json()`."""

from __future__ import annotations

import ast
import importlib
import inspect
import sys
import types
from collections.abc import Mapping, Sequence
from functools import cache, cached_property
from operator import getitem
from typing import Annotated, Any, ForwardRef, Union, get_args, get_origin, get_type_hints

from adapterhub.cli.documents._typed import Digest, NotRequired, TypedDict, Verdict
from adapterhub.core import digests
from adapterhub.formats.base.fingerprint import BaseVerdict
from adapterhub.formats.documented import Documented

_DESCRIBED = {digests.Digest: Digest, BaseVerdict: Verdict}
_NAMES = ("Frobenius ", "SPDX ")
"""First words that keep their capital."""
_PLAIN = (Any, object, str, int, float, bool, types.NoneType)


@cache
def document_of(kind: Any) -> Any:
    """Return the TypedDict of a `Documented` type: its keys, their types as JSON has them, and their descriptions.

    Its description is the first sentence of the class's docstring.
    """
    title = kind.document_title or kind.__name__
    hints = {key: _hint_of(kind, path) for key, path in kind.document_attributes().items()}
    hints |= {key: getitem(NotRequired, _without_null(hints[key])) for key in kind.document_optional()}
    made = TypedDict(title, hints)  # type: ignore[misc]
    made.__doc__ = f"{_first_sentence(kind)}."
    made.__module__ = __name__.rpartition(".")[0]  # where a type that holds itself is found by its name
    return made


def _hint_of(kind: type[Documented], path: str) -> Any:
    """Return the type of the attribute at `layout.kind`; what may be None on the way makes the whole nullable."""
    hint: Any = kind
    may_be_null, noted = False, ()
    for name in path.split("."):
        inner = get_args(get_args(hint)[0]) if get_origin(hint) is Annotated else get_args(hint)
        may_be_null = may_be_null or types.NoneType in inner
        owners = [one for one in (hint, *get_args(hint), *inner) if inspect.isclass(one) and one is not types.NoneType]
        hint = _own_hint(owners[0], name)
        noted = _notes_in(hint) or noted
    found = _as_json(hint, kind)
    if noted and not _notes_in(found):
        found = getitem(Annotated, (found, *noted))
    return found | None if may_be_null else found


def _without_null(hint: Any) -> Any:
    """Return the type of a field that is left out instead of null."""
    if get_origin(hint) is Annotated:
        return getitem(Annotated, (_without_null(get_args(hint)[0]), *hint.__metadata__))
    return Union[tuple(one for one in get_args(hint) if one is not types.NoneType)]  # noqa: UP007 - of a tuple


def _own_hint(owner: type, name: str) -> Any:
    """Return the type of a field, or of a property, whose docstring describes it."""
    member = inspect.getattr_static(owner, name, None)
    if isinstance(member, property | cached_property):
        words = _first_sentence(member)
        function: Any = member.fget if isinstance(member, property) else member.func
        returned = get_type_hints(function, None, _for_types(function.__module__), include_extras=True)["return"]
        return Annotated[returned, words if words.startswith(_NAMES) else words[:1].lower() + words[1:]]
    of_types = {name: one for kind in owner.__mro__ for name, one in _for_types(kind.__module__).items()}
    return get_type_hints(owner, None, of_types, include_extras=True)[name]


@cache
def _for_types(module: str) -> Mapping[str, Any]:
    """Return the imports of a module below `if TYPE_CHECKING:`, by name."""
    if not module.startswith("adapterhub"):
        return {}
    blocks = ast.parse(inspect.getsource(sys.modules[module])).body
    imported = [
        (line.module or "", name)
        for block in blocks
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for line in block.body
        if isinstance(line, ast.ImportFrom)
        for name in line.names
    ]
    return {name.asname or name.name: getattr(importlib.import_module(place), name.name) for place, name in imported}


def _first_sentence(described: object) -> str:
    text = " ".join((inspect.getdoc(described) or "").partition("\n\n")[0].split())
    return text.partition(". ")[0].rstrip(".").replace("None", "null")


def _notes_in(hint: Any) -> tuple[Any, ...]:
    return hint.__metadata__ if get_origin(hint) is Annotated else ()


def _as_json(hint: Any, inside: type[Documented]) -> Any:
    """Return the type of `json_value`'s result for the type; `inside` is the type whose document has it."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return getitem(Annotated, (_as_json(inner[0], inside), *hint.__metadata__))
    if origin in (Union, types.UnionType):
        return Union[tuple(_as_json(one, inside) for one in inner)]  # noqa: UP007 - of a tuple
    if origin in (tuple, list, Sequence):
        return list[_as_json(inner[0], inside)]  # type: ignore[misc]
    if inspect.isclass(origin) and issubclass(origin, Mapping):
        return dict[str, _as_json(inner[1], inside)]  # type: ignore[misc]
    is_document = inspect.isclass(hint) and issubclass(hint, Documented)
    if is_document:
        return ForwardRef(hint.document_title or hint.__name__) if hint is inside else document_of(hint)
    return _DESCRIBED.get(hint, hint if hint in _PLAIN else str)
